"""Passes over data shards: covariances, eigenvalue correction. Pure functions of (job, shard).

They return sums, so that shards add up in any split; everything is accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glasshouse.attribution.stages.contract import Scratch, outer
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.steps import Job, Step, steps
from glasshouse.subjects.capture import Pair

Tensors = dict[str, Tensor]

CACHE_FLOATS = 1 << 18
"""Numbers of one layer gradient that stay in a core's cache; larger blocks go through memory."""

PANEL = 128
"""Rows of the upper triangle of `x^T x` computed at once: fewer waste less below it, more run faster."""


def covariance_shard(job: Job, indices: Sequence[int]) -> Tensors:
    """`A/<module>` and `S/<module>`: upper triangles of sums of a a^T and g g^T; `count/<module>` tokens."""
    grams: dict[str, _Grams] = {}
    for step in steps(job, indices):
        for name, pair in step.pairs.items():
            grams.setdefault(name, _Grams(pair)).add(name, step)
    total: Tensors = {}
    for name, found in grams.items():
        total[f"A/{name}"], total[f"S/{name}"] = found.inputs(), found.S
        total[f"count/{name}"] = torch.tensor([found.count], dtype=torch.float64)
    return total


def lambda_shard(job: Job, factors: dict[str, Factor], indices: Sequence[int]) -> Tensors:
    """`Lambda/<module>`: sum over rows of the squared layer gradient in the factor's basis."""
    total: Tensors = {}
    scratch = Scratch()
    for step in steps(job, indices):
        for name, pair in step.pairs.items():
            if name not in total:
                total[name] = pair.a.new_zeros(pair.g.shape[2], pair.in_features)
            _add_squares(total[name], factors[name], pair, scratch)
    return {f"Lambda/{name}": value for name, value in total.items()}


def layer_gradients(job: Job, indices: Sequence[int], factors: dict[str, Factor] | None = None) -> Tensors:
    """Per-row layer gradients `[len(indices), out, in]` of each module, in the factors' basis if given.

    For queries and small data only.
    """
    place = {row: k for k, row in enumerate(indices)}
    found: Tensors = {}
    for step in steps(job, indices):
        rows = torch.tensor([place[i] for i in step.at])
        for name, pair in step.pairs.items():
            G = outer(pair) if factors is None else rotated_outer(factors[name], pair)
            if name not in found:
                found[name] = G.new_empty(len(indices), *G.shape[1:])
            found[name][rows.to(G.device)] = G
    return found


def rotated_outer(factor: Factor, pair: Pair) -> Tensor:
    """`Qs^T G_n Qa`, [B, out, in]: rotates tokens or the layer gradient, whichever is cheaper."""
    return factor.rotate(outer(pair)) if _late(pair) else outer(factor.rotate_pair(pair))


class _Grams:
    """Running sums of one module. The column of ones is summed apart, so that products stay aligned."""

    def __init__(self, pair: Pair) -> None:
        i, o = pair.a.shape[2], pair.g.shape[2]
        self.A, self.S = pair.a.new_zeros(i, i), pair.g.new_zeros(o, o)
        self.sums = pair.a.new_zeros(i) if pair.ones else None
        self.count = 0.0

    def add(self, name: str, step: Step) -> None:
        a, g = (part.flatten(0, 1) for part in (step.pairs[name].a, step.pairs[name].g))
        gram_(self.A, a)
        gram_(self.S, g)
        if self.sums is not None:
            self.sums += a.sum(0)
        self.count += step.tokens(name)

    def inputs(self) -> Tensor:
        """The upper triangle for inputs with their ones: `[[A, sums], [., count]]`."""
        if self.sums is None:
            return self.A
        found = torch.nn.functional.pad(self.A, (0, 1, 0, 1))
        found[:-1, -1], found[-1, -1] = self.sums, self.count
        return found


def gram_(total: Tensor, x: Tensor) -> None:
    """Add the upper triangle of `x^T x` to `total`; the lower one is left undefined."""
    for k in range(0, x.shape[1], PANEL):
        total[k : k + PANEL, k:].addmm_(x[:, k : k + PANEL].T, x[:, k:])


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is given."""
    return torch.triu(upper) + torch.triu(upper, 1).T


def _add_squares(total: Tensor, factor: Factor, pair: Pair, scratch: Scratch) -> None:
    late = pair.a.shape[1] > 1 and _late(pair)
    pair = pair if late else factor.rotate_pair(pair)
    B, T, i = pair.a.shape
    o = pair.g.shape[2]
    if T == 1:
        squares = pair.g[:, 0].square()
        total[:, :i].addmm_(squares.T, pair.a[:, 0].square())
        if pair.ones:
            total[:, i] += squares.sum(0)
        return
    if late or pair.ones:
        for start in range(0, B, size := max(1, CACHE_FLOATS // (i * o))):
            at = slice(start, start + size)
            G = outer(Pair(pair.a[at], pair.g[at], pair.ones))
            total.add_((factor.rotate(G) if late else G).square_().sum(0))
        return
    if 2 * i * o > CACHE_FLOATS:
        G = scratch.take(pair.a, o, i)
        for a, g in zip(pair.a, pair.g, strict=True):
            torch.mm(g.T, a, out=G)
            total.addcmul_(G, G)
        return
    for start in range(0, B, size := CACHE_FLOATS // (i * o)):
        g = pair.g[start : start + size]
        G = torch.bmm(g.mT, pair.a[start : start + size], out=scratch.take(g, len(g), o, i))
        total.add_(G.square_().sum(0))


def _late(pair: Pair) -> bool:
    """Rotating tokens costs T (i^2 + o^2) a row, rotating the layer gradient i o (i + o)."""
    T, i, o = pair.a.shape[1], pair.in_features, pair.g.shape[2]
    return T * (i * i + o * o) > i * o * (i + o)
