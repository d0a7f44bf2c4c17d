"""The executor `ray` keeps the promises of `local` and `processes`, and outlives the death of its workers.

Ray is an extra: without it only the sentence that says so is tested.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.runtime.errors import InputError, MissingDependency, RunError
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.ray_executor import LIVES, RayExecutor
from glasshouse.runtime.runs import Run

HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="Ray is not installed (the extra [ray])")

MODULE = """
import os
import signal
from pathlib import Path

from glasshouse.runtime.errors import NumericalError

def partial_sum(rows):
    return sum(0.1 * row for row in rows)

def about(_):
    import torch
    return torch.get_num_threads(), os.environ["GLASSHOUSE_PROGRESS"], os.getpid()

def fail(row):
    if row == 2:
        raise NumericalError("the loss is NaN", where="row 2", fix="lower the step size")
    return row

def bug(row):
    raise KeyError(row)

class Heavy:
    '''Counts in a folder how often it is unpickled, and which shards were started; dies where told.'''

    def __init__(self, folder, dies=(), always=False):
        self.folder, self.dies, self.always = Path(folder), dies, always

    def __setstate__(self, state):
        self.__dict__.update(state)
        note(self.folder / "unpickled", os.getpid())

    def __call__(self, row):
        note(self.folder / "started", row)
        dead = self.folder / f"dead-{row}"
        if row in self.dies and (self.always or not dead.exists()):
            dead.touch()
            while not self.always and not (self.folder / "read").exists():
                pass  # until the program has the results of the shards before this one
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.1 * row

def note(path, what):
    with open(path, "a") as handle:
        handle.write(f"{what}\\n")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """A module that workers can import too, since they get the path of the program."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "ray_shard_work.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import ray_shard_work  # type: ignore[import-not-found]

    yield ray_shard_work
    sys.path.remove(str(folder))
    del sys.modules["ray_shard_work"]


@pytest.fixture(scope="module")
def two(work: types.ModuleType) -> Iterator[Executor]:
    """One executor for all tests of this file: a cluster and its workers take seconds to start."""
    made = get_executor("ray:2")
    assert isinstance(made, RayExecutor)
    yield made
    import ray

    ray.shutdown()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@needs_ray
def test_it_is_found_by_its_name_and_is_an_executor(two: Executor) -> None:
    assert isinstance(two, RayExecutor) and two.workers == 2 and isinstance(two, Executor)


@needs_ray
def test_results_come_in_order_and_sums_round_as_here(two: Executor, work: types.ModuleType) -> None:
    shards = [list(range(100))[k::9] for k in range(9)]
    assert list(two.map(math.sqrt, iter(range(9)))) == [math.sqrt(i) for i in range(9)]
    assert list(two.map(math.sqrt, [])) == []
    here = get_executor("local").map_reduce(work.partial_sum, shards, float.__add__)
    assert two.map_reduce(work.partial_sum, shards, float.__add__) == here


@needs_ray
def test_errors_cross_as_they_are(two: Executor, work: types.ModuleType) -> None:
    results = two.map(work.fail, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ArithmeticError, match=r"^row 2: the loss is NaN; lower the step size\.$"):
        next(results)
    with pytest.raises(KeyError, match="5"):
        list(two.map(work.bug, [5]))


@needs_ray
def test_stored_shards_are_not_computed_again(two: Executor, work: types.ModuleType, tmp_path: Path) -> None:
    with Run.open(tmp_path / "runs", "sharded", {}) as run:
        with pytest.raises(ArithmeticError):
            two.map_reduce(work.fail, [0, 1, 2, 3], int.__add__, store=run.step)
        assert run.steps == {"shard/0": 0, "shard/1": 1}
        assert two.map_reduce(math.sqrt, [0, 1, 4, 9], lambda a, b: a + b, store=run.step) == 0 + 1 + 2 + 3


@needs_ray
def test_workers_are_quiet_processes_of_one_thread(two: Executor, work: types.ModuleType) -> None:
    found = list(two.map(work.about, range(4)))
    assert {(threads, progress) for threads, progress, _ in found} == {(1, "off")}
    pids = {pid for _, _, pid in found}
    assert len(pids) == 2 and os.getpid() not in pids


@needs_ray
def test_the_function_travels_once_to_each_worker(
    two: Executor, work: types.ModuleType, tmp_path: Path
) -> None:
    assert list(two.map(work.Heavy(tmp_path), range(8))) == [0.1 * row for row in range(8)]
    arrived = lines(tmp_path / "unpickled")
    assert len(arrived) == len(set(arrived)) == 2


@needs_ray
def test_a_killed_worker_costs_the_shard_it_was_in(
    two: Executor, work: types.ModuleType, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a shard: results are equal, and no other shard is started twice."""
    found = []
    for result in two.map(work.Heavy(tmp_path, dies=(3,)), range(8)):
        found.append(result)
        if len(found) == 2:
            (tmp_path / "read").touch()
    assert found == [0.1 * row for row in range(8)]
    started = sorted(int(row) for row in lines(tmp_path / "started"))
    assert started == [0, 1, 2, 3, 3, 4, 5, 6, 7]


@needs_ray
def test_a_shard_that_kills_every_worker_is_one_sentence(
    two: Executor, work: types.ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="a worker died"):
        list(two.map(work.Heavy(tmp_path, dies=(0,), always=True), [0]))
    assert len(lines(tmp_path / "started")) == LIVES + 1
    assert list(two.map(math.sqrt, [4.0])) == [2.0], "the next map has new workers"


@needs_ray
def test_a_reader_who_stops_early_leaves_no_work_behind(two: Executor, work: types.ModuleType) -> None:
    results = two.map(work.about, range(100))
    pid = next(results)[2]
    results.close()
    [(_, _, other)] = two.map(work.about, [0])
    assert other != pid, "the workers with the rest of the shards were ended"


@needs_ray
def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: this one has a cluster already."""
    import subprocess

    code = "from glasshouse.runtime.executors import get_executor\nlist(get_executor('ray').map(abs, [1]))"
    env = {**os.environ, "RAY_ADDRESS": "not-an-address"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "RunError: RAY_ADDRESS=not-an-address: the Ray cluster cannot be reached" in done.stderr


@pytest.mark.skipif(HERE, reason="Ray is installed here")
def test_without_ray_the_sentence_names_the_extra() -> None:
    executor = get_executor("ray:2")
    with pytest.raises(MissingDependency, match=r"pip install 'glasshouse\[ray\]'"):
        list(executor.map(math.sqrt, [4.0]))


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="0 workers"):
        get_executor("ray:0")
