"""Query gradients, their aggregation and preconditioning, and the pass over training rows.

Only the queries, which are few, are preconditioned; training gradients stay pairs (a, g).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from glasshouse.attribution.stages.contract import (
    Query,
    Scratch,
    low_rank,
    row_scores,
    squared_norms,
    token_scores,
)
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.passes import Tensors, layer_gradients
from glasshouse.attribution.stages.steps import Job, steps
from glasshouse.corpora.rows import TokenBatch
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import derive
from glasshouse.subjects.capture import Pair

QueryAgg = Literal["each", "mean", "unit_mean", "contrast"]
RowNorm = Literal["none", "grad", "self"]
Unit = Literal["row", "token"]


@dataclass(frozen=True)
class Prepared:
    """Preconditioned queries by module; those of `rotated` modules live in the eigenbasis."""

    ids: tuple[str, ...]
    modules: dict[str, Query]
    rotated: frozenset[str] = frozenset()
    norms: tuple[float, ...] = ()
    """Length of each query's own gradient over all modules, before preconditioning."""

    @property
    def floats(self) -> int:
        """Numbers stored over all modules."""
        return sum(query.floats for query in self.modules.values())

    def at(self, q: int) -> Prepared:
        """One query alone."""
        parts = {name: query.at(q) for name, query in self.modules.items()}
        return Prepared((self.ids[q],), parts, self.rotated, self.norms[q : q + 1])


@dataclass(frozen=True)
class Plan:
    """How rows are scored."""

    damping: float | str
    row_norm: RowNorm = "none"
    unit: Unit = "row"
    per_module: bool = False


def check_choice(name: str, value: object, allowed: object) -> None:
    """Raise InputError unless `value` is one of a Literal's values."""
    if value not in get_args(allowed):
        raise InputError(f"{name} is {value!r}", fix=f"use one of {', '.join(map(repr, get_args(allowed)))}")


def aggregate(raw: Tensors, ids: Sequence[str], how: QueryAgg) -> tuple[Tensors, tuple[str, ...]]:
    """Combine raw query gradients [Q, out, in]; `unit_mean` gives each the same length over all modules.

    One firing prompt may have two thousand times the gradient of the others, so that a plain mean *is* that
    prompt. `contrast` takes the first half minus the second half of the queries (see `EKFAC.score`).
    """
    if how == "each":
        return raw, tuple(ids)
    if how == "mean":
        return {k: v.mean(0, keepdim=True) for k, v in raw.items()}, ("mean",)
    if how == "contrast":
        half = len(ids) // 2
        raw = {k: v[:half] - v[half:] for k, v in raw.items()}
    norms = sum(v.flatten(1).double().square().sum(1) for v in raw.values())
    assert isinstance(norms, Tensor)
    if float(norms.min()) == 0:
        zero = ids[int(norms.argmin())]
        raise NumericalError("its gradient is exactly zero", where=f"query {zero!r}", fix="leave it out")
    scale = norms.rsqrt().float()[:, None, None]
    return {k: (v * scale).mean(0, keepdim=True) for k, v in raw.items()}, (how,)


def prepare(
    job: Job, factors: dict[str, Factor], plan: Plan, how: QueryAgg, rank: int | None, svd: str, tokens: int
) -> Prepared:
    """Gradients of the measurement `job.loss` for every query, aggregated, preconditioned, made low rank.

    Where `tokens` training tokens are cheaper to rotate than the queries are to rotate back (short data, or
    row_norm "self"), queries stay in the eigenbasis.
    """
    raw, ids = aggregate(layer_gradients(job, range(len(job.units)), factors), job.units.ids, how)
    squares = sum(V.flatten(1).double().square().sum(1) for V in raw.values())
    assert isinstance(squares, Tensor)
    modules, rotated = {}, set()
    for k, (name, V) in enumerate(raw.items()):
        factor, (Q, o, i) = factors[name], V.shape
        inverse = factor.inverse(plan.damping)
        V = V if inverse is None else V.mul_(inverse)
        if plan.row_norm == "self" or tokens * (i * i + o * o) < Q * o * i * (i + o):
            rotated.add(name)
        else:
            V = factor.unrotate(V)
        query = low_rank(V, rank, method=svd, seed=derive(job.seed, "svd", k))
        # Rotated training pairs carry their ones, all others leave them out.
        biased = getattr(job.model.get_submodule(name), "bias", None) is not None
        modules[name] = query.parted(ones=biased and not (name in rotated and factor.Qa is not None))
    return Prepared(ids, modules, frozenset(rotated), tuple(squares.sqrt().tolist()))


def score_shard(
    job: Job, queries: Prepared, factors: dict[str, Factor], plan: Plan, indices: Sequence[int]
) -> Tensors:
    """Scores of the rows `indices` (a contiguous range): `scores` [Q, n], or [Q, tokens] for unit "token".

    Positive for rows whose gradient of the *negative* loss agrees with the query; not yet divided by N.
    """
    lengths = job.units.sizes
    sizes = [lengths[i] for i in indices] if plan.unit == "token" else [1] * len(indices)
    start = dict(zip(indices, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
    shape = (len(queries.ids), sum(sizes))
    found: Tensors = {"scores": torch.zeros(shape)}
    weights = {n: factors[n].inverse(plan.damping) for n in job.names} if plan.row_norm == "self" else {}
    norms, scratch = torch.zeros(len(indices), dtype=torch.float64), Scratch()
    for step in steps(job, indices):
        place, where = _columns(step.at, start, step.batch, plan.unit)
        rows = torch.tensor([i - indices[0] for i in step.at])
        for name, pair in step.pairs.items():
            if name in queries.rotated:
                pair = factors[name].rotate_pair(pair)
            if plan.row_norm != "none":
                norms[rows] += squared_norms(pair, weights.get(name), scratch).double().cpu()
            part = _scores(queries.modules[name], pair, plan.unit, where, step.batch, scratch).neg_().cpu()
            found["scores"][:, place] += part
            if plan.per_module:
                found.setdefault(f"module/{name}", torch.zeros(shape))[:, place] += part
    if plan.row_norm != "none":
        found["norms"] = norms.sqrt().float().repeat_interleave(torch.tensor(sizes))
    return found


def self_shard(job: Job, factors: dict[str, Factor], plan: Plan, indices: Sequence[int]) -> Tensors:
    """`self` [n]: `grad L^T (G + lambda)^-1 grad L` of each row."""
    total, scratch = torch.zeros(len(indices), dtype=torch.float64), Scratch()
    weights = {n: factors[n].inverse(plan.damping) for n in job.names}
    for step in steps(job, indices):
        rows = torch.tensor([i - indices[0] for i in step.at])
        for name, pair in step.pairs.items():
            rotated = factors[name].rotate_pair(pair)
            total[rows] += squared_norms(rotated, weights[name], scratch).double().cpu()
    return {"self": total.float()}


def _scores(
    query: Query, pair: Pair, unit: Unit, where: Tensor | None, batch: object, scratch: Scratch
) -> Tensor:
    if unit == "row":
        return row_scores(query, pair, scratch)
    found = token_scores(query, pair)  # (Q, B, k*T)
    if not isinstance(batch, TokenBatch):
        return found.sum(2)
    tokens = batch.input_ids.shape[1]
    if found.shape[2] % tokens:
        raise InputError("a module without the token axis has no token scores", fix='use unit="row"')
    assert where is not None
    found = found.unflatten(2, (-1, tokens)).sum(2)  # calls of a shared module add up
    return found[:, where]


def _columns(at: list[int], start: dict[int, int], batch: object, unit: Unit) -> tuple[Tensor, Tensor | None]:
    """Where this batch's scores go in the shard, and which padded positions [B, T] they come from."""
    first = torch.tensor([start[i] for i in at])
    if unit == "row" or not isinstance(batch, TokenBatch):
        return first, None
    valid = batch.attention_mask.bool()
    return (first[:, None] + batch.position_ids.cpu())[valid.cpu()], valid
