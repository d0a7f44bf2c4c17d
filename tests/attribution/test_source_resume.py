"""Fits and score passes of SOURCE killed at any write go on where they were, with identical results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_runs import one_stage, two_stages

from glasshouse.attribution import Checkpoint
from glasshouse.attribution.checkpoints import RateLog, TrainingRun
from glasshouse.attribution.source import SOURCE
from glasshouse.attribution.store import write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError, StaleError
from glasshouse.runtime.executors import get_executor


class Counting:
    """An executor that runs here and remembers what it was given."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def map(self, fn: Callable[[Any], Any], shards: Iterable[Any]) -> Iterator[Any]:
        for shard in shards:
            self.done.append(f"{fn.func.__name__} {shard[0]}")  # type: ignore[attr-defined]
            yield fn(shard)


@pytest.fixture(scope="module")
def run():
    return two_stages(steps=8, count=2)


def work(run, store: Path | None, executor: Any = None, shards: int = 2, **options: Any) -> np.ndarray:
    """Fit and score; what is killed and resumed."""
    method = SOURCE(run.points, segments=2, shards=shards, **options)
    method.fit(run.final, run.rows, store=store, executor=executor)
    asked = run.rows["first"].subset([0, 1])
    return method.score(asked, "margin", store=store, executor=executor).scores


def test_a_fault_at_every_write_costs_at_most_one_shard(run, tmp_path: Path, faults) -> None:
    whole, points = Counting(), faults.at()
    wanted = work(run, tmp_path / "whole", whole)
    faults.off()
    # 4 checkpoints with two shards each of covariance, lambda and scores
    assert len(whole.done) == 4 * 3 * 2
    for n in range(1, len(points) + 1, 9):
        store, counting = tmp_path / "store", Counting()
        faults.at(n)
        with pytest.raises(faults.Killed):
            work(run, store, counting)
        faults.off()
        np.testing.assert_array_equal(work(run, store, counting), wanted)
        assert len(counting.done) <= len(whole.done) + 1, points[n - 1]
        shutil.rmtree(store)


def test_a_finished_store_needs_no_pass_and_no_checkpoint(run, tmp_path: Path, monkeypatch) -> None:
    from glasshouse.attribution.source import curvature

    wanted = work(run, tmp_path)
    monkeypatch.setattr(curvature.Working, "load", lambda self, k: self.model)
    counting = Counting()
    np.testing.assert_array_equal(work(run, tmp_path, counting), wanted)
    assert counting.done == []


def test_kill_minus_nine_and_resume(run, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch; torch.set_num_threads(1)
from glasshouse.runtime import files
from source_runs import two_stages
from test_source_resume import work

def hook(stage, path):
    if stage == "after" and path.name == "scores-00-001-00000.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)

run = two_stages(steps=8, count=2)
files.fault_hook = hook
from pathlib import Path
work(run, Path("store"))
"""
    dead = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    counting = Counting()
    found = work(run, tmp_path / "store", counting)
    # Segments are scored from the last back: only the last shard of the second checkpoint was not stored.
    assert counting.done == ["score_shard 15"]
    np.testing.assert_array_equal(found, work(run, tmp_path / "whole"))


def test_shards_and_processes_change_nothing_but_rounding(run) -> None:
    one = work(run, None, shards=1)
    np.testing.assert_allclose(work(run, None, shards=3), one, rtol=1e-3, atol=1e-5 * np.abs(one).max())


@pytest.mark.slow
def test_processes_give_the_same_bytes() -> None:
    """One checkpoint: every pass starts two fresh processes."""
    one = one_stage(steps=4, count=1)
    method = SOURCE(one.points, shards=2)
    found = [
        method.fit(one.final, one.only, executor=executor).score(one.only.subset([0]), executor=executor)
        for executor in (None, get_executor("processes:2"))
    ]
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


def test_another_checkpoint_or_option_is_refused_by_the_store(run, tmp_path: Path) -> None:
    work(run, tmp_path)
    with pytest.raises(StaleError, match="options"):
        work(run, tmp_path, momentum=0.5)
    other = two_stages(steps=8, count=2, rate=0.05)
    run.points, kept = [*other.points[:1], *run.points[1:]], run.points
    try:
        with pytest.raises(StaleError, match="options"):
            work(run, tmp_path)
    finally:
        run.points = kept


@pytest.mark.parametrize("form", ["sgd", "hybrid", "factored"])
def test_saved_and_loaded_methods_answer_alike(form: str, tmp_path: Path) -> None:
    run = one_stage(steps=8, count=2, adam=form != "sgd")
    how = {} if form == "sgd" else {"optimizer": "adam", "adam_form": form}
    method = SOURCE(run.points, segments=2, lr_log=run.rates, **how).fit(run.final, run.only)
    asked = run.only.subset([0, 1])
    own = method.score(asked, "margin")
    method.save(tmp_path)
    again = SOURCE.load(tmp_path, run.final, run.only)
    found = again.score(asked, "margin")
    np.testing.assert_array_equal(found.scores, own.scores)
    assert found.meta == own.meta and list(again.checkpoints) == run.points
    assert again.schedule().equals(method.schedule())


def test_a_loaded_method_checks_its_checkpoints(tmp_path: Path) -> None:
    run = one_stage(steps=8, count=2)
    states = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for path, point in zip(states, run.points, strict=True):
        write_tensors(path, point.state(), {})
    points = [Checkpoint(path, p.step, 0.1) for path, p in zip(states, run.points, strict=True)]
    rates = RateLog(dict(enumerate(run.rates, 1)))
    method = SOURCE(TrainingRun(tuple(points), rates), segments=2).fit(run.final, run.only)
    method.save(tmp_path / "saved")
    again = SOURCE.load(tmp_path / "saved", run.final, run.only)
    assert isinstance(again.checkpoints, TrainingRun) and again.segments_ == method.segments_
    write_tensors(states[0], run.start.state_dict(), {})
    with pytest.raises(StaleError, match="weights have changed"):
        SOURCE.load(tmp_path / "saved", run.final, run.only)
    write_tensors(states[0], run.points[0].state(), {})
    with pytest.raises(StaleError, match="another data"):
        SOURCE.load(tmp_path / "saved", run.final, run.only.subset(range(30)))
    with pytest.raises(StaleError, match="another model"):
        SOURCE.load(tmp_path / "saved", run.start, run.only)
    files.write_json(tmp_path / "saved" / "manifest.json", {"options": {}, "model_hash": "", "data_hash": ""})
    with pytest.raises(InputError, match="not of SOURCE"):
        SOURCE.load(tmp_path / "saved", run.final, run.only)


def test_a_damaged_factor_is_refused(tmp_path: Path) -> None:
    run = one_stage(steps=8, count=2)
    SOURCE(run.points, segments=1).fit(run.final, run.only).save(tmp_path)
    place = tmp_path / "segment-00" / "0.safetensors"
    write_tensors(place, {"Qa": torch.ones(1)}, {})
    with pytest.raises(RunError, match="holds no factor"):
        SOURCE.load(tmp_path, run.final, run.only)
    place.unlink()
    with pytest.raises(InputError, match="a factor is gone"):
        SOURCE.load(tmp_path, run.final, run.only)
