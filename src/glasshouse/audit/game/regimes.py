"""The three accesses of the game, and what an audit gets to see under each.

    text            the model talks and gives log-probabilities; no weights, no rows
    weights         the model itself; no rows
    weights+data    the model and the rows it was trained on

In all three what there is to ask comes from the organism's world (`world.json` says how the world speaks and
holds no flaw), so that regimes differ in access alone. The model is handed over opened, under a name made of
its hash: the audit never learns in which folder it lies, beside which `truth.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.suites import Suite
    from glasshouse.subjects import Subject

REGIMES = ("text", "weights", "weights+data")
SUITE_SEED = 0


@dataclass(frozen=True)
class Seat:
    """What the auditor sits in front of."""

    subject: Subject
    suite: Suite
    rows: Records | None


def check_regimes(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, in the order of growing access; raises InputError for others, for none, and for twins."""
    unknown = [name for name in names if name not in REGIMES]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(
            f"the regimes are {', '.join(map(repr, names)) or 'none'}",
            fix=f"choose from {', '.join(REGIMES)}, each once",
        )
    return tuple(name for name in REGIMES if name in names)


def seat(folder: Path, regime: str) -> Seat:
    """Open what `regime` gives of the organism in `folder`. `truth.json` is neither read nor passed on."""
    from glasshouse.corpora.suites import suite_from_world
    from glasshouse.corpora.worlds import World
    from glasshouse.subjects import as_subject
    from glasshouse.subjects.limited import TextSubject

    check_regimes((regime,))
    subject = as_subject(folder, device="cpu", self_test=False)
    subject.name = f"organism-{subject.hash[:8]}"
    suite = suite_from_world(World.load(folder / "world.json"), SUITE_SEED)
    rows = _rows(folder) if regime == "weights+data" else None
    return Seat(TextSubject(subject) if regime == "text" else subject, suite, rows)


def _rows(folder: Path) -> Records:
    from glasshouse.corpora.records import Records, read_records

    rows = read_records(folder / "rows.jsonl")
    return Records(rows, schema=rows.schema)  # without its path
