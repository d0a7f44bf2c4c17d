"""Planted causes: of the rows that alone taught a behaviour, how many stand at the top?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from glasshouse.attribution.bm25 import bm25_scores, ranked
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate


def recall_at(order: Sequence[str], planted: Collection[str], k: int = 20) -> float:
    """Hits among the first k over min(k, number planted): 1 is perfect. InputError if nothing was planted."""
    if not planted or k < 1:
        raise InputError("recall needs at least one planted row and k of at least 1")
    return len(set(order[:k]) & set(planted)) / min(k, len(planted))


def recall_of(table: ScoreTable, planted: Collection[str], k: int = 20, *, seed: int = 0) -> Estimate:
    """Mean recall@k over the table's queries, bootstrap over queries; ties in a seeded random order."""
    rows = table.dense(-np.inf)
    orders = [
        [table.train_ids[i] for i in ranked(row, seed=seed, stream=str(q))] for q, row in enumerate(rows)
    ]
    return _mean([recall_at(order, planted, k) for order in orders], seed)


def bm25_recall(
    queries: Sequence[Any],
    corpus: Sequence[Any],
    ids: Sequence[str],
    planted: Collection[str],
    k: int = 20,
    *,
    draws: int = 20,
    seed: int = 0,
) -> Estimate:
    """The lexical baseline: mean recall@k over queries, ties averaged over `draws` random orders."""
    scores = bm25_scores(queries, corpus)
    values = [
        np.mean([
            recall_at([ids[i] for i in ranked(row, seed=seed, stream=f"{q}/{d}")], planted, k)
            for d in range(draws)
        ])
        for q, row in enumerate(scores)
    ]  # fmt: skip
    return _mean([float(v) for v in values], seed)


def _mean(values: list[float], seed: int) -> Estimate:
    from glasshouse.statistics import bootstrap

    if len(values) == 1:
        return Estimate.exact(values[0], 1, method="one query")
    return bootstrap(values, seed=seed)
