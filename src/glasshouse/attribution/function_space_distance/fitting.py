"""Fitting a sketch: one pass over the data with the reference, summing moments and what gates do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.function_space_distance import blocks
from glasshouse.attribution.function_space_distance.forward import GateSum, run
from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.moments import (
    Covariance,
    InputMoments,
    MomentSum,
    summarise,
)
from glasshouse.attribution.function_space_distance.program import Node, effective, state_of, used
from glasshouse.attribution.function_space_distance.tracing import trace
from glasshouse.attribution.units import TensorUnits
from glasshouse.runtime.errors import InputError, NumericalError

DRAWS = 2000
"""Inputs drawn where gates have to be estimated from moments alone."""
Graphs = dict[str, Graph]


@dataclass(frozen=True)
class Plan:
    """The options of a sketch."""

    per_class: bool
    cov: Covariance
    approx: bool
    seed: int
    batch_rows: int


def fit_module(model: nn.Module, data: Any, plan: Plan) -> tuple[Graphs, list[str]]:
    """The graph of a plain network, named "", and notes on what was stored otherwise than asked."""
    nodes = trace(model, approx=plan.approx)
    given = data if isinstance(data, InputMoments) else None
    x, classes, names = _rows(data, plan.per_class) if given is None else _drawn(model, given, plan.seed)
    with torch.no_grad():
        start = _start(nodes, state_of(model))
        weights = effective(nodes, {n: v.float() for n, v in start.items()})
        shapes: dict[str, Sequence[int]] = {}
        gates, sums, squares = GateSum(len(names)), [MomentSum(x[0].numel()) for _ in names], 0.0
        device = next(model.parameters()).device
        for at in torch.arange(len(x)).split(plan.batch_rows):
            rows = x[at].to(device).float()
            gates.rows(classes[at])
            out = run(nodes, weights, rows, shapes, gates.watch(shapes))
            if int(at[0]) == 0:
                _agree(model, rows, out)
            squares += 0.5 * float(out.double().square().sum())
            for k in range(len(names)) if given is None else ():
                sums[k].add(x[at][classes[at] == k].flatten(1))
    moments, notes = (given, []) if given is not None else summarise(sums, names, plan.cov)
    graph = Graph(nodes, shapes, moments, gates.finish(), start, squares / len(x))
    return {"": _finite(graph, "").to(device, torch.float32)}, notes


def fit_blocks(subject: Any, data: Any, plan: Plan) -> tuple[Graphs, list[str]]:
    """The graphs of a language model's MLP blocks by name, and notes."""
    if plan.per_class:
        raise InputError("the blocks of a language model have no classes", fix="use per_class=False")
    units, modules = blocks.token_units(subject, data), blocks.mlp_blocks(blocks.parts_of(subject))
    fits = {
        name: _BlockFit(module, trace(module, approx=plan.approx, gains=module.gains))
        for name, module in modules.items()
    }
    seen: set[str] = set()
    with torch.no_grad():
        for name, rows, hidden in blocks.residual_rows(subject, units, plan.batch_rows):
            mine = fits[name].add(rows)
            if name not in seen:
                seen.add(name)
                _check_close(hidden, mine, next(modules[name].parameters()).dtype, f"block {name!r}")
    found, notes = {}, []
    for name, fit in fits.items():
        graph, told = fit.finish(plan.cov)
        notes += [f"{name}: {note}" for note in told]
        found[name] = _finite(graph, name)
    return found, notes


def idle_units(graphs: Mapping[str, Graph]) -> tuple[int, int, int]:
    """ReLU units whose gate is shut on all rows of all classes, those whose gate is open, and all."""
    shut = opened = total = 0
    for graph in graphs.values():
        for node in graph.nodes:
            if node.kind == "relu":
                mu = graph.gates[node.name]["mu"]
                shut += int((mu == 0).all(0).sum())
                opened += int((mu == 1).all(0).sum())
                total += mu.shape[1]
    return shut, opened, total


class _BlockFit:
    """Running sums of one MLP block."""

    def __init__(self, module: blocks.MLPBlock, nodes: tuple[Node, ...]) -> None:
        self.nodes, self.start = nodes, _start(nodes, state_of(module))
        self.weights = effective(nodes, {n: v.float() for n, v in self.start.items()})
        self.gates, self.squares = GateSum(1), 0.0
        self.shapes: dict[str, Sequence[int]] = {}
        self.inputs: Any = None
        self._down = [node for node in nodes if node.kind == "linear"][-1].parents[0]

    def add(self, rows: Tensor) -> Tensor:
        """Add residual rows [n, d]; returns the block's hidden units [n, k], to be checked."""
        if self.inputs is None:
            self.inputs = MomentSum(rows.shape[1])
        self.inputs.add(rows)
        self.gates.rows(torch.zeros(len(rows), dtype=torch.long))
        out = run(self.nodes, self.weights, rows, self.shapes, self.gates.watch(self.shapes))
        self.squares += 0.5 * float(out.double().square().sum())
        upto = next(i for i, node in enumerate(self.nodes) if node.name == self._down)
        return run(self.nodes[: upto + 1], self.weights, rows, dict(self.shapes))

    def finish(self, cov: Covariance) -> tuple[Graph, list[str]]:
        """The graph of the block, and notes."""
        moments, notes = summarise([self.inputs], [0], cov)
        scale = self.squares / self.inputs.count
        device = next(iter(self.start.values())).device
        graph = Graph(self.nodes, self.shapes, moments, self.gates.finish(), self.start, scale)
        return graph.to(device, torch.float32), notes


def _rows(data: Any, per_class: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Inputs [N, ...], the class of each [N], and the labels of the classes."""
    if isinstance(data, Tensor):
        data = TensorUnits(data, torch.zeros(len(data), dtype=torch.long))
    elif isinstance(data, tuple | list) and len(data) == 2:
        data = TensorUnits(*data)
    if not isinstance(data, TensorUnits):
        raise InputError(
            f"cannot sketch data of type {type(data).__name__}",
            fix="give inputs, (inputs, targets), TensorUnits or InputMoments",
        )
    x, targets = data.inputs, data.targets
    if not x.is_floating_point():
        raise InputError("the inputs are not numbers on a scale", fix="give floating-point inputs")
    if not per_class:
        return x, torch.zeros(len(x), dtype=torch.long), [0]
    if targets.is_floating_point() or targets.ndim != 1:
        raise InputError("per_class needs one integer label per row", fix="give (inputs, labels)")
    labels, classes = torch.unique(targets.cpu(), return_inverse=True)
    return x, classes, [int(label) for label in labels]


def _drawn(model: nn.Module, moments: InputMoments, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """The same where only moments are known: inputs are drawn from them."""
    x, classes = moments.sample(max(DRAWS, len(moments)), seed)
    return x.reshape(len(x), *_input_shape(model, moments.width)), classes, list(moments.names)


def _agree(model: nn.Module, rows: Tensor, mine: Tensor) -> None:
    """The steps must give what the model gives: a rule applied wrongly must not pass."""
    dtype = next(model.parameters()).dtype
    theirs = model(rows.to(dtype)).float().flatten(1)
    if theirs.shape != mine.shape:
        raise InputError(f"its output {tuple(theirs.shape)} is not one row per input", fix="return [N, C]")
    _check_close(theirs, mine, dtype, type(model).__name__)


def _check_close(theirs: Tensor, mine: Tensor, dtype: torch.dtype, where: str) -> None:
    if not bool(torch.isfinite(theirs).all()):
        raise NumericalError("the model's values are NaN or infinite", where=where, fix="repair its weights")
    error = float((theirs - mine).abs().max())
    allowed = 200 * torch.finfo(dtype).eps * float(theirs.abs().max().clamp_min(1e-6))
    if error > allowed:
        raise InputError(
            f"the traced steps give other values than the model (by {error:.2g})", where=where,
            fix="use a fallback such as CoresetDistance",
        )  # fmt: skip


def _start(nodes: tuple[Node, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in used(nodes, tensors).items()}


def _finite(graph: Graph, name: str) -> Graph:
    gates = (value for parts in graph.gates.values() for value in parts.values())
    parts = [graph.moments.mean, graph.moments.factor, *graph.start.values(), *gates]
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise NumericalError(
            "NaN or infinity in its moments or weights",
            where=f"graph {name!r}",
            fix="clean the data or the model",
        )
    return graph


def _input_shape(model: nn.Module, width: int) -> tuple[int, ...]:
    """The shape of one input where only its width is known: flat, or a square image for a first Conv2d."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if not isinstance(first, nn.Conv2d):
        return (width,)
    side = round((width / first.in_channels) ** 0.5)
    if side * side * first.in_channels != width:
        raise InputError(f"{width} numbers are no square image of {first.in_channels} channels")
    return (first.in_channels, side, side)
