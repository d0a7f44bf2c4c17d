"""Report rows of the ledger that a benchmark measures: the same JSON as a study's claims.

    python -m benchmarks annotators --ledger docs/ledger

A report row has no threshold. Its estimate is the mean over the repeats of this run with Student's interval;
machine, versions and every other row that was measured are stored beside it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import Row, published

VERSIONS = ("glasshouse", "torch", "transformers", "trl", "inspect-ai", "numpy")


@dataclass(frozen=True)
class Report:
    """One report row: `case` names the row whose repeats are the estimate, `scale` makes its unit."""

    id: str
    case: str
    unit: str
    scale: float
    measures: tuple[str, ...]
    """The modules whose code is measured: the row is stale when they change."""


def store(folder: Path, report: Report, rows: Sequence[Row], *, repeats: int, threads: int) -> Path:
    """Write `<folder>/<study>.json`, return the path. Raises ValueError where the case was not measured."""
    from glasshouse.evidence._ledger_check import measured_code
    from glasshouse.evidence.claims import Claim, ClaimSpec, Threshold
    from glasshouse.evidence.ledger import declared, write_claims
    from glasshouse.statistics import t_interval

    [known] = [entry for entry in declared() if entry.id == report.id]
    measured = next((row for row in rows if row.case == report.case and row.ours_runs), None)
    if measured is None:
        raise ValueError(f"{report.id} is about {report.case!r}, which was not measured")
    estimate = t_interval([seconds * report.scale for seconds in measured.ours_runs])
    spec = ClaimSpec(report.id, f"{known.claim} In {report.unit}: {report.case}.", Threshold("report"))
    record = {
        "kind": "benchmark",
        "study": known.study,
        "wing": known.wing,
        "run": f"python -m benchmarks {known.study}",
        "config": {"name": "benchmark", "values": {"repeats": repeats, "threads": threads}},
        "seeds": [],
        "device": "cpu",
        "machine": machine(),
        "code": measured_code(report.measures),
        "measures": list(report.measures),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in VERSIONS},
        "peers": sorted({row.peer for row in rows if row.peer_seconds is not None}),
        "rows": [{**published(row), "ours_runs": row.ours_runs, "peer_runs": row.peer_runs} for row in rows],
        "claims": [Claim(spec, estimate, note=_told(rows, report)).to_json()],
    }
    return write_claims(folder, record)


def machine() -> str:
    """Processor and cores of this machine, in words."""
    from glasshouse.runtime.doctor import cores

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {cores()} cores"


def _told(rows: Sequence[Row], report: Report) -> str:
    """Every row in the unit of the estimate: ours, the peer's mean over the repeats, and how they agree."""
    parts = []
    for row in rows:
        ours = _mean(row.ours_runs or (row.ours_seconds,), report.scale)
        peer = _mean(row.peer_runs or (row.peer_seconds,), report.scale)
        beside = f", {row.peer} {peer}" if peer else f", {row.peer}: {row.reason}" if row.reason else ""
        parts.append(
            f"{row.case}: ours {ours or 'not measured'}{beside}"
            + (f" ({row.agreement})" if row.agreement else "")
        )
    return f"CPU time in {report.unit}. " + "; ".join(parts)


def _mean(runs: Sequence[float | None], scale: float) -> str:
    known = [x * scale for x in runs if x is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
