"""Running the steps: on data of one network (to fit gates), on pairs of networks (to sample distances)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.attribution.function_space_distance.program import (
    AFFINE,
    ALIAS,
    FIXED,
    GATES,
    Affine,
    Node,
    apply,
    bias_of,
    windows,
)
from glasshouse.attribution.function_space_distance.smooth import FUNCTIONS, derivative

Gates = Mapping[str, Mapping[str, Tensor]]
"""Per gated step: `mu` [K, k] (ReLU), `route` [K, k_out, places] (max-pool), or gains (see `measure`)."""
Shapes = Mapping[str, Sequence[int]]
Watch = Callable[[Node, list[Tensor]], None]
Probe = Callable[[Node, Tensor, Tensor], Tensor]
"""Sees the input and output of every step with weights, and returns the output to go on with."""


def run(
    nodes: Sequence[Node], weights: Mapping[str, Affine], x: Tensor, shapes: dict[str, Sequence[int]],
    watch: Watch | None = None, probe: Probe | None = None,
) -> Tensor:  # fmt: skip
    """The output [n, k] on inputs x [n, ...]; fills `shapes`, and shows `watch` what each gate reads."""
    values: dict[str, Tensor] = {}
    for node in nodes:
        if node.kind == "input":
            shapes[node.name] = tuple(x.shape[1:])
            values[node.name] = x.flatten(1)
            continue
        parents = [values[p] for p in node.parents]
        if watch is not None and node.kind in GATES:
            watch(node, parents)
        out = _step(node, parents, weights, shapes)
        values[node.name] = probe(node, parents[0], out) if probe and node.kind in AFFINE else out
    return values[nodes[-1].name]


def _step(node: Node, parents: list[Tensor], weights: Mapping[str, Affine], shapes: dict) -> Tensor:
    x, shape = parents[0], shapes[node.parents[0]]
    if node.kind in AFFINE or node.kind in FIXED:
        A, b = weights.get(node.name, (None, None))
        found = apply(node, A, x, shape)
        shapes[node.name] = out_shape(node, A, shape, found.shape[-1])
        return found + bias_of(node, b, shapes[node.name])
    shapes[node.name] = (x.shape[-1],) if node.kind == "flatten" else tuple(shape)
    if node.kind in ALIAS:
        return x
    if node.kind == "relu":
        return torch.relu(x)
    if node.kind == "smooth":
        return FUNCTIONS[node.options["function"]](x)
    if node.kind == "gated":
        return FUNCTIONS[node.options["function"]](x) * parents[1]
    if node.kind == "add":
        return x + parents[1]
    found = pooled(node, x, shape)[0]
    shapes[node.name] = pool_shape(node, shape)
    return found


def out_shape(node: Node, A: Tensor | None, shape: Sequence[int], width: int) -> tuple[int, ...]:
    """The shape behind a step that gave `width` numbers."""
    if node.kind in ("batchnorm", "gain"):
        return tuple(shape)
    if len(shape) == 1 or node.kind in ("linear", "chunk"):
        return (width,)
    o, size = node.options, []
    if node.kind == "avgpool" and not o["kernel"]:
        return (shape[0], 1, 1)
    kernel = tuple(A.shape[2:]) if A is not None else o["kernel"]
    for k in range(2):
        reach = o.get("dilation", (1, 1))[k] * (kernel[k] - 1) + 1
        size.append((shape[k + 1] + 2 * o["padding"][k] - reach) // o["stride"][k] + 1)
    return (int(A.shape[0]) if A is not None else shape[0], *size)


def pool_shape(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape behind a max-pool."""
    o = node.options
    sizes = ((shape[k + 1] + 2 * o["padding"][k] - o["kernel"][k]) // o["stride"][k] + 1 for k in range(2))
    return (shape[0], *sizes)


def pooled(node: Node, x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The maxima [n, k_out] of each window and the place in the window they came from [n, k_out]."""
    at, inside = windows(node, shape, x.device)
    found = x[..., at].masked_fill(~inside, -torch.inf)
    return tuple(found.max(-1))  # type: ignore[return-value]


# -- what gates do, measured ---------------------------------------------------------------------------------


class GateSum:
    """Sums over rows, per class, of what every gate does: one number a unit for ReLU, some for others."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.count = torch.zeros(classes, dtype=torch.float64)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._hot = torch.zeros(0)

    def rows(self, classes: Tensor) -> None:
        """The class of each row of the next batch."""
        self._hot = torch.nn.functional.one_hot(classes.cpu(), self.classes).double()
        self.count += self._hot.sum(0)

    def watch(self, shapes: Shapes) -> Watch:
        """A watcher for `run`."""

        def note(node: Node, parents: list[Tensor]) -> None:
            for name, value in measure(node, parents, shapes).items():
                kept = self._sums.setdefault(node.name, {})
                hot = self._hot.to(value.device)
                part = torch.einsum("nk,n...->k...", hot, value.double()).cpu()
                kept[name] = kept[name] + part if name in kept else part

        return note

    def finish(self) -> dict[str, dict[str, Tensor]]:
        """Means per class, float32."""
        return {
            node: {
                name: (total / self.count.reshape(-1, *[1] * (total.ndim - 1))).float()
                for name, total in parts.items()
            }
            for node, parts in self._sums.items()
        }


def measure(node: Node, parents: list[Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Per row what is averaged into a gate's numbers.

    ReLU: `mu`, whether the pre-activation is >= 0. Max-pool: `route`, the place that wins. Smooth functions
    and products: the mean output `mean`, and mean and second moment of the derivatives in each input.
    """
    s = parents[0]
    if node.kind == "relu":
        return {"mu": (s >= 0).to(s.dtype)}
    if node.kind == "maxpool":
        place = pooled(node, s, shapes[node.parents[0]])[1]
        return {"route": torch.nn.functional.one_hot(place, _places(node)).to(s.dtype)}
    function = node.options["function"]
    value, slope = FUNCTIONS[function](s), derivative(function, s)
    if node.kind == "smooth":
        return {"mean": value, "mu": slope, "nu": slope.square()}
    u = parents[1]
    q, p = slope * u, value
    return {"mean": value * u, "mu0": q, "mu1": p, "nu00": q * q, "nu01": q * p, "nu11": p * p}


def gains(node: Node, stats: Mapping[str, Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Mean gain [K, k] in each input, and their second moments [inputs][inputs] of [K, k]."""
    if node.kind == "relu":
        return [stats["mu"]], [[stats["mu"]]]
    if node.kind == "smooth":
        return [stats["mu"]], [[stats["nu"]]]
    return [stats["mu0"], stats["mu1"]], [
        [stats["nu00"], stats["nu01"]],
        [stats["nu01"], stats["nu11"]],
    ]


def _places(node: Node) -> int:
    kernel = node.options["kernel"]
    return int(kernel[0] * kernel[1])


# -- pairs of networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """How gates act on a pair (a, d): drawn (`stochastic`), or as the reference's own input decides.

    `centres` are the mean pre-activations of the reference [K, k] that smooth gains turn around.
    """

    gates: Gates
    centres: Mapping[str, Tensor]
    classes: Tensor
    generator: torch.Generator | None


def run_pair(
    nodes: Sequence[Node], base: Mapping[str, Affine], moved: Mapping[str, Affine], x: Tensor, shapes: Shapes,
    pairing: Pairing, probe: Probe | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs of the reference [n, k] and their change [n, k], gates shared by both networks."""
    values: dict[str, tuple[Tensor, Tensor]] = {}
    for node in nodes:
        if node.kind == "input":
            values[node.name] = x.flatten(1), torch.zeros_like(x.flatten(1))
            continue
        pairs = [values[p] for p in node.parents]
        a, d = pairs[0]
        shape = shapes[node.parents[0]]
        if node.kind in AFFINE:
            (A0, b0), (A1, b1) = base[node.name], moved[node.name]
            after = shapes[node.name]
            bias0, bias1 = bias_of(node, b0, after), bias_of(node, b1, after)
            change = apply(node, A1 - A0, a, shape) + apply(node, A1, d, shape) + (bias1 - bias0)
            out = apply(node, A0, a, shape) + bias0
            values[node.name] = (probe(node, a, out) if probe else out), change
        elif node.kind in FIXED:
            values[node.name] = apply(node, None, a, shape), apply(node, None, d, shape)
        elif node.kind in ALIAS:
            values[node.name] = a, d
        elif node.kind == "add":
            values[node.name] = a + pairs[1][0], d + pairs[1][1]
        elif node.kind == "maxpool":
            values[node.name] = _routed(node, a, d, shape, pairing)
        elif pairing.generator is None:
            values[node.name] = _followed(node, pairs)
        else:
            values[node.name] = _drawn(node, pairs, pairing)
    return values[nodes[-1].name]


def _followed(node: Node, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The reference's true activation; the change goes through its derivative."""
    s, ds = pairs[0]
    if node.kind == "relu":
        return torch.relu(s), ds * (s > 0)
    function = node.options["function"]
    value, slope = FUNCTIONS[function](s), derivative(function, s)
    if node.kind == "smooth":
        return value, slope * ds
    u, du = pairs[1]
    return value * u, slope * u * ds + value * du


def _drawn(node: Node, pairs: list[tuple[Tensor, Tensor]], pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Gates drawn from their moments: Bernoulli for ReLU, Gaussian gains for the others."""
    stats, at = pairing.gates[node.name], pairing.classes
    first = pairs[0][0]
    if node.kind == "relu":
        mu = stats["mu"].to(first)[at]
        uniform = torch.rand(mu.shape, generator=pairing.generator).to(first)
        z = (uniform < mu).to(first)
        return z * first, z * pairs[0][1]
    means, seconds = gains(node, stats)
    value, change = stats["mean"].to(first)[at], torch.zeros_like(first)
    noise = [torch.randn(first.shape, generator=pairing.generator).to(first) for _ in means]
    drawn: list[Tensor] = []
    # A Cholesky factor of each unit's covariance of gains, written out for one or two of them.
    rows: list[list[Tensor]] = []
    for i, mean in enumerate(means):
        row: list[Tensor] = []
        for j in range(i + 1):
            c = (seconds[i][j] - mean * means[j]).to(first)
            for k in range(j):
                c = c - row[k] * rows[j][k] if i != j else c - row[k].square()
            row.append(c.clamp_min(0).sqrt() if i == j else c / rows[j][j].clamp_min(1e-12))
        rows.append(row)
        gain = mean.to(first)[at] + sum(row[j][at] * noise[j] for j in range(i + 1))
        drawn.append(gain)
    for gain, parent, (s, ds) in zip(drawn, node.parents, pairs, strict=True):
        value = value + gain * (s - pairing.centres[parent].to(first)[at])
        change = change + gain * ds
    return value, change


def _routed(
    node: Node, a: Tensor, d: Tensor, shape: Sequence[int], pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """One place of each window for both networks: the reference's maximum, or a draw from its frequencies."""
    at, _ = windows(node, shape, a.device)
    if pairing.generator is None:
        place = pooled(node, a, shape)[1]
    else:
        route = pairing.gates[node.name]["route"].to(a)[pairing.classes]
        uniform = torch.rand(route.shape[:-1], generator=pairing.generator).to(a)
        place = (uniform.unsqueeze(-1) >= route.cumsum(-1)).sum(-1).clamp_max(route.shape[-1] - 1)
    source = at.expand(*place.shape, -1).gather(-1, place.unsqueeze(-1)).squeeze(-1)
    return a.gather(-1, source), d.gather(-1, source)


def mean_pass(
    nodes: Sequence[Node], base: Mapping[str, Affine], gates: Gates, shapes: Shapes, mean: Tensor
) -> dict[str, Tensor]:
    """The mean of every value of the reference [K, k] under the sketch, from the input's mean [K, d]."""
    means: dict[str, Tensor] = {}
    for node in nodes:
        if node.kind == "input":
            means[node.name] = mean
            continue
        m, shape = means[node.parents[0]], shapes[node.parents[0]]
        stats = gates.get(node.name, {})
        if node.kind in AFFINE or node.kind in FIXED:
            A, b = base.get(node.name, (None, None))
            means[node.name] = apply(node, A, m, shape) + bias_of(node, b, shapes[node.name])
        elif node.kind == "add":
            means[node.name] = m + means[node.parents[1]]
        elif node.kind == "relu":
            means[node.name] = stats["mu"].to(m) * m
        elif node.kind == "maxpool":
            at, _ = windows(node, shape, m.device)
            means[node.name] = (m[:, at] * stats["route"].to(m)).sum(-1)
        else:
            means[node.name] = stats["mean"].to(m) if stats else m
    return means
