"""The proximal Bregman response, which influence functions predict for models that have not converged.

`theta(eps) = argmin (1/N) sum D(y(theta, x_n), y(theta_s, x_n)) + lambda/2 |theta - theta_s|^2 + eps L(z_m)`:
outputs are held, one row is pushed (Bae et al. 2022, arXiv:2209.05364; Grosse et al. 2023, equation 5).
Its small-eps limit is the damped Gauss-Newton response, solved here by preconditioned conjugate gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glasshouse.attribution.ekfac.exact import GaussNewton, Solved, conjugate_gradient
from glasshouse.attribution.ekfac.method import EKFAC
from glasshouse.attribution.objectives import ClassLoss, Measurement, Objective, SquaredLoss, TokenLoss
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.units import Batch, Units
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.subjects.capture import as_parameters

ITERATIONS = 220
"""As measured: after 60 the residuals are above one and the ranks useless."""


@dataclass(frozen=True)
class Response:
    """`scores` [Q, M]: predicted change of each measurement when row m is doubled; CG residuals."""

    scores: NDArray[np.float32]
    rows: tuple[str, ...]
    residual: NDArray[np.float64]


def pbrf_influence(
    method: EKFAC,
    queries: Units,
    rows: Sequence[int],
    measurement: Measurement,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = 1e-4,
) -> Response:
    """Exact damped Gauss-Newton influence of the training rows `rows` on each query (small models only).

    Uses the damping of `method`, per module, and its EK-FAC inverse as preconditioner. Residuals are
    returned, not hidden: a relative residual near one means the row's scores are worth nothing.
    """
    objective = method.objective_
    if not isinstance(objective, TokenLoss | ClassLoss | SquaredLoss):
        raise InputError("the exact response is known for built-in losses only")
    damping = {name: factor.damping(method.damping) for name, factor in method.factors_.items()}
    operator = GaussNewton(method.model_, method.train_, objective, method.names_, damping=damping)
    pushes = layer_gradients(method._job(method.train_, objective), list(rows))
    solved: Solved = conjugate_gradient(
        operator,
        pushes,
        preconditioner=lambda v: {
            k: method.factors_[k].precondition(p, method.damping) for k, p in v.items()
        },
        iterations=iterations,
        tolerance=tolerance,
    )
    asked = layer_gradients(method._job(queries, measurement), range(len(queries)))
    scores = -sum(asked[k].flatten(1) @ solved.x[k].flatten(1).T for k in asked) / len(method.train_)
    assert isinstance(scores, Tensor)
    names = tuple(method.train_.ids[i] for i in rows)
    return Response(scores.numpy(), names, solved.residual.double().numpy())


@dataclass(frozen=True)
class FineTuned:
    """A finite step: `change` [Q] of the measurements per unit of weight, and how well it converged.

    `gradient` is the final gradient norm over the first one; `reliable` when it fell below `tolerance`.
    """

    change: NDArray[np.float32]
    gradient: float
    steps: int
    reliable: bool


def finetuned_response(
    method: EKFAC,
    queries: Units,
    row: int,
    measurement: Measurement,
    *,
    eps: float = 1e-2,
    steps: int = 200,
    tolerance: float = 1e-2,
) -> FineTuned:
    """Minimise the proximal Bregman objective with row `row` upweighted by `eps`, by full-batch L-BFGS.

    `change` is comparable to `EKFAC.score` (weight +1 on the row, divided by N). The tracked weights move,
    all others are held. Raises NumericalError when the loss leaves the finite numbers.
    """
    objective = method.objective_
    if not isinstance(objective, ClassLoss | SquaredLoss | TokenLoss):
        raise InputError("the proximal Bregman objective is known for built-in losses only")
    model = copy.deepcopy(method.model_).double().requires_grad_(False)
    weights = _tracked(model, method)
    start = {name: [p.detach().clone() for p in group] for name, group in weights.items()}
    held = _doubled(method.train_.batch(range(len(method.train_))))
    asked, pushed = _doubled(queries.batch(range(len(queries)))), _doubled(method.train_.batch([row]))
    with torch.no_grad():
        target, before = objective.outputs(model, held).detach(), measurement(model, asked)
    damping = {name: factor.damping(method.damping) for name, factor in method.factors_.items()}

    def loss() -> Tensor:
        value = _divergence(objective, objective.outputs(model, held), target, held) / len(method.train_)
        for name, group in weights.items():
            moved = sum((p - s).square().sum() for p, s in zip(group, start[name], strict=True))
            value = value + 0.5 * damping[name] * moved
        return value + eps * objective(model, pushed).sum()

    first, last, taken = _minimise([p for group in weights.values() for p in group], loss, steps)
    with torch.no_grad():
        change = (measurement(model, asked) - before) / eps / len(method.train_)
    ratio = last / max(first, 1e-300)
    return FineTuned(change.float().numpy(), ratio, taken, ratio < tolerance)


def _minimise(weights: list[nn.Parameter], loss: object, steps: int) -> tuple[float, float, int]:
    """First and last gradient norm, and the number of evaluations."""
    optimiser = torch.optim.LBFGS(
        weights, lr=1.0, max_iter=steps, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-12, tolerance_change=1e-16,
    )  # fmt: skip
    norms: list[float] = []

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss()  # type: ignore[operator]
        if not torch.isfinite(value):
            raise NumericalError("the proximal Bregman objective is not finite", fix="use a smaller eps")
        value.backward()
        norms.append(float(torch.stack([p.grad.norm() for p in weights if p.grad is not None]).norm()))
        return value

    optimiser.step(closure)
    closure()
    return norms[0], norms[-1], len(norms)


def _tracked(model: nn.Module, method: EKFAC) -> dict[str, list[nn.Parameter]]:
    found = {}
    for name in method.names_:
        group = list(model.get_submodule(name).parameters(recurse=False))
        for parameter in group:
            parameter.requires_grad_(True)
        found[name] = group
    return found


def _divergence(objective: Objective, z: Tensor, z0: Tensor, batch: Batch) -> Tensor:
    """Bregman divergence summed over rows and labelled tokens: KL(p0 || p), or half the squared distance."""
    if isinstance(objective, SquaredLoss):
        return 0.5 * (z - z0).square().sum()
    kl = (z0.softmax(-1) * (z0.log_softmax(-1) - z.log_softmax(-1))).sum(-1)
    if isinstance(objective, TokenLoss):
        labels = batch.labels[:, 1:]  # type: ignore[union-attr]
        kl = kl * (labels[:, (labels != -100).any(0)] != -100)
    return kl.sum()


def _doubled(batch: Batch) -> Batch:
    if hasattr(batch, "inputs") and batch.inputs.is_floating_point():
        targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
        return type(batch)(batch.inputs.double(), targets, batch.row_ids)
    return batch


def perturbed(method: EKFAC, direction: dict[str, Tensor], step: float) -> nn.Module:
    """A copy of the model with `step * direction` added to its tracked weights."""
    model = copy.deepcopy(method.model_)
    with torch.no_grad():
        for name, matrix in direction.items():
            module = model.get_submodule(name)
            for key, part in as_parameters(module, matrix).items():
                module.get_parameter(key).add_(part, alpha=step)
    return model


__all__ = ["FineTuned", "Response", "finetuned_response", "pbrf_influence", "perturbed"]
