"""An audit that dies anywhere resumes: the same findings, byte for byte, and at most one step repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.audit.run import audit
from glasshouse.runtime import files

PROMPTS = {"prompts": ["red blue .", "the green"]}
STEPS = ["red", "green", "blue"]


class Killed(BaseException):
    """Like a kill: nothing in the house may catch it and carry on."""


def fail_at(n: int) -> list[str]:
    """Make the n-th fault point (from 1) raise; returns the list of points that were passed."""
    passed: list[str] = []

    def hook(stage: str, path: Path) -> None:
        passed.append(f"{stage} {path.name}")
        if len(passed) == n:
            raise Killed(passed[-1])

    files.fault_hook = hook
    return passed


@pytest.fixture
def suite(house: Path) -> Path:
    path = house / "suite.json"
    path.write_text(json.dumps(PROMPTS))
    return path


def test_a_fault_at_every_write_costs_at_most_one_step(subject, suite, house) -> None:
    import glasshouse_loud_word

    passed = fail_at(0)
    audit(subject, suite=suite, out="whole", runs="runs")
    points = list(passed)
    whole = (house / "whole/findings.json").read_bytes()
    assert {"before findings.json", "after report.html", "before run.json"} <= set(points)
    assert sum("journal" in point for point in points) >= 2 * (len(STEPS) + 2)
    for n, point in enumerate(points, 1):
        shutil.rmtree(house / "runs")
        glasshouse_loud_word.built.clear()
        out = house / f"out{n}"
        fail_at(n)
        with pytest.raises(Killed):
            audit(subject, suite=suite, out=out, runs="runs")
        half = [p.name for p in out.rglob("*")] if out.exists() else []
        assert set(half) <= {"findings.json", "report.html"}, f"{point}: nothing half-written, found {half}"
        files.fault_hook = None
        audit(subject, suite=suite, out=out, runs="runs")
        assert (out / "findings.json").read_bytes() == whole, point
        built = glasshouse_loud_word.built
        assert len(built) <= len(STEPS) + 1, f"{point}: {built}"
        assert sorted(set(built)) == sorted(STEPS)


def test_kill_minus_nine_and_resume(subject, tiny, suite, house, plugged) -> None:
    """A real process killed by the kernel after its second step was committed; another finishes the work."""
    import glasshouse_loud_word

    code = f"""
import os, signal
from pathlib import Path
from glasshouse.runtime import files
from glasshouse.audit.run import audit
import glasshouse_loud_word as plugin

def hook(stage, path):
    if plugin.built == ["red", "green"] and stage == "after":
        Path("built").write_text(" ".join(plugin.built))
        os.kill(os.getpid(), signal.SIGKILL)

files.fault_hook = hook
audit({str(tiny)!r}, suite={str(suite)!r}, out="killed", runs="runs")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugged), *sys.path])}
    dead = subprocess.run(
        [sys.executable, "-c", code], cwd=house, env=environment, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert (house / "built").read_text() == "red green" and not (house / "killed").exists()
    audit(subject, suite=suite, out="killed", runs="runs")
    assert glasshouse_loud_word.built == ["blue"], "both committed steps were read back"
    audit(subject, suite=suite, out="whole", runs="other")
    assert (house / "killed/findings.json").read_bytes() == (house / "whole/findings.json").read_bytes()
