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

PROMPTS = {"prompts": ["red blue .", "the green"]}
STEPS = ["red", "green", "blue"]


@pytest.fixture
def suite(house: Path) -> Path:
    path = house / "suite.json"
    path.write_text(json.dumps(PROMPTS))
    return path


def test_a_fault_at_every_write_costs_at_most_one_step(subject, suite, house, monkeypatch, faults) -> None:
    import glasshouse_loud_word

    def audit_from_scratch(name: str, *, cold: bool = False) -> Path:
        shutil.rmtree(house / "runs", ignore_errors=True)
        glasshouse_loud_word.built.clear()
        if cold:  # the cache's own writes (the stored self-test) are store writes too
            monkeypatch.setenv("GLASSHOUSE_HOME", str(house / f"home-{name}"))
        audit(subject, suite=suite, out=name, runs="runs")
        return house / name / "findings.json"

    cold, warm = faults.at(), []
    whole = audit_from_scratch("whole", cold=True).read_bytes()
    cold, warm = list(cold), faults.at()
    audit_from_scratch("warm")
    warm = list(warm)
    assert {"before findings.json", "after report.html", "before run.json"} <= set(warm)
    assert sum("journal" in point for point in warm) >= 2 * (len(STEPS) + 2)
    in_the_cache = [n for n, point in enumerate(cold, 1) if point not in warm]
    assert in_the_cache, "a cold cache is written to"
    home = os.environ["GLASSHOUSE_HOME"]
    for n, points in [*((n, warm) for n in range(1, len(warm) + 1)), *((n, cold) for n in in_the_cache)]:
        name = f"out-{'cold' if points is cold else 'warm'}-{n}"
        monkeypatch.setenv("GLASSHOUSE_HOME", home)
        faults.at(n)
        with pytest.raises(faults.Killed):
            audit_from_scratch(name, cold=points is cold)
        left = [p.name for p in (house / name).rglob("*")]
        assert set(left) <= {"findings.json", "report.html"}, f"{points[n - 1]}: half-written {left}"
        faults.off()
        audit(subject, suite=suite, out=name, runs="runs")
        assert (house / name / "findings.json").read_bytes() == whole, points[n - 1]
        built = glasshouse_loud_word.built
        assert len(built) <= len(STEPS) + 1, f"{points[n - 1]}: {built}"
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
