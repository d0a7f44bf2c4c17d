"""Token-order control: a method that follows what was learned must notice when the words change places."""

from __future__ import annotations

from typing import Any

import numpy as np

from glasshouse.attribution.units import TokenUnits, as_units
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate


def shuffled_rows(rows: Any, *, seed: int = 0) -> TokenUnits:
    """The same rows with the tokens of each in another order, labels going along; the first stays first.

    Lengths, tokens and which tokens carry loss are kept. Raises InputError for rows without tokens.
    """
    units = as_units(rows)
    if not isinstance(units, TokenUnits):
        raise InputError("only token rows have an order of words", fix="give TokenRows")
    return TokenUnits([_shuffled(units.rows[k], units.ids[k], seed) for k in range(len(units))],
                      side=units.side, pad_id=units.pad_id)  # fmt: skip


def token_order(
    method: Any, queries: Any, rows: Any, *, k: int = 20, seed: int = 0, **asked: Any
) -> Estimate:
    """Of the score of each query's top k rows, the share that is left when their tokens are shuffled.

    A bag of words keeps all of it (1); near 0, the order is what counts. Mean over queries with a bootstrap
    over queries; queries whose top k have no positive sum are left out. `asked` goes to `method.score`.
    """
    from glasshouse.statistics import bootstrap

    own = method.score(queries, candidates=rows, **asked)
    other = method.score(queries, candidates=shuffled_rows(rows, seed=seed), **asked)
    a, b = own.dense().astype(np.float64), other.dense().astype(np.float64)
    top = np.argsort(-a, axis=1, kind="stable")[:, :k]
    kept, whole = (np.take_along_axis(part, top, 1).sum(1) for part in (b, a))
    if not (whole > 0).any():
        return Estimate.undefined("no query has a positive top", 0)
    return bootstrap(kept[whole > 0] / whole[whole > 0], seed=seed)


def _shuffled(row: TokenRow, name: str, seed: int) -> TokenRow:
    order = [0, *(1 + int(i) for i in rng(seed, "token order", name).permutation(len(row) - 1))]
    return TokenRow(tuple(row.ids[i] for i in order), tuple(row.labels[i] for i in order), name)
