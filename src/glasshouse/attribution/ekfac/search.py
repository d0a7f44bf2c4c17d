"""Which rows taught a fixed string? Search by single loss tokens, after a shortlist by whole rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.ekfac.method import EKFAC
from glasshouse.attribution.objectives import Measurement
from glasshouse.attribution.stages.scoring import QueryAgg, RowNorm
from glasshouse.attribution.units import TokenUnits
from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import InputError

SHORTLIST = 350
"""Rows looked at token by token."""


@dataclass(frozen=True)
class CanarySearch:
    """Rows of the shortlist, best first: `rows` (ids), `scores`, and the `token` of each row that won."""

    rows: tuple[str, ...]
    scores: NDArray[np.float32]
    tokens: tuple[int, ...]
    query_agg: str
    row_norm: str = "grad"
    unit: str = "loss token"


def canary_search(
    method: EKFAC,
    queries: Any,
    measurement: str | Measurement = "completion_logprob",
    *,
    shortlist: int | list[int] = SHORTLIST,
    query_agg: QueryAgg = "unit_mean",
    row_norm: RowNorm = "none",
) -> CanarySearch:
    """Rank rows by their best *loss token*: the gradient of that token's loss alone, over its own norm.

    A row trained on all its tokens has a gradient dominated by tokens nobody can predict; the token that
    taught the canary is small beside them. `shortlist` is a number of rows (taken by row score with
    `row_norm`) or their indices. The shortlist bounds what can be found.
    """
    rows = method.train_
    if not isinstance(rows, TokenUnits):
        raise InputError("canary_search is for token rows", fix="use EKFAC.score")
    if isinstance(shortlist, int):
        table = method.score(queries, measurement, query_agg=query_agg, row_norm=row_norm)
        best = table.scores.max(0)
        shortlist = np.argsort(-best, kind="stable")[:shortlist].tolist()
    alone = TokenUnits(
        [r for i in shortlist for r in _loss_tokens(rows, i)], side=rows.side, pad_id=rows.pad_id
    )
    table = method.score(queries, measurement, query_agg=query_agg, row_norm="grad", candidates=alone)
    best = table.scores.max(0)
    winners: dict[str, tuple[float, int]] = {}
    for name, value in zip(alone.ids, best.tolist(), strict=True):
        row, _, token = name.rpartition("#")
        winners[row] = max(winners.get(row, (-np.inf, 0)), (value, int(token)))
    order = sorted(winners, key=lambda row: -winners[row][0])
    scores = np.array([winners[row][0] for row in order], dtype=np.float32)
    return CanarySearch(tuple(order), scores, tuple(winners[row][1] for row in order), query_agg)


def _loss_tokens(rows: TokenUnits, index: int) -> list[TokenRow]:
    """One row per labelled token, cut after it: a causal model never sees what follows."""
    row, name = rows.rows[index], rows.ids[index]
    return [
        TokenRow(row.ids[: t + 1], (*[IGNORE] * t, label), f"{name}#{t}")
        for t, label in enumerate(row.labels)
        if t > 0 and label != IGNORE
    ]
