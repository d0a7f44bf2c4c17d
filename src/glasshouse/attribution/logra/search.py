"""Answers from a log: products with preconditioned queries, shard by shard, and the best k of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.logra.curvature import Inverse, whitened
from glasshouse.attribution.logra.log import Part, SketchLog
from glasshouse.attribution.store import Mapper, Store, Tensors, gathered
from glasshouse.runtime.errors import NumericalError

Mode = Literal["dot", "cosine", "l2"]


@dataclass(frozen=True)
class Asked:
    """Queries: their ids and `vectors` [Q, width], preconditioned (or whitened, where the log is)."""

    ids: tuple[str, ...]
    vectors: Tensor
    norms: tuple[float, ...]
    """Length of each query's own sketch, before preconditioning."""

    def at(self, q: int) -> Asked:
        """One query alone."""
        return Asked((self.ids[q],), self.vectors[q : q + 1], self.norms[q : q + 1])


@dataclass(frozen=True)
class Rule:
    """How products become scores of `n` training rows; `self_influence` [rows] is `v^T (F + damping)^-1 v`
    with v the row's sketch, for modes other than dot.

    With `u` the query's sketch and `v / -n` the row's: dot `-u v / n`; cosine `-u v / |v|`; l2
    `-u v / n - |v|^2 / (2 n^2)`, norms in the metric of the damped inverse.
    """

    n: int
    mode: Mode
    self_influence: Tensor | None = None

    def __call__(self, products: Tensor, rows: slice) -> Tensor:
        """Scores [Q, rows] of products [Q, rows]."""
        if self.mode == "dot":
            return products.mul_(-1 / self.n)
        assert self.self_influence is not None
        own = self.self_influence[rows]
        if self.mode == "cosine":
            return products.mul_(-own.clamp_min(1e-30).rsqrt())
        return products.mul_(-1 / self.n).sub_(own / (2 * self.n**2))


def self_influences(
    log: SketchLog, inverse: dict[str, Inverse] | None, mapper: Mapper, kept: Store | None
) -> Tensor:
    """`v^T (F + damping)^-1 v` of every row, [N]; with `inverse` None the log is whitened already."""
    parts = gathered("self", partial(self_shard, log, inverse), list(range(len(log.shards))), mapper, kept)
    return torch.cat([part["self"] for part in parts])


def self_shard(log: SketchLog, inverse: dict[str, Inverse] | None, number: int) -> Tensors:
    """`self` [rows] of one shard."""
    part, total = log.read(number), 0
    for block in log.layout.blocks:
        V = part.sketches(block)
        total = total + (V if inverse is None else inverse[block.name].root(V)).square().sum(1)
    return {"self": total}


def dense(
    log: SketchLog,
    asked: Asked,
    rule: Rule,
    *,
    tokens: bool,
    per_module: bool,
    mapper: Mapper | None,
    kept: Store | None,
) -> list[Tensors]:
    """All scores, a part a shard: `scores` [Q, rows or tokens] and `module/<block>` of the same shape."""
    if mapper is None and kept is None:
        return [_scored(part, asked.vectors, rule, tokens, per_module) for part in log.parts()]
    fn = partial(score_shard, log, asked.vectors, rule, tokens, per_module)
    from glasshouse.attribution.base import as_mapper

    return gathered("scores", fn, list(range(len(log.shards))), as_mapper(mapper), kept)


def score_shard(
    log: SketchLog, vectors: Tensor, rule: Rule, tokens: bool, per_module: bool, number: int
) -> Tensors:
    """Scores of one shard (see `dense`)."""
    return _scored(log.read(number), vectors, rule, tokens, per_module)


def _scored(part: Part, vectors: Tensor, rule: Rule, tokens: bool, per_module: bool) -> Tensors:
    rows = slice(part.first, part.first + part.rows)
    if per_module:
        by_block = {b.name: part.block_line_scores(vectors, b) for b in part.layout.blocks}
        found = {"scores": sum(by_block.values()), **{f"module/{n}": s for n, s in by_block.items()}}
    else:
        found = {"scores": part.line_scores(vectors)}
    if tokens and part.owner is not None:
        # A token's share of the row's score: the row's norm divides all its tokens.
        whole = rule if rule.self_influence is None else Rule(
            rule.n, rule.mode, rule.self_influence[rows][part.owner]
        )  # fmt: skip
        return {key: whole(value, slice(None)) for key, value in found.items()}
    return {key: rule(part.by_row(value), rows) for key, value in found.items()}


def best(log: SketchLog, asked: Asked, rule: Rule, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k highest scores of every query and their rows, best first (ties: the earlier row), [Q, k] each.

    One shard is looked at while the next are read; k numbers a query are kept.
    """
    k, Q = min(k, len(log)), len(asked.ids)
    values, columns = np.empty((Q, 0), np.float32), np.empty((Q, 0), np.int64)
    for part in log.parts():
        scores = checked(_scored(part, asked.vectors, rule, False, False)["scores"].numpy(), "scores")
        new, at = _top(scores, k)
        values = np.concatenate([values, new], 1)
        columns = np.concatenate([columns, at + part.first], 1)
        if values.shape[1] > k:
            keep = np.argsort(-values, axis=1, kind="stable")[:, :k]
            values, columns = np.take_along_axis(values, keep, 1), np.take_along_axis(columns, keep, 1)
    return values, columns


def _top(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k highest of each row in falling order; equal ones by column. Sorts no more than it must."""
    n = scores.shape[1]
    if n <= 4 * k:
        at = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, at, 1), at
    least = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    found = np.empty((len(scores), k), np.int64)
    for q, row in enumerate(scores):
        # Those at the boundary are taken from the front, as a stable sort of everything would.
        above, level = np.flatnonzero(row > least[q]), np.flatnonzero(row == least[q])
        near = np.concatenate([above, level[: k - len(above)]])
        found[q] = near[np.lexsort((near, -row[near]))]
    return np.take_along_axis(scores, found, 1), found


def whitened_shard(log: SketchLog, inverse: dict[str, Inverse], number: int) -> Tensor:
    """The whitened sketches of one shard's rows, [rows, width]."""
    return whitened(inverse, log.layout, log.read(number).whole())


def row_names(log: SketchLog, tokens: bool) -> Sequence[str]:
    """Row ids, or `row#token` for every line."""
    if not tokens:
        return log.ids
    return [f"{name}#{t}" for name, size in zip(log.ids, log.sizes, strict=True) for t in range(size)]


def checked(values: Any, what: str) -> Any:
    """`values`, or NumericalError where they are not finite."""
    if not np.isfinite(values).all():
        raise NumericalError(f"{what} hold NaN or infinity", fix="raise the damping")
    return values
