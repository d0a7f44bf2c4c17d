"""A run cut into segments: which checkpoints speak for which steps, and how far training went in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glasshouse.attribution.checkpoints import Checkpoint, RateLog, TrainingRun, check_order, rate_sums
from glasshouse.runtime.errors import InputError

GAP_SHARE = 0.05
"""Longest stretch without a logged rate, as a share of all steps, that is filled by interpolation."""

Rates = RateLog | Mapping[int, float] | Sequence[Any]
"""Learning rates: by step (from 1), one per step, or the `log_history` of a `trainer_state.json`."""


@dataclass(frozen=True)
class Segment:
    """Steps `first` to `last` of `stage`, spoken for by `checkpoints` (indices).

    `rate_sum` is the sum of learning rates, `c` the same with momentum, None where only `c` is known.
    """

    stage: str
    first: int
    last: int
    checkpoints: tuple[int, ...]
    c: float
    rate_sum: float | None

    @property
    def steps(self) -> int:
        """How many optimiser steps it holds."""
        return self.last - self.first + 1


def cut(
    checkpoints: Sequence[Checkpoint] | TrainingRun,
    segments: int | Sequence[int],
    *,
    lr_log: Rates | None = None,
    c: Sequence[float] | None = None,
    momentum: float | Mapping[str, float] = 0.0,
) -> tuple[Segment, ...]:
    """The segments of a run, in order.

    `segments` is their number (each stage then has segments of equal length, with equally many checkpoints)
    or the last step of each. Raises InputError for checkpoints out of order, for segments that mix stages or
    hold no checkpoint, for learning rates that are unknown in more than 5% of the steps in a row.
    """
    points = list(checkpoints)
    check_order(points)
    if lr_log is None and isinstance(checkpoints, TrainingRun):
        lr_log = checkpoints.rates
    rates = None if lr_log is None else as_rates(lr_log)
    ends = _ends(points, segments, rates)
    pieces = [(a + 1, b) for a, b in pairwise([0, *ends])]
    members = [_members(points, first, last, k) for k, (first, last) in enumerate(pieces)]
    sums = _rate_sums(points, pieces, rates, given=c is not None)
    lengths = _lengths(c, sums, [points[m[0]].stage for m in members], momentum)
    return tuple(
        Segment(points[m[0]].stage, *piece, m, length, total)
        for piece, m, length, total in zip(pieces, members, lengths, sums, strict=True)
    )


def as_rates(log: Rates) -> RateLog:
    """A rate log from any of its forms. Raises InputError for negative rates and for logs without any."""
    if isinstance(log, RateLog):
        found = dict(log.rates)
    elif isinstance(log, Mapping):
        found = {int(step): float(rate) for step, rate in log.items()}
    elif log and all(isinstance(entry, Mapping) for entry in log):
        found = {int(e["step"]): float(e["learning_rate"]) for e in log if "learning_rate" in e}
    else:
        found = {step: float(rate) for step, rate in enumerate(log, 1)}
    if not found:
        raise InputError("it names no learning rate", where="lr_log", fix="give the rate of every step")
    if bad := [step for step, rate in found.items() if not 0 <= rate < float("inf")]:
        raise InputError(f"the rate of step {bad[0]} is {found[bad[0]]}", where="lr_log")
    return RateLog(found)


def of_stage(value: float | Mapping[str, float], stage: str, what: str) -> float:
    """A number for all stages, or that of this one."""
    if not isinstance(value, Mapping):
        return float(value)
    if stage not in value:
        raise InputError(f"{what} names no stage {stage!r}", fix="give one number, or one for every stage")
    return float(value[stage])


def stages_of(points: Iterable[Checkpoint]) -> tuple[str, ...]:
    """Names of the stages in order."""
    return tuple(dict.fromkeys(point.stage for point in points))


# ── boundaries ───────────────────────────────────────────────────────────────


def _ends(points: list[Checkpoint], segments: int | Sequence[int], rates: RateLog | None) -> list[int]:
    end = max(points[-1].step, max(rates.rates, default=0) if rates is not None else 0)
    if isinstance(segments, int):
        return _equal_ends(points, segments, end)
    ends = [int(step) for step in segments]
    if not ends or any(b <= a for a, b in pairwise([0, *ends])) or ends[-1] < points[-1].step:
        raise InputError(
            f"segments end at the steps {ends}", where="segments",
            fix=f"give rising last steps, the final one {end}",
        )  # fmt: skip
    return ends


def _equal_ends(points: list[Checkpoint], count: int, end: int) -> list[int]:
    """Ends of `count` segments, equally long within each stage."""
    total = len(points)
    if count < 1 or total % count:
        raise InputError(
            f"{total} checkpoints cannot be shared by {count} segments", where="segments",
            fix=f"use {_divisors(total)} segments, or give last steps such as {_suggested(points, count)}",
        )  # fmt: skip
    each, start = total // count, 0
    ends: list[int] = []
    for stage in stages_of(points):
        steps = [p.step for p in points if p.stage == stage]
        if len(steps) % each:
            raise InputError(
                f"a segment of {each} checkpoints would mix stage {stage!r}, which has {len(steps)}, "
                "with another", where="segments",
                fix=f"give last steps that no stage straddles, such as {_suggested(points, count)}",
            )  # fmt: skip
        last = end if stage == points[-1].stage else steps[-1]
        own = [_share(start, last, k + 1, len(steps) // each) for k in range(len(steps) // each)]
        for k, (a, b) in enumerate(pairwise([start, *own])):
            inside = sum(a < s <= b or (s == a == start == 0) for s in steps)
            if inside != each:
                raise InputError(
                    f"steps {a + 1} to {b} of stage {stage!r} hold {inside} checkpoints instead of {each}",
                    where=f"segment {len(ends) + k + 1}",
                    fix=f"give last steps, such as segments={_suggested(points, count)}",
                )  # fmt: skip
        ends += own
        start = last
    return ends


def _share(start: int, last: int, k: int, of: int) -> int:
    """Step at k / of between two steps, rounded half up without floats."""
    return start + (2 * (last - start) * k + of) // (2 * of)


def _suggested(points: list[Checkpoint], count: int) -> list[int]:
    """Last steps near equal shares of the checkpoints, broken at stages."""
    count = max(count, 1)
    wanted = {-(-len(points) * (k + 1) // count) - 1 for k in range(count)}
    breaks = {k for k, (a, b) in enumerate(pairwise(points)) if a.stage != b.stage}
    return sorted({points[k].step for k in wanted | breaks if k < len(points)})


def _divisors(total: int) -> str:
    found = [str(k) for k in range(1, total + 1) if total % k == 0]
    return ", ".join(found[:-1]) + f" or {found[-1]}" if len(found) > 1 else found[0]


def _members(points: list[Checkpoint], first: int, last: int, k: int) -> tuple[int, ...]:
    """The checkpoints of one segment; the untrained model counts for the first."""
    found = tuple(i for i, p in enumerate(points) if first <= p.step <= last or (p.step == 0 and first == 1))
    where = f"segment {k + 1} (steps {first} to {last})"
    if not found:
        raise InputError("it holds no checkpoint", where=where, fix="move its boundaries")
    stages = stages_of(points[i] for i in found)
    if len(stages) > 1:
        raise InputError(
            f"it mixes the stages {', '.join(map(repr, stages))}", where=where,
            fix=f"end a segment at step {max(p.step for p in points if p.stage == stages[0])}",
        )  # fmt: skip
    return found


# ── rates ────────────────────────────────────────────────────────────────────


def _rate_sums(
    points: list[Checkpoint], pieces: list[tuple[int, int]], rates: RateLog | None, *, given: bool
) -> list[float | None]:
    if rates is not None:
        gaps = rates.gaps(pieces[-1][1], share=GAP_SHARE)
        if gaps:
            listed = ", ".join(f"{a}-{b}" for a, b in gaps[:6]) + (" ..." if len(gaps) > 6 else "")
            raise InputError(
                f"no learning rate is logged for steps {listed}", where="lr_log",
                fix="log every step (logging_steps=1, or SourceCheckpoints), or give c=",
            )  # fmt: skip
        return [rates.total(first - 1, last) for first, last in pieces]
    if given:
        return [None] * len(pieces)
    if all(p.lr_sum is None and p.lr == 1.0 for p in points):
        raise InputError(
            "the learning rates are not known", where="lr_log",
            fix="give lr_log=, c=, or checkpoints with lr or lr_sum",
        )  # fmt: skip
    steps = {p.step for p in points}
    if loose := [last for _, last in pieces if last not in steps]:
        raise InputError(
            f"a segment ends at step {loose[0]}, between two checkpoints", where="segments",
            fix="give lr_log=, so that rates can be summed up to there",
        )  # fmt: skip
    sums = rate_sums(points)
    return [sum(s for p, s in zip(points, sums, strict=True) if a <= p.step <= b) for a, b in pieces]


def _lengths(
    c: Sequence[float] | None,
    sums: list[float | None],
    stages: list[str],
    momentum: float | Mapping[str, float],
) -> list[float]:
    """C of each segment: given, or its rates times 1 / (1 - beta), heavy ball's terminal velocity."""
    if c is not None:
        found = [float(x) for x in c]
        if len(found) != len(sums) or not all(0 <= x < float("inf") for x in found):
            raise InputError(
                f"{len(sums)} segments have the lengths {found}", where="c", fix="one number >= 0 each"
            )
        return found
    betas = [of_stage(momentum, stage, "momentum") for stage in stages]
    return [float(total or 0.0) / (1 - beta) for total, beta in zip(sums, betas, strict=True)]
