"""What every comparison shares: peers' environments, worker processes, the floor of this machine, the table.

A worker is a script run as its own process (`python worker.py CASE_DIR OUT_DIR`), ours with this
interpreter and the peer's with the interpreter of its own environment. It reads the arrays in CASE_DIR and
leaves `stages.json` ({stage: CPU seconds}) and arrays in OUT_DIR. Imports are not part of any stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("GLASSHOUSE_PEERS", ROOT / ".bench"))
"""One environment per peer, as `make bench` builds them."""


UNPUBLISHED = ("peer_floor_share", "ours_runs", "peer_runs")


@dataclass(frozen=True)
class Row:
    """One stage of one case. Seconds are CPU seconds; `ratio` = peer / ours; shares are floor / measured."""

    case: str
    stage: str
    ours_seconds: float | None
    peer: str
    peer_seconds: float | None
    ratio: float | None
    floor_share: float | None
    agreement: str | None
    reason: str | None
    peer_floor_share: float | None = None
    ours_runs: tuple[float, ...] = ()
    """Seconds of every repeat; `ours_seconds` is the smallest."""
    peer_runs: tuple[float, ...] = ()


def peer_python(name: str) -> tuple[Path | None, str]:
    """The interpreter of a peer's environment, or the reason why it is absent."""
    python = PEERS / name / "bin" / "python"
    if python.exists():
        return python, ""
    return None, f"no environment {PEERS.name}/{name}: run `make bench` to build it"


def run_worker(
    python: Path | str, worker: str, case: Path, out: Path, *arguments: str, threads: int
) -> dict[str, float]:
    """Run one worker process and return its stages. Raises RuntimeError with the end of its stderr."""
    out.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "BENCH_THREADS": str(threads),
        "GLASSHOUSE_PROGRESS": "off",
    }
    script = ROOT / "benchmarks" / "workers" / f"{worker}.py"
    done = subprocess.run(
        [str(python), str(script), str(case), str(out), *arguments],
        env=env,
        cwd=out,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{worker} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return json.loads((out / "stages.json").read_text())


def best_stages(runs: list[dict[str, float]]) -> dict[str, float]:
    """The smallest time of each stage over runs."""
    return {stage: min(run[stage] for run in runs) for stage in runs[0]}


def gemm_peak(threads: int, dtype: str = "float32", size: int = 1536, repeats: int = 6) -> float:
    """FLOP per CPU second of a large matrix product here and now: the floor's denominator."""
    import torch

    torch.set_num_threads(threads)
    a = torch.randn(size, size, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def rows_to_json(rows: list[Row]) -> str:
    """The published form of all rows."""
    return json.dumps({"rows": [published(row) for row in rows]}, indent=2)


def published(row: Row) -> dict[str, object]:
    """The columns of a row without the peer's own share of the floor and the single repeats."""
    return {key: value for key, value in asdict(row).items() if key not in UNPUBLISHED}


def print_rows(rows: list[Row]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ratio = peer / ours; floor share = floor time / measured time")
    for column in (
        "case",
        "stage",
        "ours s",
        "peer",
        "peer s",
        "ratio",
        "our floor share",
        "peer's",
        "agreement",
    ):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.case, row.stage, _cell(row.ours_seconds), row.peer, _cell(row.peer_seconds),
            _cell(row.ratio, 2),
            _cell(row.floor_share, 2), _cell(row.peer_floor_share, 2), row.agreement or row.reason or "",
        )  # fmt: skip
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)


def _cell(x: float | None, digits: int = 4) -> str:
    return "-" if x is None else f"{x:.{digits}f}"
