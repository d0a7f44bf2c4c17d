"""One organism under one access: the audit itself, run blind and kept in the cache.

The entry's address is the organism's files, the access, and the code of the audit and of every check, so that
a finished unit is never done again and a changed check never reads an old answer. While it runs the audit
journals its steps beside the cache entry: after a kill it goes on in the step it was in.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.audit.game.growing import Growth, gathered, loaded_code
from glasshouse.audit.game.regimes import SUITE_SEED, seat
from glasshouse.audit.outputs import FINDINGS, REPORT
from glasshouse.audit.plan import installed_checks
from glasshouse.audit.run import audit
from glasshouse.evidence.findings import Findings
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.errors import AccessError, GlasshouseError, InputError, NumericalError
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.progress import Progress, notice

COST, FAILED = "cost.json", "failed.json"
SEEN = ("model.safetensors", "config.json", "rows.jsonl", "world.json")
"""Files of an organism that an audit may see, whatever the access: they decide its findings."""
AUDIT_SEED = 0


@dataclass(frozen=True)
class Unit:
    """An organism (its folder) under one access."""

    folder: Path
    regime: str

    def address(self) -> dict[str, Any]:
        """Kind, arguments, inputs and code of the cache entry."""
        checks = {check.slug: loaded_code(check.run) for check in installed_checks()}
        settings = {"regime": self.regime, "seed": AUDIT_SEED, "suite": SUITE_SEED, "checks": checks}
        return {
            "kind": "game-audit",
            "args": settings,
            "inputs": [files.sha256_file(self.folder / name) for name in SEEN],
            "code": loaded_code("glasshouse.audit.game.auditing"),
        }


@dataclass(frozen=True)
class Audited:
    """Where a unit's findings lie; `failed` says why there are none. `seconds` are of the processor."""

    unit: Unit
    path: Path
    seconds: float
    failed: str = ""

    def findings(self) -> Findings | None:
        """What the audit said; None where it could not run."""
        return None if self.failed else Findings.model_validate(files.read_json(self.path / FINDINGS))


def units_of(growths: Sequence[Growth], regimes: Sequence[str]) -> list[Unit]:
    """Every grown organism under every access."""
    return [Unit(g.folder, regime) for g in growths if g.folder is not None for regime in regimes]


def audit_all(
    units: Sequence[Unit], *, executor: str | Executor = "local", progress: Progress | None = None
) -> list[Audited]:
    """Every unit audited, in order; finished ones come from the cache."""
    return gathered(get_executor(executor).map(audit_one, units), "auditing", len(units), progress)


def audit_one(unit: Unit) -> Audited:
    """One unit, from the cache or now.

    A model that cannot be audited is `failed`, for good. So is, for this time only, an audit that crashes: it
    found nothing, one bug must not cost the other units their result, and the next game tries again.
    """
    cache, address = Cache(), unit.address()
    work = cache.work(cache.key(**address))
    try:
        path = cache.fetch(**address, build=lambda folder: _audit(unit, folder, work))
    except (GlasshouseError, OSError):
        raise  # of the machine or of this game, not of the audit
    except Exception as error:
        why = f"crashed: {type(error).__name__}: {error} ({_where(error)})"
        notice(f"an audit with {unit.regime} {why}")
        return Audited(unit, unit.folder, 0.0, why)
    return read_audited(unit, path)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def find_audited(unit: Unit) -> Audited | None:
    """The unit's findings if they are in the cache."""
    path = Cache().find(**unit.address())
    return None if path is None else read_audited(unit, path)


def read_audited(unit: Unit, path: Path) -> Audited:
    """What `audit_one` left in the cache."""
    failed = files.read_json(path / FAILED)["why"] if (path / FAILED).is_file() else ""
    return Audited(unit, path, files.read_json(path / COST)["seconds"], failed)


def _audit(unit: Unit, folder: Path, work: Path) -> None:
    started = time.process_time()
    try:
        given = seat(unit.folder, unit.regime)
        audit(
            given.subject, train_data=given.rows, suite=given.suite, out=folder, seed=AUDIT_SEED,
            device="auto", runs=work,
        )  # fmt: skip
        (folder / REPORT).unlink()  # `glasshouse report` renders it again from the findings
    except (AccessError, InputError, NumericalError) as error:
        files.write_json(folder / FAILED, {"why": str(error)})
    files.write_json(folder / COST, {"seconds": round(time.process_time() - started, 1)})
