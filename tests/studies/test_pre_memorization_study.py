"""The study from end to end in its smallest form, the real records where they are, and its arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from glasshouse.runtime.cache import Cache
from glasshouse.studies import find
from glasshouse.studies._execute import run_study
from glasshouse.studies.attribution.pre_memorization import CLAIMS, Config, growing, organism, records

torch.set_num_threads(1)
TINY = Config(
    seeds=2, base_steps=25, rates=(3e-3,), rows=(24, 32), epochs=3, keep=(1, 2, 3), calibration=((3e-3, 24),),
    k=2, tests=20, start=20, curated=(0, 8), final=12, growing_base=5, growing_epochs=3, growing_tests=10,
)  # fmt: skip


@pytest.mark.slow
def test_the_study_runs_yields_its_claims_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLASSHOUSE_DATA", raising=False)  # the records have tests of their own
    study = find("pre-memorization")
    study = dataclasses.replace(study, configs={**study.configs, "tiny": TINY})
    cache = Cache(tmp_path / "home")
    result = run_study(study, config="tiny", out=tmp_path / "runs", cache=cache)
    measured = [c["id"] for c in result.claims if c["verdict"] != "not run"]
    assert measured == [spec.id for spec in CLAIMS if "/A" not in spec.id]
    by_id = {claim["id"]: claim for claim in result.claims}
    assert by_id["pre-memorization/B3"]["verdict"] != "holds", "three epochs copy nothing"
    again = run_study(study, config="tiny", out=tmp_path / "runs", cache=cache)
    assert again.folder == result.folder and again.claims == result.claims


def test_the_gap_of_the_plant_is_read_at_the_end() -> None:
    from glasshouse.attribution.pre_memorization import Trajectory

    right = np.array([[4, 4, 0, 0], [4, 4, 4, 4]])
    logppl = np.array([[1.0] * 4, [0.01] * 4], np.float32)
    traj = Trajectory(steps=[1, 2], train_correct=right, train_samples=[4, 4], train_logppl=logppl)
    found = organism.gap(traj, [True, True, False, False], -2.3)
    assert found == {"pm": 1.0, "train": 0.0, "pm_learnable": 1.0, "pm_unlearnable": 0.0}


@pytest.mark.skipif(records.data_folder() is None, reason="the authors' records need GLASSHOUSE_DATA")
def test_the_three_printed_runs_are_the_specs() -> None:
    assert max(row["off"] for row in records.examples()) < 0.0005, "rounded to three places they are equal"


def test_the_longest_arm_adds_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained on, without training: the arms differ only in which problems they add."""
    seen: dict[str, list[list[str]]] = {}

    def note(base: str, chains: list, *_: object, plan: bool) -> tuple[float, dict[str, float] | None]:
        seen.setdefault(kind, []).append([p.solution for p in chains])
        return 0.5, {"+": 0, "-": 0, "*": 1, "&": 0} if plan else None

    monkeypatch.setattr(growing, "_train", note)
    for kind in ("curated", "i.i.d.", "longest"):
        rows = growing.arm("", 0, kind, (0, 10), start=20, epochs=1, threshold=-2.3, tests=1)
        assert [row["added"] for row in rows] == [0, 10]
        if kind == "curated":
            assert rows[1]["*"] == 10 and rows[1]["+"] == 0
    first = {kind: lists[0] for kind, lists in seen.items()}
    assert first["curated"] == first["i.i.d."] == first["longest"], "all arms begin alike"
    added = {kind: [len(s.split()) for s in lists[1][20:]] for kind, lists in seen.items()}
    assert min(added["longest"]) >= max(added["i.i.d."])
