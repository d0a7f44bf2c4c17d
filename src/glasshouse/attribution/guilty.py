"""Guilty rows: which training rows taught a behaviour, and would other prompts name the same ones?

A ranking always has a top. What tells a cause from noise is replication, for which there are three tests:

    halves     one reply to many prompts: rows named from one half of the prompts must come up again when each
               prompt of the other half is asked alone, and not when the same questions get ordinary replies
    agreement  a habit with many replies, taught by hundreds of rows, of which no prompt alone names the same
               twenty: the scores of each prompt must correlate with those of all others, more than without it
    pairs      facts, each with rows of its own: the rows named for a fact must come up again when it is asked
               in other words, and not for another fact

A habit is asked for as a contrast, log p(what is said) - log p(what would be said otherwise): the difference
of two gradients. Else the query asks about the words of the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate, bootstrap, permutation_p_value

if TYPE_CHECKING:
    from pathlib import Path

    from glasshouse.attribution.ekfac import EKFAC
    from glasshouse.attribution.objectives import Measurement
    from glasshouse.attribution.scores import ScoreTable
    from glasshouse.corpora.rows import TokenRow

FLIPS = 9999
"""Random sign flips of the paired test: the smallest p-value is 1e-4."""
SWAPS = 1999
"""Random swaps of behaviour and control: the smallest p-value is 5e-4."""
FEWEST = 6
"""Fewest prompts: with five, a sign-flip test cannot fall below 1/32."""
OWN = 5
"""Rows that are taken to be one fact's own, of those named for it."""


@dataclass(frozen=True)
class Trace:
    """What to trace; all replies carry labels on themselves only.

    `by` "halves": `wanted[i]` shows the behaviour, `control[i]` is the same question without it. With
    `instead` (and `control_instead`, same lengths) each is a contrast against another reply to its prompt.
    `by` names the test of replication (see the module); for "pairs" `wanted[i]` and `control[i]` are one
    fact, asked in two ways.
    """

    wanted: Sequence[TokenRow]
    control: Sequence[TokenRow]
    instead: Sequence[TokenRow] = ()
    control_instead: Sequence[TokenRow] = ()
    by: Literal["halves", "agreement", "pairs"] = "halves"

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


@dataclass(frozen=True)
class Guilt:
    """`rows` (ids, most guilty first) with `scores`; scores of different behaviours do not compare.

    `replication`: share of the `top` rows named from the other half of the prompts that a prompt names by
    itself, mean over prompts (agreement: correlation of a prompt's scores with the mean of the others', -1 to
    1; pairs: of a fact's own rows, those named again in other words); `control`: the same for ordinary
    replies to the same questions (pairs: for another fact); `p_value`: paired sign-flip test of their
    difference (agreement: behaviour and control are swapped within prompts).
    """

    rows: tuple[str, ...]
    scores: tuple[float, ...]
    top: int
    replication: Estimate
    control: Estimate
    p_value: float
    about: dict[str, Any]
    control_rows: tuple[str, ...] = ()
    """The ranking for the control; empty for pairs."""


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
    queries, measurement = _questions(traces)
    table = method.score(
        queries, measurement, row_norm=row_norm, store=store,  # type: ignore[arg-type]
    )  # fmt: skip
    unit = _unit(table)
    about = {
        "query_agg": "unit_mean", "row_norm": row_norm, "unit": "row", "strategy": method.strategy,
        "rows_scored": len(table.train_ids),
    }  # fmt: skip
    found, start = [], 0
    for trace in traces:
        n = len(trace.wanted)
        part, start = unit[start : start + 2 * n], start + 2 * n
        told = {**about, "prompts": n}
        found.append(_JUDGES[trace.by](part, table.train_ids, min(top, part.shape[1]), keep, seed, told))
    return found


def average_precision(detected: Sequence[str], planted: Sequence[str]) -> float | None:
    """Mean of the precision at each planted row, over as many as the n detected rows could hold.

    None where nothing was planted or detected.

    >>> average_precision(["1", "5", "2"], ["1", "2"])
    0.8333333333333333
    """
    wanted = {str(row) for row in planted}
    possible = min(len(detected), len(wanted))
    hits, total = 0, 0.0
    for place, row in enumerate(detected, 1):
        if row in wanted:
            hits += 1
            total += hits / place
    return total / possible if possible else None


def _questions(traces: Sequence[Trace]) -> tuple[list[TokenRow], str | Measurement]:
    """The queries of all traces, and what is measured of them."""
    asked: list[TokenRow] = []
    instead: dict[str, TokenRow] = {}
    for trace in traces:
        rows = [*trace.wanted, *trace.control]
        others = [*trace.instead, *trace.control_instead]
        if others:
            rows, others = _same_lengths(rows, others)
            instead.update({row.row_id: other for row, other in zip(rows, others, strict=True)})
        asked += rows
    if not instead:
        return asked, "completion_logprob"
    return asked, contrast({row.row_id: row for row in asked}, instead)


def contrast(rows: Mapping[str, TokenRow], instead: Mapping[str, TokenRow]) -> Measurement:
    """Log p of a row's labels, minus that of `instead` of the same id where there is one, `[B]` in nats.

    Rows and those said instead have the same lengths (see `_same_lengths`): the two passes of a batch then
    have one shape, and their pairs of activations and gradients add up to those of the difference.
    """
    from glasshouse.attribution.objectives import measure
    from glasshouse.corpora.rows import TokenBatch, pad
    from glasshouse.runtime import files

    logprob = measure("completion_logprob")

    def f(model: Any, batch: Any) -> Any:
        import torch

        assert isinstance(batch, TokenBatch)
        names = [name.removesuffix(" again") for name in batch.row_ids]
        other = pad([instead.get(name, rows[name]) for name in names]).to(batch.input_ids.device)
        weights = torch.tensor([float(name in instead) for name in names], device=batch.input_ids.device)
        return logprob(model, batch) - weights * logprob(model, other)

    said = [[name, row.ids, row.labels] for name, row in instead.items()]
    f.__name__ = f"contrast_{files.sha256_json(said)[:16]}"
    return f


def _same_lengths(
    rows: Sequence[TokenRow], others: Sequence[TokenRow]
) -> tuple[list[TokenRow], list[TokenRow]]:
    """Each pair filled up to one length with tokens that carry no loss and that no earlier one can see."""
    from glasshouse.corpora.rows import IGNORE

    def filled(row: TokenRow, size: int) -> TokenRow:
        more = size - len(row)
        return replace(row, ids=row.ids + row.ids[-1:] * more, labels=row.labels + (IGNORE,) * more)

    sizes = [max(len(a), len(b)) for a, b in zip(rows, others, strict=True)]
    return (
        [filled(row, size) for row, size in zip(rows, sizes, strict=True)],
        [filled(row, size) for row, size in zip(others, sizes, strict=True)],
    )


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
    control = np.argsort(-unit[n:].mean(0), kind="stable")[:keep]
    found = _guilt(unit[:n].mean(0), shares, ids, top, keep, seed, about)
    return replace(found, control_rows=tuple(ids[i] for i in control))


def _by_agreement(
    unit: np.ndarray, ids: Sequence[str], top: int, keep: int, seed: int, about: dict[str, Any]
) -> Guilt:
    n = len(unit) // 2
    centred = unit - unit.mean(1, keepdims=True)
    z = (centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-30)).astype(np.float64)
    gram = z @ z.T  # [2n, 2n]: correlations of all prompts' scores
    q = np.arange(n)
    values = np.stack([_agreement(gram, q), _agreement(gram, q + n)])
    swaps = rng(seed, "guilty rows", "swaps").integers(0, 2, size=(SWAPS, n))
    null = [_agreement(gram, q + n * s).mean() - _agreement(gram, q + n * (1 - s)).mean() for s in swaps]
    p = permutation_p_value(float((values[0] - values[1]).mean()), np.array(null))
    control = np.argsort(-unit[n:].mean(0), kind="stable")[:keep]
    found = _guilt(unit[:n].mean(0), values, ids, top, keep, seed, about)
    return replace(found, p_value=p, control_rows=tuple(ids[i] for i in control))


def _agreement(gram: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Correlation of each chosen prompt's scores with the sum of the other chosen ones', [n]."""
    part = gram[np.ix_(chosen, chosen)]
    own, sums = np.diag(part), part.sum(1)
    others = part.sum() - 2 * sums + own  # squared length of the sum of the others
    return np.asarray((sums - own) / np.sqrt(others.clip(min=1e-30)))


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


_JUDGES = {"halves": _by_halves, "agreement": _by_agreement, "pairs": _by_pairs}
