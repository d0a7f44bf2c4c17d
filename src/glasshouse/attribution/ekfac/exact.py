"""The Gauss-Newton matrix itself, for small models: the slow oracles that EK-FAC approximates.

`G = (1/N) sum_n J_n^T H_n J_n` over the tracked weights, with J the Jacobian of the outputs and H the Hessian
of the loss in the outputs. Vectors are dictionaries of layer matrices `[R, out, in(+1)]`,
R right sides at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from glasshouse.attribution.objectives import ClassLoss, Objective, SquaredLoss, TokenLoss
from glasshouse.attribution.units import Batch, Units
from glasshouse.corpora.rows import IGNORE
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import as_matrix, as_parameters

Vector = dict[str, Tensor]


class GaussNewton:
    """`v -> (G + damping) v` on the named modules, exact over all of `units`.

    `damping` is a number, or one per module (the blocks of EK-FAC's "auto"). Token, class and squared
    losses only: InputError for others.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        objective: Objective,
        names: Sequence[str],
        *,
        damping: float | dict[str, float] = 0.0,
        batch_rows: int = 256,
    ) -> None:
        if not isinstance(objective, TokenLoss | ClassLoss | SquaredLoss):
            raise InputError("the exact Gauss-Newton matrix is known for built-in losses only")
        self.model, self.units, self.objective, self.names = model, units, objective, tuple(names)
        self.damping = {
            name: damping if isinstance(damping, float | int) else damping[name] for name in names
        }
        rows = list(range(len(units)))
        self._batches = [units.batch(rows[k : k + batch_rows]) for k in range(0, len(rows), batch_rows)]

    def __call__(self, v: Vector) -> Vector:
        """`(G + damping) v` for v [R, out, in] per module."""
        total = {name: part * self.damping[name] for name, part in v.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            for batch in self._batches:
                for name, part in self._product(batch, v).items():
                    total[name] = total[name] + part / len(self.units)
        return total

    def _product(self, batch: Batch, v: Vector) -> Vector:
        parameters = self._parameters()

        def outputs(tracked: dict[str, Tensor]) -> Tensor:
            return _call(self.model, self.objective, batch, tracked)

        z, back = vjp(outputs, parameters)
        hessian = _output_hessian(self.objective, z.detach(), batch)

        def one(direction: Vector) -> Vector:
            tangents = self._as_parameters(direction)
            _, push = jvp(outputs, (parameters,), (tangents,))
            return self._as_matrices(back(hessian(push))[0])

        return vmap(one, chunk_size=8)(v)

    def _parameters(self) -> dict[str, Tensor]:
        found = {}
        for name in self.names:
            for key, value in self.model.get_submodule(name).named_parameters(recurse=False):
                found[f"{name}.{key}" if name else key] = value.detach()
        return found

    def _as_parameters(self, v: Vector) -> dict[str, Tensor]:
        return {
            f"{name}.{key}" if name else key: part
            for name in self.names
            for key, part in as_parameters(self.model.get_submodule(name), v[name]).items()
        }

    def _as_matrices(self, tracked: dict[str, Tensor]) -> Vector:
        found = {}
        for name in self.names:
            prefix = f"{name}." if name else ""
            weight, bias = tracked[f"{prefix}weight"], tracked.get(f"{prefix}bias")
            found[name] = as_matrix(self.model.get_submodule(name), weight, bias)
        return found


@dataclass(frozen=True)
class Solved:
    """A solution and its relative residual per right side, `[R]`."""

    x: Vector
    residual: Tensor
    iterations: int


def conjugate_gradient(
    operator: Callable[[Vector], Vector],
    b: Vector,
    *,
    preconditioner: Callable[[Vector], Vector] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-6,
) -> Solved:
    """Solve `operator(x) = b` for every right side at once; `operator` must be positive definite.

    Right sides are scaled to unit norm inside. Stops when every relative residual is below `tolerance`; the
    residuals returned are recomputed from the solution.
    """
    apply = preconditioner or (lambda v: v)
    scale = _dot(b, b).sqrt().clamp_min(1e-30)
    b = _scale(b, 1 / scale)
    x = {k: torch.zeros_like(v) for k, v in b.items()}
    r, z = b, apply(b)
    p, rz = z, _dot(b, z)
    done = 0
    while done < iterations:
        done += 1
        Ap = operator(p)
        alpha = rz / _dot(p, Ap).clamp_min(1e-30)
        x, r = _add(x, p, alpha), _add(r, Ap, -alpha)
        if float(_dot(r, r).sqrt().max()) < tolerance:
            break
        z = apply(r)
        rz, before = _dot(r, z), rz
        p = _add(z, p, rz / before.clamp_min(1e-30))
    left = _add(b, operator(x), -torch.ones_like(scale))
    return Solved(_scale(x, scale), _dot(left, left).sqrt(), done)


def lissa(operator: Callable[[Vector], Vector], b: Vector, *, scale: float, iterations: int = 1000) -> Solved:
    """Solve `operator(x) = b` by the Neumann series `x <- b/scale + (I - operator/scale) x` (LiSSA).

    `scale` must exceed the largest eigenvalue of `operator`, else the series diverges (InputError).
    """
    norm = _dot(b, b).sqrt().clamp_min(1e-30)
    x = _scale(b, torch.full_like(norm, 1 / scale))
    for _ in range(iterations):
        left = _add(b, operator(x), -torch.ones_like(norm))
        x = _add(x, left, torch.full_like(norm, 1 / scale))
    left = _add(b, operator(x), -torch.ones_like(norm))
    residual = _dot(left, left).sqrt() / norm
    if not bool((residual < 1.5).all()):
        raise InputError(f"the series diverges at scale {scale:g}", fix="use a larger scale")
    return Solved(x, residual, iterations)


def _call(model: nn.Module, objective: Objective, batch: Batch, tracked: dict[str, Tensor]) -> Tensor:
    class Bound(nn.Module):
        """The model with some weights replaced, under its own forward signature."""

        def __init__(self) -> None:
            super().__init__()
            self.forward = model.forward  # the signature is read by the objective

        def __call__(self, *args: object, **kwargs: object) -> object:
            return functional_call(model, tracked, args, kwargs)

    return objective.outputs(Bound(), batch)


def _output_hessian(objective: Objective, z: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
    """`u -> H u` at outputs z: `diag(p) - p p^T` where a label is counted, the identity for squared error."""
    if isinstance(objective, SquaredLoss):
        return lambda u: u
    p = torch.softmax(z.float(), -1)
    if isinstance(objective, TokenLoss):
        labels = batch.labels[:, 1:]  # type: ignore[union-attr]
        kept = (labels != IGNORE).any(0)
        p = p * (labels[:, kept] != IGNORE).unsqueeze(-1)
    # With p set to zero at unlabelled tokens, H is zero there.
    return lambda u: p * u - p * (p * u).sum(-1, keepdim=True)


def _dot(a: Vector, b: Vector) -> Tensor:
    return sum(((a[k].double() * b[k].double()).flatten(1).sum(1) for k in a), start=torch.zeros(())).clone()


def _scale(a: Vector, s: Tensor) -> Vector:
    return {k: v * s.to(v)[:, None, None] for k, v in a.items()}


def _add(a: Vector, b: Vector, s: Tensor) -> Vector:
    return {k: v + b[k] * s.to(v)[:, None, None] for k, v in a.items()}
