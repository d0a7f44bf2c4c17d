"""Influence without the training set: the proximal objective with a sketch in the place of the data.

`theta(eps) = argmin FSD(theta, theta_s) + damping / 2 |theta - theta_s|^2 + eps L(z)`: outputs on the old
data are held where they were, one point is pushed (Bae et al. 2022, arXiv:2209.05364; Dhawan et al. 2023).
To first order `theta' = -(H + damping)^-1 grad L(z)` with H the second derivative of the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from glasshouse.attribution.base import at_least_one
from glasshouse.attribution.ekfac.exact import Vector, conjugate_gradient
from glasshouse.attribution.function_space_distance.forward import Pairing, run, run_pair
from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.jacobians import (
    TRACKED,
    Recorder,
    Rows,
    split_parameters,
)
from glasshouse.attribution.function_space_distance.sketch import FSDSketch
from glasshouse.attribution.objectives import Measurement, default_objective, measure
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages import asking
from glasshouse.attribution.units import TensorUnits, Units, as_units
from glasshouse.runtime.errors import InputError, NumericalError

Solver = Literal["samples", "cg"]
SHARE = 1e-3
"""Damping "auto" is this share of the trace of H: the mean squared length of an output's gradient."""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Response:
    """A finite step: `change` [Q] of the measurements per unit of weight, over N, and the steps it took.

    `gradient` is the last gradient norm over the first.
    """

    change: NDArray[np.float32]
    gradient: float
    steps: int


class FSDInfluence:
    """Influence of points on measurements, and of points on themselves, from a sketch alone.

    `solver` "samples" draws `draws` inputs and gates from the sketch; their outputs' gradients span H, and it
    solves there; "cg" takes the moments themselves (the deterministic distance, linearised) and
    conjugate gradients of at most `iterations` steps. `damping` is an absolute number, or "auto": a
    thousandth of the trace of H. `inputs` puts real inputs [n, ...] in the place of draws: the
    exact version with data, to compare with. The weights are those of Linear, Conv1D and Conv2d layers.

    Scores are the wing's: score > 0 means that more weight on the point raises the measurement; divided by
    the number of rows behind the sketch.
    """

    def __init__(
        self,
        sketch: FSDSketch,
        *,
        solver: Solver = "samples",
        damping: float | Literal["auto"] = "auto",
        draws: int = 400,
        iterations: int = 200,
        seed: int = 0,
        inputs: Tensor | None = None,
    ) -> None:
        self.sketch, self.solver, self.damping, self.draws = sketch, solver, damping, draws
        self.iterations, self.seed, self.inputs = iterations, seed, inputs
        self._solved: tuple[Rows, Tensor, float] | None = None

    @property
    def damping_(self) -> float:
        """The damping in use, as an absolute number."""
        return self._damping_value()

    def self_influence(self, points: Any) -> NDArray[np.float32]:
        """`grad L^T (H + damping)^-1 grad L / N` of each point (inputs, targets), `[M]` float32 (>= 0)."""
        units = self._points(points)
        losses = self._gradients(units, default_objective(units.batch([0])))
        values = self._products(losses, None)
        return asking.finite((values / self.sketch.count_).float().numpy(), "self-influences")

    def influence(self, queries: Any, points: Any, measurement: str | Measurement = "auto") -> ScoreTable:
        """Scores `[Q, M]`: the predicted change of each query's measurement when a point's weight doubles."""
        asked, units = self._points(queries), self._points(points)
        f = measure(asking.usual_measurement(asked) if measurement == "auto" else measurement)
        pushed = self._gradients(units, default_objective(units.batch([0])))
        found = -self._products(self._gradients(asked, f), pushed) / self.sketch.count_
        meta = {
            "method": type(self).__name__, "model_hash": self.sketch.model_hash_,
            "n_train": self.sketch.count_, "measurement": asking.name_of(f), "solver": self.solver,
        }  # fmt: skip
        scores = asking.finite(found.float().numpy(), "scores")
        return ScoreTable(scores, tuple(asked.ids), tuple(units.ids), meta)

    def response(
        self, queries: Any, point: Any, measurement: str | Measurement = "auto", *, eps: float = 1e-2,
        steps: int = 100,
    ) -> Response:  # fmt: skip
        """Minimise the proximal objective itself for one point, by L-BFGS on the deterministic distance.

        `change` compares with a column of `influence`. Raises NumericalError where the loss leaves the finite
        numbers.
        """
        asked, units = self._points(queries), self._points(point)
        graph, damping = self._graph(), self._damping_value()
        f = measure(asking.usual_measurement(asked) if measurement == "auto" else measurement)
        loss = default_objective(units.batch([0]))
        start = {name: value.float() for name, value in graph.start.items()}
        free = {name: value.clone().requires_grad_() for name, value in start.items() if self._free(name)}
        norms: list[float] = []
        optimiser = torch.optim.LBFGS(
            list(free.values()), lr=1.0, max_iter=steps, history_size=50, line_search_fn="strong_wolfe",
            tolerance_grad=1e-12, tolerance_change=1e-16,
        )  # fmt: skip

        def closure() -> Tensor:
            optimiser.zero_grad()
            tensors = {**start, **free}
            moved = sum((free[n] - start[n]).square().sum() for n in free)
            value = graph._deterministic(tensors, torch.float32) + 0.5 * damping * moved
            value = value + eps * loss(_Network(graph, tensors), units.batch([0])).sum()
            if not bool(torch.isfinite(value)):
                raise NumericalError("the proximal objective is not finite", fix="use a smaller eps")
            value.backward()
            norms.append(float(torch.stack([p.grad.norm() for p in free.values()]).norm()))  # type: ignore[union-attr]
            return value

        optimiser.step(closure)
        closure()
        with torch.no_grad():
            rows = asked.batch(range(len(asked)))
            after = f(_Network(graph, {**start, **free}), rows)
            change = (after - f(_Network(graph, start), rows)) / eps / self.sketch.count_
        return Response(change.float().numpy(), norms[-1] / max(norms[0], 1e-300), len(norms))

    # -- inside ----------------------------------------------------------------------------------------------

    def _graph(self) -> Graph:
        for name, value in (("draws", self.draws), ("iterations", self.iterations)):
            at_least_one(name, value)
        if self.solver not in get_args(Solver):
            raise InputError(f"solver is {self.solver!r}", fix="use samples or cg")
        if not isinstance(self.sketch, FSDSketch):
            raise InputError(f"a {type(self.sketch).__name__} is no sketch", fix="give a fitted FSDSketch")
        self.sketch._check_fitted()
        if set(self.sketch.graphs_) != {""}:
            raise InputError("influence needs a sketch of a whole network", fix="fit it on an nn.Module")
        return self.sketch.graphs_[""]

    def _points(self, points: Any) -> Units:
        units = as_units(points)
        if not isinstance(units, TensorUnits):
            raise InputError("points are pairs (inputs, targets)", fix="give tensors")
        return units

    def _free(self, name: str) -> bool:
        homes = {node.module for node in self._graph().nodes if node.kind in TRACKED}
        return name.rpartition(".")[0] in homes

    def _recorder(self) -> Recorder:
        graph = self._graph()
        base, _ = graph.pair(graph.start, torch.float32)
        return Recorder({n.name: n for n in graph.nodes}, base, graph.shapes)  # type: ignore[arg-type]

    def _gradients(self, units: Units, f: Callable[[nn.Module, Any], Tensor]) -> Rows:
        """The gradient of `f` at every point."""
        graph, recorder = self._graph(), self._recorder()
        model = _Network(graph, graph.start, recorder)
        values = f(model, units.batch(range(len(units))))
        return recorder.rows([values])

    def _basis(self) -> tuple[Rows, Tensor, float]:
        """Gradients whose outer products are H, a Cholesky factor of `damping + Gram`, and the damping."""
        if self._solved is None:
            graph, recorder = self._graph(), self._recorder()
            if self.inputs is not None:
                x = self.inputs.float()
                outputs = run(graph.nodes, recorder.weights, x, dict(graph.shapes), probe=recorder)
                weights = torch.full((len(x),), 1 / len(x))
            else:
                x, pairing, weights = graph.draws(self.draws, self.seed, drawn=True)
                outputs = _sampled(graph, recorder, x, pairing)
            rows = recorder.rows(list(outputs.unbind(1))).scaled(weights.sqrt())
            gram = rows.inner(rows)
            damping = self._checked(SHARE * float(gram.diagonal().sum()))
            gram.diagonal().add_(damping)
            self._solved = rows, torch.linalg.cholesky(gram), damping
        return self._solved

    def _checked(self, usual: float) -> float:
        value = usual if self.damping == "auto" else float(self.damping)
        if not value > 0:
            raise InputError(f"damping is {self.damping!r}", fix='use "auto" or a positive number')
        return value

    def _damping_value(self) -> float:
        return self._checked(0.0) if self.damping != "auto" else self._basis()[2]

    def _products(self, left: Rows, right: Rows | None) -> Tensor:
        """`left^T (H + damping)^-1 right` [Q, M]; without `right` the diagonal for `left` alone [M]."""
        if self.solver == "cg":
            return self._by_cg(left, right)
        basis, factor, damping = self._basis()
        # (H + c)^-1 = (1 - J^T (c + J J^T)^-1 J) / c for H = J^T J.
        u = torch.linalg.solve_triangular(factor, basis.inner(left), upper=False)
        if right is None:
            return (left.squares() - u.square().sum(0)) / damping
        v = torch.linalg.solve_triangular(factor, basis.inner(right), upper=False)
        return (left.inner(right) - u.mT @ v) / damping

    def _by_cg(self, left: Rows, right: Rows | None) -> Tensor:
        graph, damping = self._graph(), self._damping_value()
        nodes = {node.name: node for node in graph.nodes if node.kind in TRACKED}
        outs = {name: graph.start[f"{_prefix(n)}weight"] for name, n in nodes.items()}
        sizes = {name: _channels(nodes[name], weight) for name, weight in outs.items()}
        pushes = (left if right is None else right).matrices(sizes)
        solved = conjugate_gradient(
            Tangent(graph, nodes, damping), pushes, iterations=self.iterations, tolerance=TOLERANCE
        )
        if float(solved.residual.max()) > 0.5:
            raise NumericalError(
                f"conjugate gradients stopped at a relative residual of {float(solved.residual.max()):.2g}",
                fix='allow more iterations, raise the damping, or use solver="samples"',
            )
        asked = left.matrices(sizes)
        if right is None:
            return sum(((asked[k] * solved.x[k]).flatten(1).double().sum(1) for k in asked), torch.zeros(()))
        return sum(
            (asked[k].flatten(1).double() @ solved.x[k].flatten(1).double().mT for k in asked),
            torch.zeros(()),
        )


class Tangent:
    """`v -> (H + damping) v` with H the second derivative of the deterministic distance at the reference.

    With the change linearised there, the distance is `0.5 v^T H v`, so its gradient at v is H v.
    """

    def __init__(self, graph: Graph, nodes: Mapping[str, Any], damping: float) -> None:
        self.graph, self.nodes, self.damping = graph, nodes, damping
        self.start = {name: value.float() for name, value in graph.start.items()}
        with torch.no_grad():  # what belongs to the reference is computed outside of vmap
            graph._deterministic({n: v + 1e-3 for n, v in self.start.items()}, torch.float32, tangent=True)

    def __call__(self, v: Vector) -> Vector:
        """`(H + damping) v` for v [R, out, in(+1)] per layer."""
        found = vmap(grad(self._half), chunk_size=16)(v)
        return {name: found[name] + self.damping * v[name] for name in v}

    def _half(self, v: Vector) -> Tensor:
        tensors = dict(self.start)
        for name, matrix in v.items():
            for key, part in split_parameters(self.nodes[name], matrix, self.start).items():
                tensors[key] = self.start[key] + part
        return self.graph._deterministic(tensors, torch.float32, tangent=True)


class _Network(nn.Module):
    """The steps of a graph with some tensors, called like a model."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], recorder: Recorder | None = None) -> None:
        super().__init__()
        self.graph, self.tensors, self.recorder = graph, dict(tensors), recorder

    def forward(self, x: Tensor) -> Tensor:
        _, weights = self.graph.pair(self.tensors, torch.float32)
        return run(self.graph.nodes, weights, x.float(), dict(self.graph.shapes), probe=self.recorder)


def _sampled(graph: Graph, recorder: Recorder, x: Tensor, pairing: Pairing) -> Tensor:
    base = recorder.weights
    return run_pair(graph.nodes, base, base, x, graph.shapes, pairing, probe=recorder)[0]


def _prefix(node: Any) -> str:
    return f"{node.module}." if node.module else ""


def _channels(node: Any, weight: Tensor) -> int:
    return int(weight.shape[1] if node.kind == "linear" and node.options["transposed"] else weight.shape[0])


__all__ = ["FSDInfluence", "Response", "Solver", "Tangent"]
