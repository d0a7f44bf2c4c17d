"""Play the game: grow, audit blind, measure the baselines, and only then open the truth and grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.audit.game.auditing import Audited, Unit, audit_all, find_audited, units_of
from glasshouse.audit.game.bars import BASELINES, alarms
from glasshouse.audit.game.baselines import Measured, measure_all
from glasshouse.audit.game.grading import grade_all
from glasshouse.audit.game.growing import (
    Entrant,
    Generator,
    Growth,
    Parity,
    drawn,
    entrants,
    find_growth,
    grow_all,
)
from glasshouse.audit.game.regimes import REGIMES, check_regimes
from glasshouse.audit.game.result import GameResult
from glasshouse.audit.game.scores import Graded
from glasshouse.runtime.executors import Executor
from glasshouse.training.organisms import Truth

AUDIT = "audit"
"""The player that is ours."""


@dataclass(frozen=True)
class Played:
    """All that is on disk before the truth is opened."""

    growths: tuple[Growth, ...]
    audited: tuple[Audited, ...]
    measured: tuple[Measured, ...]


def play(
    organisms: int = 4,
    *,
    seed: int = 0,
    level: str = "mixed",
    regimes: Sequence[str] = REGIMES,
    processes: int = 2,
    parity: Parity | None = None,
    executor: str | Executor | None = None,
    generator: Generator = drawn,
    out: Path | str | None = None,
) -> GameResult:
    """Grow `organisms` flawed and as many clean organisms, audit each under every access, grade.

    Organism i does not depend on how many there are. Everything finished is kept in the cache: a game that
    was killed, or is played again with more organisms, goes on where it stopped and ends the same.
    `processes` workers of one thread each; `executor` (a name or an executor) replaces them. With `out` the
    result is written there (`GameResult.save`). Raises InputError for a game that cannot be played.
    """
    chosen = check_regimes(tuple(regimes))
    who = entrants(organisms, seed=seed, level=level, parity=parity)
    hands = executor if executor is not None else f"processes:{processes}"
    played = run(who, chosen, executor=hands, generator=generator)
    settings = {
        "organisms": organisms, "seed": seed, "level": level, "parity": parity, "regimes": list(chosen),
    }  # fmt: skip
    result = GameResult.of(settings, grade_played(played, generator), costs(played))
    if out is not None:
        result.save(out)
    return result


def run(
    who: Sequence[Entrant],
    regimes: Sequence[str],
    *,
    executor: str | Executor,
    generator: Generator = drawn,
) -> Played:
    """Everything but the grading: when this returns, all findings are on disk, and no truth was opened."""
    growths = grow_all(who, executor=executor, generator=generator)
    units = units_of(growths, regimes)
    audited = audit_all(units, executor=executor)
    measured = measure_all(units, executor=executor)
    return Played(tuple(growths), tuple(audited), tuple(measured))


def grade_played(
    played: Played, generator: Generator = drawn, *, truths: Mapping[Entrant, Truth] | None = None
) -> list[Graded]:
    """Every organism under every access, as the audit and as each baseline told it.

    This is where `truth.json` is opened. `truths` grades against others (a control).
    """
    by_folder = {growth.folder: growth for growth in played.growths if growth.folder is not None}
    known = truths if truths is not None else truths_of(played.growths)
    graded = []
    for one in played.audited:
        entrant = by_folder[one.unit.folder].entrant
        graded.append(
            _graded(entrant, known[entrant], one.unit.regime, AUDIT, one.findings(), generator, one.failed)
        )
    for one in played.measured:
        entrant = by_folder[one.unit.folder].entrant
        graded += [
            _graded(entrant, known[entrant], one.unit.regime, name, alarms(one, name), generator)
            for name in BASELINES
        ]
    return graded


def truths_of(growths: Sequence[Growth]) -> dict[Entrant, Truth]:
    """What was planted in each grown organism."""
    return {g.entrant: Truth.read(g.folder / "truth.json") for g in growths if g.folder is not None}


def exchanged(truths: Mapping[Entrant, Truth]) -> dict[Entrant, Truth]:
    """The control: each flawed organism is graded by the truth of the next one; clean ones by their own."""
    flawed = [entrant for entrant in truths if not entrant.clean]
    after = dict(zip(flawed, [*flawed[1:], *flawed[:1]], strict=True))
    return {entrant: truths[after.get(entrant, entrant)] for entrant in truths}


def _graded(
    entrant: Entrant,
    truth: Truth,
    regime: str,
    player: str,
    findings: Any,
    generator: Generator,
    failed: str = "",
) -> Graded:
    flaws, false_alarms = grade_all(findings, truth)
    return Graded(
        entrant.name, entrant.seed, entrant.clean, _grammar(generator(entrant)), regime, player,
        tuple(flaws), tuple(false_alarms), failed,
    )  # fmt: skip


def _grammar(organism: Any) -> str:
    return str(getattr(getattr(organism, "drawn", None), "grammar", ""))


def costs(played: Played) -> dict[str, Any]:
    """Processor seconds of growths, audits and baselines, and growths that failed to install."""
    audits: dict[str, list[float]] = {}
    for one in played.audited:
        audits.setdefault(one.unit.regime, []).append(one.seconds)
    return {
        "growth": [g.seconds for g in played.growths],
        "audit": audits,
        "baselines": [one.seconds for one in played.measured],
        "not_installed": {g.entrant.name: g.failed for g in played.growths if g.failed},
    }


def foresee(
    who: Sequence[Entrant], regimes: Sequence[str], *, processes: int, generator: Generator = drawn
) -> dict[str, Any]:
    """What a game will cost before it is played: how much is left to do, and minutes by `SECONDS`."""
    found = [find_growth(entrant, generator) for entrant in who]
    to_grow = sum(growth is None for growth in found)
    units = units_of([growth for growth in found if growth is not None], regimes)
    left = {regime: to_grow for regime in regimes}
    for unit in units:
        left[unit.regime] += find_audited(unit) is None
    seconds = to_grow * SECONDS["growth"] + sum(n * SECONDS[regime] for regime, n in left.items())
    seconds += SECONDS["baselines"] * max(left.values(), default=0)
    return {
        "organisms": len(who), "to_grow": to_grow, "to_audit": left,
        "minutes": round(seconds / 60 / max(1, processes), 1),
    }  # fmt: skip


SECONDS = {"growth": 25.0, "text": 12.0, "weights": 14.0, "weights+data": 35.0, "baselines": 12.0}
"""Processor seconds of one organism on one core of a laptop; growths that must be repeated included."""

__all__ = [
    "AUDIT",
    "Played",
    "Unit",
    "costs",
    "exchanged",
    "foresee",
    "grade_played",
    "play",
    "run",
    "truths_of",
]
