"""The plain methods on every organism under every access, kept in the cache; `bars` makes alarms of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glasshouse.audit.game.auditing import SEEN, Unit
from glasshouse.audit.game.growing import gathered, loaded_code
from glasshouse.audit.game.plain import METHODS, Plain, overhear
from glasshouse.audit.game.regimes import SUITE_SEED, seat
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.progress import Progress

RESULT = "plain.json"


@dataclass(frozen=True)
class Measured:
    """What each plain method measured on an organism under one access; `seconds` of the processor."""

    unit: Unit
    plain: Mapping[str, Plain]
    seconds: float


def measure_all(
    units: Sequence[Unit], *, executor: str | Executor = "local", progress: Progress | None = None
) -> list[Measured]:
    """Every unit measured, in order; finished ones come from the cache.

    Of what is beyond log-probabilities only rows help these methods, so that `text` and `weights` share one
    measurement.
    """
    todo = list(dict.fromkeys(map(measured_as, units)))
    found = gathered(get_executor(executor).map(measure_one, todo), "baselines", len(todo), progress)
    return for_all(units, found)


def for_all(units: Sequence[Unit], found: Sequence[Measured]) -> list[Measured]:
    """A measurement for every unit from those that were made."""
    at = {one.unit: one for one in found}
    return [replace(at[measured_as(unit)], unit=unit) for unit in units]


def measured_as(unit: Unit) -> Unit:
    """The unit whose measurement serves this one."""
    return unit if unit.regime == "weights+data" else replace(unit, regime="text")


def measure_one(unit: Unit) -> Measured:
    """One unit, from the cache or now."""
    data = unit.regime == "weights+data"
    folder = Cache().fetch(
        "game-baseline",
        {"rows": data, "suite": SUITE_SEED},
        lambda folder: _measure(unit.folder, data, folder),
        inputs=[files.sha256_file(unit.folder / name) for name in SEEN],
        code=loaded_code("glasshouse.audit.game.baselines"),
    )
    told = files.read_json(folder / RESULT)
    plain = {name: Plain.from_json(one) for name, one in told["plain"].items()}
    return Measured(unit, plain, told["seconds"])


def _measure(organism: Path, data: bool, folder: Path) -> None:
    from glasshouse.runtime.devices import torch_threads

    started = time.process_time()
    given = seat(organism, "weights+data" if data else "text")
    with torch_threads(1):
        traffic = overhear(given.subject, given.suite.prompts)
        plain = {name: method(given, traffic).to_json() for name, method in METHODS.items()}
    files.write_json(folder / RESULT, {"plain": plain, "seconds": round(time.process_time() - started, 1)})
