"""The same scores on one process, on several, on ranks and on Ray; kills cost a shard and change nothing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attribution_models import tiny_gpt2, token_rows
from deadly_loss import PASSES, ROWS, SHARDS, Noted, scores, seen, task

from glasshouse.attribution import EKFAC
from glasshouse.runtime.errors import RunError
from glasshouse.runtime.executors import get_executor

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra [ray])"
)
HERE = Path(__file__).parent

RANKS = """
import os, sys
sys.path.insert(0, {here!r})
import numpy as np
from deadly_loss import scores, task

found = scores(*task(), "torchrun:2", {folder!r} + "/store")
np.save({folder!r} + "/scores-" + os.environ["RANK"] + ".npy", found)
"""


@pytest.fixture(scope="module", autouse=True)
def no_cluster_left() -> Iterator[None]:
    yield
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


@pytest.mark.parametrize("executor", ["processes:2", pytest.param("ray:2", marks=needs_ray)])
def test_workers_give_the_numbers_of_one_process(executor: str, importable: None) -> None:
    assert np.array_equal(scores(*task(), executor), scores(*task(), "local"))


@needs_ray
def test_a_language_model_on_ray(importable: None) -> None:
    model, rows, there = tiny_gpt2(), token_rows(9), get_executor("ray:2")
    alone, many = EKFAC(shards=4).fit(model, rows), EKFAC(shards=4).fit(model, rows, executor=there)
    asked = token_rows(2, seed=5)
    assert np.array_equal(many.score(asked, executor=there).scores, alone.score(asked).scores)
    assert np.array_equal(many.self_score(executor=there), alone.self_score())


def test_ranks_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    """Both ranks write into one store, both end with the scores of one process, and the store serves it."""
    script = tmp_path / "script.py"
    script.write_text(RANKS.format(here=str(HERE), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script)], env=quiet(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = scores(*task(), "local")
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"scores-{rank}.npy"), alone)
    assert np.array_equal(scores(*task(), "local", tmp_path / "store"), alone)


@needs_ray
def test_a_killed_ray_worker_costs_one_shard(tmp_path: Path, importable: None) -> None:
    model, rows = task()
    killed = scores(model, rows, "ray:2", objective=Noted(tmp_path, dies="13"))
    assert np.array_equal(killed, scores(model, rows, "local", objective=Noted(tmp_path)))
    assert 0 < len(seen(tmp_path)) - PASSES * ROWS <= ROWS // SHARDS, "rows that were taken up twice"


@pytest.mark.slow
def test_a_killed_process_is_said_and_the_store_goes_on(tmp_path: Path, importable: None) -> None:
    """A pool is broken by a kill: the fit says so, and the next one repeats what was in flight only."""
    model, rows = task()
    loss, store = Noted(tmp_path, dies="13"), tmp_path / "store"
    with pytest.raises(RunError, match="worker process died"):
        scores(model, rows, "processes:1", store, objective=loss)
    again = scores(model, rows, "processes:1", store, objective=loss)
    assert np.array_equal(again, scores(model, rows, "local", objective=loss))
    # Row 13 is in shard 3; shards 0 to 2 may still have been in flight when the pool broke.
    assert 0 < len(seen(tmp_path)) - PASSES * ROWS <= 4 * (ROWS // SHARDS)


WORK = """
import sys
sys.path.insert(0, {here!r})
import numpy as np
from deadly_loss import scores, task
from glasshouse.attribution.evaluate import RetrainBank
from glasshouse.runtime import files

def bank(folder):
    def measure(rows, seed):
        g = np.random.default_rng(seed)
        return np.array([sum(rows), g.normal()]) / 7
    return RetrainBank.build(measure, 8, subsets=4, seeds=2, store=folder + "/bank").values

def trace(folder):
    return scores(*task(), "local", folder)
"""

KILL = """
import os, signal

def hook(stage, path):
    global left
    if stage == "after" and path.name == {name!r}:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

left = {times}
files.fault_hook = hook
{what}({folder!r})
"""


@pytest.mark.parametrize(
    ("what", "name", "times"),
    [
        ("trace", "covariance.safetensors", 3),
        ("trace", "scores-00002.safetensors", 1),
        ("bank", "f-0002-01.npy", 1),
    ],
)
def test_kill_minus_nine_and_run_again(tmp_path: Path, what: str, name: str, times: int) -> None:
    """A real process is killed by the kernel in fit, score or bank; what it left makes the same numbers."""
    space: dict = {}
    exec(WORK.format(here=str(HERE)), space)
    code = (WORK + KILL).format(here=str(HERE), name=name, times=times, what=what, folder=str(tmp_path / "k"))
    dead = subprocess.run([sys.executable, "-c", code], env=quiet(), capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    left = {path.name for path in (tmp_path / "k").rglob("*") if path.is_file()}
    assert name in left and not [part for part in left if part.endswith(".part")]
    assert np.array_equal(space[what](str(tmp_path / "k")), space[what](str(tmp_path / "calm")))


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLASSHOUSE_PROGRESS": "off"}
