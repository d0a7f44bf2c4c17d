"""`K(x) = J F^-1 J^T` of every point: the inner products of its logits' gradients under the inverse Fisher.

The label enters a gradient only through `p - e_k`, so that `g_k = J^T (p - e_k) / T` and the norms of all
labels at all temperatures follow from K [C, C] (see `results`). One forward pass and C vector-Jacobian
products give the pairs (a, g_c); with one token a row the layer gradients are never formed:

    K_cd = sum_o D_o (g_c Qs)_o (g_d Qs)_o ,  D_o = sum_i (a Qa)_i^2 / (Lambda_oi + damping)

With more tokens (convolutions, sequences, modules called twice) the sum over tokens comes before the square,
so the rotated layer gradients of some rows are formed, `CHUNK_FLOATS` numbers at a time, module by module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.stages.contract import CHUNK_FLOATS
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.fused import fused_activations
from glasshouse.attribution.stages.passes import rotated_outer
from glasshouse.attribution.stages.steps import Job, _clean, _valid, steps
from glasshouse.attribution.units import Batch
from glasshouse.subjects.capture import Capture, Pair

Tensors = dict[str, Tensor]
Damping = float | str


def gram_shard(job: Job, factors: dict[str, Factor], damping: Damping, indices: Sequence[int]) -> Tensors:
    """Of the points `indices`: `K` [n, k, k], `logits` [n, k], `labels` [n, k] (which label each column is).

    Besides, over all C labels: `lse` [n] = logsumexp(z), and with one row a point `own` [n], the logit of the
    given label.
    """
    inverses = {name: factor.inverse(damping) for name, factor in factors.items()}
    place = {row: at for at, row in enumerate(indices)}
    found: Tensors = {}
    walk = _answers if job.loss.fold > 1 else _classes  # type: ignore[union-attr]
    for at, part in walk(job, factors, inverses, indices):
        rows = torch.tensor([place[i] for i in at])
        for name, value in part.items():
            if name not in found:
                found[name] = torch.empty(len(indices), *value.shape[1:], dtype=value.dtype)
            found[name][rows] = value.detach().cpu()
    return found


def lambda_shard(job: Job, factors: dict[str, Factor], indices: Sequence[int]) -> Tensors:
    """`Lambda/<module>` where several rows make one point: their layer gradients add up before the square."""
    fold: int = job.loss.fold  # type: ignore[union-attr]
    total: Tensors = {}
    for step in steps(job, indices):
        for name, pair in step.pairs.items():
            for part in _rows_of(pair, fold, 1):
                G = rotated_outer(factors[name], part).unflatten(0, (-1, fold)).sum(1)
                squares = G.square().sum(0)
                total[name] = total[name] + squares if name in total else squares
    return {f"Lambda/{name}": value for name, value in total.items()}


def _classes(job: Job, factors: dict[str, Factor], inverses: Any, indices: Sequence[int]) -> Any:
    """One forward pass a batch, one backward pass for each label."""
    head: Any = job.loss
    device = next(job.model.parameters()).device
    with fused_activations(job.model), Capture(job.model, job.names, ones=False) as capture:
        for at in job.batches(indices):
            batch = job.units.batch(at).to(device)
            z = head.logits(job.model, batch)
            kept = head.kept(z)
            chosen = z if kept is None else z.gather(1, kept)
            a, g = _jacobian(capture, chosen, _valid(batch))
            K = sum(gram(factors[name], inverses[name], a[name], g[name]) for name in job.names)
            labels = torch.arange(z.shape[1]).expand(len(at), -1) if kept is None else kept
            yield at, {"K": K, "logits": chosen, "labels": labels, **_whole(head, z, batch)}


def _jacobian(
    capture: Capture, z: Tensor, valid: Tensor | None
) -> tuple[dict[str, Pair], dict[str, list[Tensor]]]:
    """Inputs of every module, and the gradients of each column of z [n, C] at its output."""
    a: dict[str, Pair] = {}
    g: dict[str, list[Tensor]] = {}
    C = z.shape[1]
    for c in range(C):
        # Rows do not meet, so the column's sum has each row's own gradient.
        found = capture.gradients(z[:, c].sum(), retain_graph=c < C - 1)
        for name, pair in found.items():
            clean = _clean(pair, valid)
            a.setdefault(name, clean)
            g.setdefault(name, []).append(clean.g)
    return a, g


def gram(factor: Factor, inverse: Tensor | None, pair: Pair, g: Sequence[Tensor]) -> Tensor:
    """`K` [B, C, C] of one module: inputs in `pair` [B, T, in], each label's gradients `g[c]` [B, T, out]."""
    B, T, _ = pair.a.shape
    stacked = torch.stack(list(g), 1)  # [B, C, T, out]
    o, i = stacked.shape[3], pair.in_features
    if inverse is None:
        inverse = stacked.new_ones(o, i)
    if T > 1:
        return _formed(factor, inverse, pair, stacked)
    a = factor.rotate_pair(Pair(pair.a, stacked[:, 0], pair.ones)).a[:, 0]
    if a.shape[1] < i:  # no basis: the ones were not stored and not rotated in
        a = torch.cat([a, a.new_ones(B, 1)], 1)
    rotated = stacked[:, :, 0] if factor.Qs is None else stacked[:, :, 0] @ factor.Qs
    D = a.square() @ inverse.T  # [B, out]
    return (rotated * D.unsqueeze(1)) @ rotated.mT


def _formed(factor: Factor, inverse: Tensor, pair: Pair, g: Tensor) -> Tensor:
    """The same for rows of several tokens, some rows at a time."""
    B, C, _, o = g.shape
    out = g.new_empty(B, C, C)
    size = max(1, CHUNK_FLOATS // (C * o * pair.in_features))
    root = inverse.sqrt()
    for start in range(0, B, size):
        at = slice(start, start + size)
        n = len(g[at])
        a = pair.a[at].unsqueeze(1).expand(n, C, -1, -1).flatten(0, 1)
        G = rotated_outer(factor, Pair(a, g[at].flatten(0, 1), pair.ones))
        scaled = (G * root).flatten(1).view(n, C, -1)
        out[at] = scaled @ scaled.mT
    return out


def _answers(job: Job, factors: dict[str, Factor], inverses: Any, indices: Sequence[int]) -> Any:
    """Several rows make one point: one backward pass of the sum of all their log-probabilities."""
    head: Any = job.loss
    values: dict[int, Tensor] = {}

    def told(model: nn.Module, batch: Batch) -> Tensor:
        z = head.logits(model, batch)
        values[0] = z.detach()
        return z.sum(1)

    for step in steps(replace(job, loss=told, sampled=False), indices):
        z = values[0]
        K = z.new_zeros(len(z), head.fold, head.fold)
        for name, pair in step.pairs.items():
            inverse = inverses[name]
            done = 0
            for part in _rows_of(pair, head.fold, 1):
                G = rotated_outer(factors[name], part)
                scaled = (G if inverse is None else G * inverse.sqrt()).flatten(1)
                scaled = scaled.unflatten(0, (-1, head.fold))
                K[done : done + len(scaled)] += scaled @ scaled.mT
                done += len(scaled)
        labels = torch.arange(head.fold).expand(len(z), -1)
        yield step.at, {"K": K, "logits": z, "labels": labels, "lse": z.logsumexp(1)}


def _rows_of(pair: Pair, fold: int, least: int) -> list[Pair]:
    """The rows of whole points, as many at a time as `CHUNK_FLOATS` allows."""
    size = fold * max(least, CHUNK_FLOATS // (fold * pair.g.shape[2] * pair.in_features))
    return [Pair(pair.a[k : k + size], pair.g[k : k + size], pair.ones) for k in range(0, len(pair.g), size)]


def _whole(head: Any, z: Tensor, batch: Batch) -> Tensors:
    given = head.given(batch).clamp(0, z.shape[1] - 1)
    return {"lse": z.logsumexp(1), "own": z.gather(1, given[:, None])[:, 0]}
