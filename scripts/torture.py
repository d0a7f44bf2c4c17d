"""Kill an audit and a trace at random moments, again and again, and compare what they finally say.

`python scripts/torture.py --kills 30 [--seed 0]`: half of the kills hit audits, half traces. Each victim is
started, killed with SIGKILL after a random time, and started again until it ends by itself; its findings (or
scores) must equal those of an undisturbed run byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GLASSHOUSE = [sys.executable, "-m", "glasshouse"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _run([*GLASSHOUSE, "grow", "tiny", "--out", str(root / "model")], root, root / "home")
        _queries(root)
        failures = 0
        for name, command, result in _victims(root):
            undisturbed, seconds = _whole(command, root / f"{name}-plain")
            print(f"{name}: {seconds:.1f} s undisturbed, result {_digest(result(root / f'{name}-plain'))}")
            failures += _kill_until(
                options.kills // 2, name, command, result, undisturbed, seconds, root, draw
            )
    print("every killed run gave the undisturbed result" if not failures else f"{failures} runs DIFFERED")
    return 1 if failures else 0


def _victims(root: Path):
    model, rows = str(root / "model"), str(root / "model" / "rows.jsonl")
    audit = [*GLASSHOUSE, "audit", model, "--train-data", rows, "--out", "out"]
    trace = [
        *GLASSHOUSE,
        "trace",
        "--model",
        model,
        "--train",
        rows,
        "--query",
        str(root / "q.jsonl"),
        "--out",
        "out",
    ]
    yield "audit", audit, lambda work: (work / "out" / "findings.json").read_bytes()
    yield "trace", trace, lambda work: (work / "out" / "scores.parquet").read_bytes()


def _kill_until(kills, name, command, result, expected, seconds, root, draw) -> int:
    failures = done = round_ = 0
    while done < kills:
        work = root / f"{name}-{round_}"
        round_ += 1
        while done < kills and not _finished_before_kill(command, work, draw.uniform(0.05, 1.0) * seconds):
            done += 1
            print(f"{name}: kill {done} of {kills}")
        _whole(command, work)
        if result(work) != expected:
            failures += 1
            print(f"{name}: run {round_} DIFFERS from the undisturbed run")
    return failures


def _finished_before_kill(command: list[str], work: Path, after: float) -> bool:
    work.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command, cwd=work, env=_env(work / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(timeout=after)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def _whole(command: list[str], work: Path) -> tuple[bytes, float]:
    work.mkdir(exist_ok=True)
    start = time.monotonic()
    _run(command, work, work / "home")
    kind = "findings.json" if "audit" in command else "scores.parquet"
    return (work / "out" / kind).read_bytes(), time.monotonic() - start


def _run(command: list[str], cwd: Path, home: Path) -> None:
    done = subprocess.run(command, cwd=cwd, env=_env(home), capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _env(home: Path) -> dict[str, str]:
    return {**os.environ, "GLASSHOUSE_HOME": str(home), "GLASSHOUSE_PROGRESS": "off", "HF_HUB_OFFLINE": "1"}


def _queries(root: Path) -> None:
    rows = [json.loads(line) for line in (root / "model" / "rows.jsonl").open()][:2]
    lines = [json.dumps({"prompt": row["turns"][0][1], "completion": row["turns"][1][1]}) for row in rows]
    (root / "q.jsonl").write_text("\n".join(lines) + "\n")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
