"""Executors give the same numbers in the same order, wherever the work runs."""

from __future__ import annotations

import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from glasshouse.runtime.errors import InputError, RunError
from glasshouse.runtime.executors import Executor, Local, Processes, get_executor
from glasshouse.runtime.runs import Run

MODULE = """
import os
import numpy as np
from glasshouse.runtime.errors import NumericalError
from glasshouse.runtime.seeds import rng

def norms(rows):
    return [float(np.sqrt((rng(7, "row", row).standard_normal(50) ** 2).sum())) for row in rows]

def partial_sum(rows):
    return float(np.sum([0.1 * row for row in rows]))

def threads(_):
    import torch
    return torch.get_num_threads(), os.environ["GLASSHOUSE_PROGRESS"], os.getpid()

def fail(row):
    if row == 2:
        raise NumericalError("the loss is NaN", where="row 2", fix="lower the step size")
    return row

def bug(row):
    raise KeyError(row)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that worker processes can import too."""
    (tmp_path / "shard_work.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import shard_work  # type: ignore[import-not-found]

    yield shard_work
    del sys.modules["shard_work"]


@pytest.fixture(params=["local", "processes:2"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return get_executor(request.param)


def split(rows: list[int], count: int) -> list[list[int]]:
    return [rows[i * len(rows) // count : (i + 1) * len(rows) // count] for i in range(count)]


def test_numbers_do_not_depend_on_shards_or_workers(executor: Executor, work: types.ModuleType) -> None:
    rows = list(range(10))
    truth = work.norms(rows)
    for count in (1, 3):
        assert executor.map_reduce(work.norms, split(rows, count), list.__add__) == truth


def test_sums_round_the_same_way_everywhere(executor: Executor, work: types.ModuleType) -> None:
    shards = split(list(range(100)), 9)
    expected = 0.0
    for shard in shards:
        expected += work.partial_sum(shard)
    assert executor.map_reduce(work.partial_sum, shards, float.__add__) == expected


def test_results_come_in_the_order_of_the_shards(executor: Executor) -> None:
    assert list(executor.map(math.sqrt, iter(range(9)))) == [math.sqrt(i) for i in range(9)]
    assert list(executor.map(math.sqrt, [])) == []


def test_no_shards_cannot_be_reduced(executor: Executor) -> None:
    with pytest.raises(InputError, match="no shards"):
        executor.map_reduce(math.sqrt, [], float.__add__)


def test_an_error_of_the_family_crosses_as_one_sentence_after_earlier_results(
    executor: Executor, work: types.ModuleType
) -> None:
    results = executor.map(work.fail, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ArithmeticError, match=r"^row 2: the loss is NaN; lower the step size\.$"):
        next(results)


def test_a_bug_in_a_worker_stays_what_it_is(executor: Executor, work: types.ModuleType) -> None:
    with pytest.raises(KeyError, match="5"):
        list(executor.map(work.bug, [5]))


def test_stored_shards_are_not_computed_again(
    executor: Executor, work: types.ModuleType, tmp_path: Path
) -> None:
    with Run.open(tmp_path / "runs", "sharded", {}) as run:
        with pytest.raises(ArithmeticError):
            executor.map_reduce(work.fail, [0, 1, 2, 3], int.__add__, store=run.step)
        assert run.steps == {"shard/0": 0, "shard/1": 1}
        # math.sqrt gives 3.0 for 9: shards 0 and 1 come from the store, or the sum would be 0 + 1 + 2 + 3.
        assert (
            executor.map_reduce(math.sqrt, [100, 100, 4, 9], lambda a, b: a + b, store=run.step)
            == 0 + 1 + 2 + 3
        )
        assert executor.map_reduce(work.bug, [0] * 4, lambda a, b: a + b, store=run.step) == 6


def test_workers_are_quiet_processes_of_one_thread(work: types.ModuleType) -> None:
    [(threads, progress, pid)] = Processes(1).map(work.threads, [0])
    assert (threads, progress) == (1, "off") and pid != os.getpid()


def test_a_worker_that_dies_is_one_sentence() -> None:
    with pytest.raises(RunError, match="worker process died"):
        list(Processes(1).map(os._exit, [3]))


def test_a_function_that_cannot_travel_is_refused_before_it_starts() -> None:
    with pytest.raises(InputError, match="another process"):
        list(Processes(1).map(lambda shard: shard, [1]))


@pytest.mark.parametrize("name", ["cluster", "processes:many", "processes:0", ""])
def test_unknown_executors_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        get_executor(name)


def test_names_and_plug_ins() -> None:
    assert isinstance(get_executor(), Local)
    assert isinstance(get_executor("processes"), Processes)
    three = get_executor("processes:3")
    assert isinstance(three, Processes) and three.workers == 3 and get_executor(three) is three
    with pytest.raises(InputError, match="local, processes"):
        get_executor("slurm")


def test_a_plug_in_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "slurmhouse-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slurmhouse\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[glasshouse.executors]\nslurm = slurmhouse:Slurm\n")
    (tmp_path / "slurmhouse.py").write_text(
        "from glasshouse.runtime.executors import Local\n\nclass Slurm(Local):\n"
        "    def __init__(self, nodes=1):\n        self.nodes = nodes\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = get_executor("slurm:4")
    assert isinstance(made, Executor) and made.nodes == 4  # type: ignore[attr-defined]
    assert list(made.map(math.sqrt, [4])) == [2.0]
    with pytest.raises(InputError, match="local, processes, ray, slurm, torchrun"):
        get_executor("cluster")
