"""Passes over data shards: covariances, eigenvalue correction. Pure functions of (job, shard).

They return sums, so that shards add up in any split; everything is accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glasshouse.attribution.ekfac.curvature import Factor
from glasshouse.attribution.ekfac.fused import fused_activations
from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.units import Batch, Units, cost_batches
from glasshouse.corpora.rows import TokenBatch
from glasshouse.subjects.capture import Capture, Pair

Tensors = dict[str, Tensor]

CACHE_FLOATS = 1 << 18
"""Numbers of one layer gradient that stay in a core's cache; larger blocks go through memory."""


@dataclass(frozen=True)
class Job:
    """What a pass differentiates: `loss` over `units`, in batches of similar length."""

    model: nn.Module
    names: tuple[str, ...]
    units: Units
    loss: Objective | Measurement
    sampled: bool
    seed: int
    batch_tokens: int
    batch_rows: int

    def batches(self, indices: Sequence[int]) -> list[list[int]]:
        """Row indices of each batch."""
        return cost_batches(self.units.sizes, indices, self.batch_tokens, self.batch_rows)


@dataclass(frozen=True)
class Step:
    """One backward pass: rows `at`, their batch, and float32 pairs with zeros at padding."""

    at: list[int]
    batch: Batch
    pairs: dict[str, Pair]
    valid: Tensor | None  # [B, T] bool, None when nothing is padded


def steps(job: Job, indices: Sequence[int]) -> Iterator[Step]:
    """The backward passes of a shard."""
    device = next(job.model.parameters()).device
    with fused_activations(job.model), Capture(job.model, job.names) as capture:
        for at in job.batches(indices):
            batch = job.units.batch(at).to(device)
            pairs = capture.gradients(_summed_loss(job, batch))
            valid = _valid(batch)
            yield Step(at, batch, {name: _clean(pair, valid) for name, pair in pairs.items()}, valid)


def covariance_shard(job: Job, indices: Sequence[int]) -> Tensors:
    """`A/<module>` and `S/<module>`: upper triangles of sums of a a^T and g g^T; `count/<module>` tokens."""
    total: Tensors = {}
    for step in steps(job, indices):
        for name, pair in step.pairs.items():
            a, g = pair.a.flatten(0, 1), pair.g.flatten(0, 1)
            if f"A/{name}" not in total:
                total[f"A/{name}"] = a.new_zeros(a.shape[1], a.shape[1])
                total[f"S/{name}"] = g.new_zeros(g.shape[1], g.shape[1])
                total[f"count/{name}"] = torch.zeros(1, dtype=torch.float64)
            gram_(total[f"A/{name}"], a)
            gram_(total[f"S/{name}"], g)
            total[f"count/{name}"] += _tokens(pair, step.valid)
    return total


def lambda_shard(job: Job, factors: dict[str, Factor], indices: Sequence[int]) -> Tensors:
    """`Lambda/<module>`: sum over rows of the squared layer gradient in the factor's basis."""
    total: Tensors = {}
    for step in steps(job, indices):
        for name, pair in step.pairs.items():
            if name not in total:
                total[name] = pair.a.new_zeros(pair.g.shape[2], pair.a.shape[2])
            _add_squares(total[name], factors[name], pair)
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


def outer(pair: Pair) -> Tensor:
    """`G_n = sum_t g_t a_t^T`, [B, out, in]."""
    return torch.bmm(pair.g.transpose(1, 2), pair.a)


def rotated_outer(factor: Factor, pair: Pair) -> Tensor:
    """`Qs^T G_n Qa`, [B, out, in]: rotates tokens or the layer gradient, whichever is cheaper."""
    if _late(pair):
        return factor.rotate(outer(pair))
    return outer(Pair(*factor.rotate_pair(pair.a, pair.g)))


def gram_(total: Tensor, x: Tensor) -> None:
    """Add the upper triangle of `x^T x` to `total`; the lower one is left undefined.

    Halving large matrices skips most of the lower triangle: 5/8 of the multiplications at two levels.
    """
    d = x.shape[1]
    if d < 384:
        total.addmm_(x.T, x)
        return
    h = (d // 2 + 31) // 32 * 32
    gram_(total[:h, :h], x[:, :h])
    gram_(total[h:, h:], x[:, h:])
    total[:h, h:].addmm_(x[:, :h].T, x[:, h:])


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is given."""
    return torch.triu(upper) + torch.triu(upper, 1).T


def _add_squares(total: Tensor, factor: Factor, pair: Pair) -> None:
    B, T, i = pair.a.shape
    o = pair.g.shape[2]
    if T == 1:
        a, g = factor.rotate_pair(pair.a, pair.g)
        total.addmm_(g[:, 0].square().T, a[:, 0].square())
        return
    late = _late(pair)
    a, g = (pair.a, pair.g) if late else factor.rotate_pair(pair.a, pair.g)
    size = max(1, CACHE_FLOATS // (i * o))
    for start in range(0, B, size):
        G = torch.bmm(g[start : start + size].transpose(1, 2), a[start : start + size])
        G = factor.rotate(G) if late else G
        if len(G) == 1:
            total.addcmul_(G[0], G[0])
        else:
            total.add_(G.square_().sum(0))


def _late(pair: Pair) -> bool:
    """Rotating tokens costs T (i^2 + o^2) a row, rotating the layer gradient i o (i + o)."""
    T, i, o = pair.a.shape[1], pair.a.shape[2], pair.g.shape[2]
    return T * (i * i + o * o) > i * o * (i + o)


def _summed_loss(job: Job, batch: Batch) -> Tensor:
    if not job.sampled:
        return job.loss(job.model, batch).sum()
    assert isinstance(job.loss, Objective)
    outputs = job.loss.outputs(job.model, batch)
    return job.loss.loss(outputs, job.loss.draw(outputs, batch, job.seed)).sum()


def _valid(batch: Batch) -> Tensor | None:
    if not isinstance(batch, TokenBatch) or bool(batch.attention_mask.all()):
        return None
    return batch.attention_mask.bool()


def _clean(pair: Pair, valid: Tensor | None) -> Pair:
    """Float32, with zeros at padding; modules without the token axis (a pooled head) are left alone."""
    a, g = pair.a.float(), pair.g.float()
    if valid is None or a.shape[1] % valid.shape[1]:
        return Pair(a, g)
    hidden = ~valid.repeat(1, a.shape[1] // valid.shape[1]).unsqueeze(-1)
    # masked_fill and not a product: attention may leave NaN in rows of pure padding.
    return Pair(a.masked_fill(hidden, 0), g.masked_fill(hidden, 0))


def _tokens(pair: Pair, valid: Tensor | None) -> float:
    B, T, _ = pair.a.shape
    if valid is None or T % valid.shape[1]:
        return float(B * T)
    return float(valid.sum()) * (T // valid.shape[1])
