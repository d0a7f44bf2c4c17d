"""What a game leaves: grades of every organism under every access, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.audit.game.grading import FlawGrade
from glasshouse.audit.game.scores import MEASURES, Graded, by_grammar, by_rung, difference, measures
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

AUDIT, ENDS = "audit", ("always", "never")
RESULT, ROWS, PAGE = "game.json", "game.parquet", "game.html"
SCHEMA = 1
COMPARED = ("flaw_recall", "trigger_recall", "row_recall", "false_alarm_rate")


@dataclass(frozen=True)
class GameResult:
    """`graded`: every organism, access and player. `costs`: processor seconds, and growths that failed."""

    settings: Mapping[str, Any]
    graded: tuple[Graded, ...]
    costs: Mapping[str, Any]

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], graded: Sequence[Graded], costs: Mapping[str, Any]
    ) -> GameResult:
        """A result of grades in any order."""
        return cls(dict(settings), tuple(graded), dict(costs))

    # -- numbers ---------------------------------------------------------------------------------------------

    @property
    def players(self) -> tuple[str, ...]:
        """The audit, then the baselines."""
        return tuple(dict.fromkeys(one.player for one in self.graded))

    def told_by(self, player: str, regime: str) -> list[Graded]:
        """The grades of one player under one access."""
        return [one for one in self.graded if (one.player, one.regime) == (player, regime)]

    @cached_property
    def regimes(self) -> dict[str, dict[str, Estimate]]:
        """The audit's numbers by access; `scores.MEASURES` says what each is of."""
        return {regime: measures(self.told_by(AUDIT, regime)) for regime in self.settings["regimes"]}

    @cached_property
    def baselines(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """The baselines' numbers by access and name."""
        names = [name for name in self.players if name != AUDIT]
        return {
            regime: {name: measures(self.told_by(name, regime)) for name in names}
            for regime in self.settings["regimes"]
        }

    def best_baseline(self, regime: str, measure: str = "flaw_recall") -> str:
        """The baseline with the largest value; the two ends (`always`, `never`) do not count.

        Ties go to the one with fewer false alarms. Raises InputError where none has a value.
        """
        found = {
            name: told for name, told in self.baselines.get(regime, {}).items()
            if name not in ENDS and told[measure].defined
        }  # fmt: skip
        if not found:
            raise InputError(
                f"no baseline has a {measure} under {regime}", fix="play with organisms that install"
            )
        return max(found, key=lambda n: (found[n][measure].value, -found[n]["false_alarm_rate"].value))

    def above(self, regime: str, baseline: str, measure: str = "flaw_recall") -> Estimate:
        """The audit's number minus a baseline's, paired, with a bootstrap interval over organisms."""
        return difference(self.told_by(AUDIT, regime), self.told_by(baseline, regime), measure)

    # -- out and in ------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Regimes, baselines, differences, rungs, grammars, organisms; every number an Estimate."""
        names = [name for name in self.players if name not in (AUDIT, *ENDS)]
        return {
            "schema": SCHEMA,
            "settings": dict(self.settings),
            "measures": dict(MEASURES),
            "regimes": {regime: _plain(told) for regime, told in self.regimes.items()},
            "baselines": {
                regime: {name: _plain(told) for name, told in players.items()}
                for regime, players in self.baselines.items()
            },
            "differences": {
                regime: {name: {m: self.above(regime, name, m).to_json() for m in COMPARED} for name in names}
                for regime in self.settings["regimes"]
            },
            "rungs": {r: _groups(by_rung(self.told_by(AUDIT, r))) for r in self.settings["regimes"]},
            "grammars": {r: _groups(by_grammar(self.told_by(AUDIT, r))) for r in self.settings["regimes"]},
            "organisms": [one.to_json() for one in self.graded if one.player == AUDIT],
            "baseline_organisms": [one.to_json() for one in self.graded if one.player != AUDIT],
            "costs": dict(self.costs),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> GameResult:
        """The inverse of `to_json`."""
        if told.get("schema") != SCHEMA:
            raise InputError(f"schema {told.get('schema')} is not {SCHEMA}", fix="play the game again")
        graded = [Graded.from_json(one) for one in [*told["organisms"], *told["baseline_organisms"]]]
        return cls.of(told["settings"], graded, told["costs"])

    def save(self, folder: Path | str) -> Path:
        """Write `game.json`, `game.parquet` (see `to_frame`) and the page `game.html`; returns the page."""
        from glasshouse.audit.game.page import render

        place = Path(folder)
        files.write_json(place / RESULT, self.to_json())
        frame = self.to_frame()
        with files.atomic_path(place / ROWS) as temporary:
            frame.to_parquet(temporary, index=False)
        return files.write_text(place / PAGE, render(self))

    @classmethod
    def load(cls, folder: Path | str) -> GameResult:
        """Read what `save` wrote. Raises InputError for a folder without it."""
        path = Path(folder) / RESULT
        try:
            return cls.from_json(files.read_json(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"no game can be read ({type(error).__name__})",
                where=str(path),
                fix="give the --out of a game",
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """One dict per player, access, organism and flaw; of a clean organism one whose `flaw` is None."""
        empty = dict.fromkeys(field.name for field in fields(FlawGrade))
        out = []
        for one in self.graded:
            base = {
                "player": one.player, "regime": one.regime, "organism": one.organism, "seed": one.seed,
                "clean": one.clean, "grammar": one.grammar, "alarms": len(one.alarms),
                "alarmed_about": "; ".join(one.alarms), "failed": one.failed,
            }  # fmt: skip
            out += [{**base, **flaw.to_json()} for flaw in one.flaws] or [{**base, **empty}]
        return out

    def to_frame(self) -> pd.DataFrame:
        """`rows` as a data frame."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def plot(self) -> Any:
        """A plotly heat map: share of flaws found, by step of the ladder and access."""
        from glasshouse.audit.game.page import heat

        return heat(self)


def _plain(told: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in told.items()}


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value.to_json() if isinstance(value, Estimate) else value for name, value in row.items()}
        for row in rows
    ]
