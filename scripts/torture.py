"""Kill audits and traces at random moments, again and again, and compare what they finally say.

`python scripts/torture.py --kills 30 [--seed 0]`: half of the kills hit audits, half traces, of a small model
grown first. A victim is started, killed with SIGKILL after a random time and started again, until it ends by
itself or the kills are used up; then it is run to its end. Its findings (or scores) must equal those of an
undisturbed run byte for byte, and whatever a killed process left in the output folder must be whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GLASSHOUSE = [sys.executable, "-m", "glasshouse"]
LONGEST = 1800
"""Seconds after which an undisturbed run counts as hung."""


@dataclass(frozen=True)
class Victim:
    """A command that writes `result` into `out/`, and all the files that may lie there."""

    name: str
    command: list[str]
    result: str
    files: frozenset[str]


def main() -> int:
    """Torture both and return 1 when any result differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="how many in all (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    options = parser.parse_args()
    draw, failures = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="glasshouse-torture-") as scratch:
        root = Path(scratch)
        say("growing the organism `tiny`")
        _run([*GLASSHOUSE, "grow", "tiny", "--out", "model"], root)
        shares = (options.kills - options.kills // 2, options.kills // 2)
        for victim, kills in zip(_victims(root / "model"), shares, strict=True):
            failures += torture(victim, kills, root, draw)
    say("every killed run gave the undisturbed result" if not failures else f"{failures} FAILURES")
    return 1 if failures else 0


def torture(victim: Victim, kills: int, root: Path, draw: random.Random) -> int:
    """Spend the kills on one kind of victim; returns how many runs or leftovers were wrong."""
    start = time.monotonic()
    whole = _fresh(root / victim.name)
    _run(victim.command, whole)
    seconds, expected = time.monotonic() - start, _result(victim, whole)
    say(f"{victim.name}: {seconds:.0f} s undisturbed, result {_digest(expected)}")
    done = runs = failures = 0
    while done < kills:
        work, wounds, start = _fresh(root / victim.name), 0, time.monotonic()
        while done < kills and _killed(victim.command, work, draw.uniform(0.0, seconds)):
            done, wounds = done + 1, wounds + 1
            failures += _complain(victim, f"kill {done}", _left_wrong(victim, work, expected))
        if not wounds:  # the machine has become faster than it was: aim earlier
            seconds = min(seconds, time.monotonic() - start)
        _run(victim.command, work)
        runs += 1
        wrong = [] if _result(victim, work) == expected else ["the result DIFFERS from the undisturbed run"]
        failures += _complain(victim, f"run {runs}", wrong + _left_wrong(victim, work, expected))
        say(f"{victim.name}: run {runs} ended after {wounds} kills ({done} of {kills})")
    return failures


def say(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _victims(model: Path) -> list[Victim]:
    rows = str(model / "rows.jsonl")
    questions = model.parent / "questions.jsonl"
    _write_questions(model / "rows.jsonl", questions)
    audit = [*GLASSHOUSE, "audit", str(model), "--train-data", rows, "--out", "out"]
    trace = [
        *GLASSHOUSE,
        "trace",
        "--model",
        str(model),
        "--train",
        rows,
        "--query",
        str(questions),
        "--out",
        "out",
    ]
    return [
        Victim("audit", audit, "findings.json", frozenset({"findings.json", "report.html", "graded.json"})),
        Victim("trace", trace, "scores.parquet", frozenset({"scores.parquet", "trace.json", "trace.html"})),
    ]


def _write_questions(rows: Path, questions: Path) -> None:
    """The first two rows as questions."""
    lines = []
    for line in rows.read_text(encoding="utf-8").splitlines()[:2]:
        asked, told = json.loads(line)["turns"][:2]
        lines.append(json.dumps({"prompt": asked["text"], "completion": told["text"]}))
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fresh(work: Path) -> Path:
    """An empty folder, always in the same place: its path must not be what makes results equal or differ."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def _killed(command: list[str], work: Path, after: float) -> bool:
    """Start the command and kill it after so many seconds; False when it ended well before."""
    with open(work / "stderr.txt", "wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=_env(work),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
    if code not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {code}:\n{(work / 'stderr.txt').read_text()[-2000:]}")
    return False


def _run(command: list[str], work: Path) -> None:
    done = subprocess.run(command, cwd=work, env=_env(work), capture_output=True, text=True, timeout=LONGEST)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _left_wrong(victim: Victim, work: Path, expected: bytes) -> list[str]:
    """What lies in the output folder and should not: unknown names, results that are not whole."""
    out = work / "out"
    # A process that is killed cannot remove the temporary file it was writing; it has a name no reader takes.
    names = (
        {path.name for path in out.iterdir() if not path.name.endswith(".part")} if out.exists() else set()
    )
    wrong = [f"{name} does not belong there" for name in sorted(names - victim.files)]
    if victim.result in names and _result(victim, work) != expected:
        wrong.append(f"{victim.result} is not whole")
    return wrong


def _complain(victim: Victim, when: str, wrong: list[str]) -> int:
    for what in wrong:
        say(f"{victim.name}: {when}: {what}")
    return len(wrong)


def _result(victim: Victim, work: Path) -> bytes:
    return (work / "out" / victim.result).read_bytes()


def _env(work: Path) -> dict[str, str]:
    home = {"GLASSHOUSE_HOME": str(work / "home"), "GLASSHOUSE_PROGRESS": "off", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **home}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
