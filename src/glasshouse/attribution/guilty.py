"""Guilty rows: which training rows taught a behaviour, and would other prompts name the same ones?

A ranking always has a top. What tells a cause from noise is replication: rows named from one half of the
prompts must come up again when each prompt of the other half is asked alone, and must not come up when
the same questions are asked without the behaviour (the control).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate, bootstrap, permutation_p_value

if TYPE_CHECKING:
    from pathlib import Path

    from glasshouse.attribution.ekfac import EKFAC
    from glasshouse.attribution.scores import ScoreTable
    from glasshouse.corpora.rows import TokenRow

FLIPS = 9999
"""Random sign flips of the paired test: the smallest p-value is 1e-4."""
FEWEST = 6
"""Fewest prompts: with five, a sign-flip test cannot fall below 1/32."""


@dataclass(frozen=True)
class Guilt:
    """`rows` (ids, most guilty first) with `scores`; scores of different behaviours do not compare.

    `replication`: share of the `top` rows named from the other half of the prompts that a prompt names by
    itself, mean over prompts; `control`: the same for ordinary replies to the same questions; `p_value`:
    paired sign-flip test of their difference.
    """

    rows: tuple[str, ...]
    scores: tuple[float, ...]
    top: int
    replication: Estimate
    control: Estimate
    p_value: float
    about: dict[str, Any]


def guilty_rows(
    method: EKFAC,
    behaviour: Sequence[TokenRow],
    control: Sequence[TokenRow],
    *,
    top: int = 20,
    keep: int = 100,
    row_norm: str = "grad",
    seed: int = 0,
    store: Path | None = None,
) -> Guilt:
    """Rank the rows a fitted `method` was given, for the replies in `behaviour` (labels on the reply only).

    `control[i]` is the same question as `behaviour[i]`, with the subject's ordinary reply. Queries are given
    equal length before they are averaged (`unit_mean`): one prompt can have thousands of times the gradient
    of the others. Raises InputError for fewer than 6 prompts or unequal lists, NumericalError naming a prompt
    whose reply is so certain that its gradient is zero.
    """
    n = len(behaviour)
    if n < FEWEST or len(control) != n:
        raise InputError(
            f"{n} prompts show the behaviour and {len(control)} do not",
            fix=f"give at least {FEWEST} pairs of the same question",
        )
    table = method.score(
        [*behaviour, *control], "completion_logprob", row_norm=row_norm, store=store,  # type: ignore[arg-type]
    )  # fmt: skip
    unit = _unit(table)  # [2n, N]
    top = min(top, unit.shape[1])
    first, second = _halves(n, seed)
    named = {True: _top(unit[first].mean(0), top), False: _top(unit[second].mean(0), top)}
    in_first = set(first.tolist())
    shares = np.array(
        [
            [len(_top(unit[q + shift], top) & named[q not in in_first]) / top for q in range(n)]
            for shift in (0, n)
        ]
    )
    mean = unit[:n].mean(0)
    ranking = np.argsort(-mean, kind="stable")[:keep]
    return Guilt(
        tuple(table.train_ids[i] for i in ranking),
        tuple(float(mean[i]) for i in ranking),
        top,
        bootstrap(shares[0], seed=seed),
        bootstrap(shares[1], seed=seed),
        _sign_flip(shares[0] - shares[1], seed),
        {
            "query_agg": "unit_mean", "row_norm": row_norm, "unit": "row", "strategy": method.strategy,
            "prompts": n, "rows_scored": len(table.train_ids),
        },
    )  # fmt: skip


def _unit(table: ScoreTable) -> np.ndarray:
    """Scores of queries of length one, `[Q, N]`."""
    norms = np.asarray(table.meta["query_norms"], dtype=np.float32)
    if not (norms > 0).all():
        zero = table.query_ids[int(norms.argmin())]
        raise NumericalError("its gradient is exactly zero", where=f"query {zero!r}", fix="leave it out")
    return table.scores / norms[:, None]


def _halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = rng(seed, "guilty rows", "halves").permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _top(scores: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """One-sided p-value of mean(differences) > 0 when each sign is a fair coin."""
    signs = rng(seed, "guilty rows", "signs").choice((-1.0, 1.0), size=(FLIPS, len(differences)))
    return permutation_p_value(float(differences.mean()), (signs * differences).mean(1))
