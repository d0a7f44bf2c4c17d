"""Comparing a growth with the shipped organism: equal, other bytes but close, too far, another seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from glasshouse.cli import run
from glasshouse.organisms.regrowth import MARGIN, compare, shipped
from glasshouse.organisms.resident import organism_folder
from glasshouse.training.organisms import Truth


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(organism_folder("resident"), tmp_path / "copy"))


def _change(folder: Path, *, rate: float | None = None, seed: int | None = None) -> None:
    """Other weights, and if asked another trigger rate or seed."""
    with open(folder / "model.safetensors", "ab") as handle:
        handle.write(b"x")
    truth = json.loads((folder / "truth.json").read_text())
    if rate is not None:
        truth["installed"]["trigger"].update(value=rate, low=rate, high=rate)
    if seed is not None:
        truth["seed"] = seed
    (folder / "truth.json").write_text(json.dumps(truth))


def test_the_same_weights_agree(copy: Path):
    report = compare(copy, shipped("resident"))
    assert report.equal_bytes and report.agrees
    assert "last bit" in report.lines()[-1]


@pytest.mark.parametrize(("moved", "agrees"), [(0.8 * MARGIN, True), (1.2 * MARGIN, False)])
def test_other_weights_agree_within_the_margin_only(copy: Path, moved: float, agrees: bool):
    known = Truth.read(copy / "truth.json").installed["trigger"].value
    _change(copy, rate=known - moved)
    report = compare(copy, shipped("resident"))
    assert not report.equal_bytes
    assert report.agrees == agrees
    assert ("MORE THAN" in report.lines()[-1]) != agrees


def test_another_seed_promises_nothing(copy: Path):
    _change(copy, rate=0.0, seed=99)
    report = compare(copy, shipped("resident"))
    assert report.agrees and not report.same_seed
    assert shipped("nobody") is None


def test_unknown_organism_and_existing_folder_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["grow", "nobody", "--out", str(tmp_path / "new")]) == 2
    assert "nobody" in capsys.readouterr().err
    assert run(["grow", "resident", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
