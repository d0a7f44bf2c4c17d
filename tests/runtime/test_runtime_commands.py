"""`glasshouse doctor` and `glasshouse cache`, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glasshouse.cli import run
from glasshouse.runtime import doctor
from glasshouse.runtime.cache import Cache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    made = Cache()
    for index in range(3):
        made.fetch(
            "model", {"index": index}, lambda folder: (folder / "w").write_bytes(bytes(10_000)) and None
        )
    made.fetch("scores", {"name": "x\x1b[31m"}, lambda folder: (folder / "s").write_text("1") and None)
    return made


def test_ls_prints_what_is_there(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "ls"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 5 and "4 entries" in out and str(cache.root) in out and "\x1b" not in out
    assert run(["cache", "ls", "--json", "--kind", "model"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["args"] for entry in entries] == [{"index": 2}, {"index": 1}, {"index": 0}]


def test_gc_without_options_removes_nothing(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "gc"]) == 0
    assert "0 entries removed" in capsys.readouterr().out and len(cache.ls()) == 4


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--all"], 0),
        (["--all", "--kind", "model"], 1),
        (["--max-size", "22KB", "--kind", "model"], 3),
        (["--max-size", "0.022M"], 3),
        (["--older-than", "0"], 0),
        (["--older-than", "30"], 4),
    ],
)
def test_gc_options(cache: Cache, capsys: pytest.CaptureFixture[str], options: list[str], left: int) -> None:
    assert run(["cache", "gc", "--json", *options]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4 - left == 4 - len(cache.ls())


def test_a_size_that_is_none_is_one_sentence(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "gc", "--max-size", "much"]) == 2
    assert capsys.readouterr().err == "'much' is not a size; write it like 500MB or 2GB.\n"
    assert len(cache.ls()) == 4


def test_doctor_in_text_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["doctor", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert run(["doctor"]) == 0
    assert [line.startswith(("ok ", "- ")) for line in capsys.readouterr().out.splitlines()] == [True] * len(
        names
    )
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    assert run(["doctor"]) == 1
    assert "FIX  no-such-package" in capsys.readouterr().out
