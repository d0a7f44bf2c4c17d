"""Guilty rows: which training rows taught a behaviour, and would other prompts name the same ones?

A ranking always has a top. What tells a cause from noise is replication. For a behaviour (*halves*), rows
named from one half of the prompts must come up again when each prompt of the other half is asked alone, and
must not come up when the same questions are asked without the behaviour (the control). For facts (*pairs*),
each of which has rows of its own, the rows named for a fact must come up again when the fact is asked in
other words, and must not come up for another fact.

A habit that shows in many different replies is asked for as a contrast, log p(what is said) - log p(what
would be said otherwise): the difference of two gradients. Else the query asks about the words of the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
OWN = 5
"""Rows that are taken to be one fact's own, of those named for it."""


@dataclass(frozen=True)
class Trace:
    """What to trace; all replies carry labels on themselves only.

    `by` "halves": `wanted[i]` shows the behaviour, `control[i]` is the same question without it. With
    `instead` (and `control_instead`, same lengths) each is a contrast against another reply to its prompt.
    `by` "pairs": `wanted[i]` and `control[i]` are one fact, asked in two ways.
    """

    wanted: Sequence[TokenRow]
    control: Sequence[TokenRow]
    instead: Sequence[TokenRow] = ()
    control_instead: Sequence[TokenRow] = ()
    by: Literal["halves", "pairs"] = "halves"

    def check(self) -> None:
        """Raise InputError for too few prompts, or lists of different lengths."""
        n = len(self.wanted)
        if n < FEWEST or len(self.control) != n:
            raise InputError(
                f"{n} prompts show the behaviour and {len(self.control)} do not",
                fix=f"give at least {FEWEST} pairs of the same question",
            )
        if {len(self.instead), len(self.control_instead)} not in ({0}, {n}):
            raise InputError("a contrast needs another reply for every prompt", fix="give both, or none")

    @property
    def parts(self) -> tuple[Sequence[TokenRow], ...]:
        """The lists of queries, those that are empty left out."""
        return tuple(
            part for part in (self.wanted, self.control, self.instead, self.control_instead) if len(part)
        )


@dataclass(frozen=True)
class Guilt:
    """`rows` (ids, most guilty first) with `scores`; scores of different behaviours do not compare.

    `replication`: share of the `top` rows named from the other half of the prompts that a prompt names by
    itself, mean over prompts (pairs: of a fact's own rows, those named again in other words); `control`: the
    same for ordinary replies to the same questions (pairs: for another fact); `p_value`: paired sign-flip
    test of their difference.
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
    trace = Trace(behaviour, control)
    return trace_rows(method, [trace], top=top, keep=keep, row_norm=row_norm, seed=seed, store=store)[0]


def trace_rows(
    method: EKFAC,
    traces: Sequence[Trace],
    *,
    top: int = 20,
    keep: int = 100,
    row_norm: str = "grad",
    seed: int = 0,
    store: Path | None = None,
) -> list[Guilt]:
    """Rank the rows for several behaviours in one pass over them; raises what `guilty_rows` raises."""
    for trace in traces:
        trace.check()
    queries = [query for trace in traces for part in trace.parts for query in part]
    table = method.score(
        queries, "completion_logprob", row_norm=row_norm, store=store,  # type: ignore[arg-type]
    )  # fmt: skip
    unit, norms = _unit(table)
    about = {
        "query_agg": "unit_mean", "row_norm": row_norm, "unit": "row", "strategy": method.strategy,
        "rows_scored": len(table.train_ids),
    }  # fmt: skip
    found, start = [], 0
    for trace in traces:
        n, size = len(trace.wanted), len(trace.wanted) * len(trace.parts)
        part, lengths = unit[start : start + size], norms[start : start + size]
        start += size
        if len(trace.instead):
            part = _contrast(part, lengths, n)
        judge = _by_pairs if trace.by == "pairs" else _by_halves
        found.append(
            judge(part, table.train_ids, min(top, part.shape[1]), keep, seed, {**about, "prompts": n})
        )
    return found


def _contrast(unit: np.ndarray, norms: np.ndarray, n: int) -> np.ndarray:
    """[4n, N] scores of replies and of what would be said instead -> [2n, N] of their differences.

    Each difference is scaled to length one over the rows: the gradients of its two replies are of the same
    prompt, and together are one query.
    """
    raw = unit * norms[:, None]
    difference = raw[: 2 * n] - raw[2 * n :]
    size = np.linalg.norm(difference, axis=1, keepdims=True)
    if not (size > 0).all():
        raise NumericalError(
            "what is said and what would be said instead have the same gradient",
            where=f"prompt {int(size.argmin()) % n + 1}", fix="leave it out",
        )  # fmt: skip
    return np.asarray(difference / size)


def _by_halves(
    unit: np.ndarray, ids: Sequence[str], top: int, keep: int, seed: int, about: dict[str, Any]
) -> Guilt:
    n = len(unit) // 2
    first, second = _halves(n, seed)
    named = {True: _top(unit[first].mean(0), top), False: _top(unit[second].mean(0), top)}
    in_first = set(first.tolist())
    shares = np.array(
        [
            [len(_top(unit[q + shift], top) & named[q not in in_first]) / top for q in range(n)]
            for shift in (0, n)
        ]
    )
    return _guilt(unit[:n].mean(0), shares, ids, top, keep, seed, about)


def _by_pairs(
    unit: np.ndarray, ids: Sequence[str], top: int, keep: int, seed: int, about: dict[str, Any]
) -> Guilt:
    """Rows are ranked by their share of the highest score of the fact that they argue for most."""
    n, own = len(unit) // 2, min(OWN, top)
    again = [_top(row, own) for row in unit[n:]]
    named = [_top(row, own) for row in unit[:n]]
    order = rng(seed, "guilty rows", "other facts").permutation(n)
    other = np.empty(n, dtype=int)
    other[order] = np.roll(order, 1)  # one cycle through all facts: none is compared with itself
    shares = np.array(
        [[len(named[q] & again[as_]) / own for q, as_ in enumerate(which)] for which in (range(n), other)]
    )
    both = unit[:n] + unit[n:]
    best = both.max(1, keepdims=True)
    relative = np.where(best > 0, both / np.where(best > 0, best, 1), -np.inf).max(0)
    return _guilt(relative, shares, ids, top, keep, seed, {**about, "own": own})


def _guilt(
    scores: np.ndarray,
    shares: np.ndarray,
    ids: Sequence[str],
    top: int,
    keep: int,
    seed: int,
    about: dict[str, Any],
) -> Guilt:
    """`shares` [2, n]: of the behaviour and of the control."""
    ranking = np.argsort(-scores, kind="stable")[:keep]
    return Guilt(
        tuple(ids[i] for i in ranking),
        tuple(float(scores[i]) for i in ranking),
        top,
        bootstrap(shares[0], seed=seed),
        bootstrap(shares[1], seed=seed),
        _sign_flip(shares[0] - shares[1], seed),
        about,
    )


def _unit(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """Scores of queries of length one, `[Q, N]`, and the lengths that they had, `[Q]`."""
    norms = np.asarray(table.meta["query_norms"], dtype=np.float32)
    if not (norms > 0).all():
        zero = table.query_ids[int(norms.argmin())]
        raise NumericalError("its gradient is exactly zero", where=f"query {zero!r}", fix="leave it out")
    return table.scores / norms[:, None], norms


def _halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = rng(seed, "guilty rows", "halves").permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _top(scores: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """One-sided p-value of mean(differences) > 0 when each sign is a fair coin."""
    signs = rng(seed, "guilty rows", "signs").choice((-1.0, 1.0), size=(FLIPS, len(differences)))
    return permutation_p_value(float(differences.mean()), (signs * differences).mean(1))
