"""Runs resume at the step they were in, whatever stopped them, and are never overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError, InputError, RunError, StaleError
from glasshouse.runtime.runs import Run

SPEC = {"model": "tiny", "seed": 0}

WORKER = """
import sys
from pathlib import Path
from glasshouse.runtime.runs import Run
with Run.open(Path(sys.argv[1]), "job", {"seed": 1}) as run:
    for index in range(3):
        run.step(f"step/{index}", lambda: {"value": index / 3})
    def hang():
        (run.folder("scratch") / "half").write_text("half")
        print("inside", flush=True)
        sys.stdin.readline()
    run.step("step/3", hang)
"""


def job(root: Path, calls: list[str]) -> dict[str, Any]:
    """A run of four steps, an array and a note; the result is what a reader sees of the finished run."""

    def build(name: str, value: Any) -> Any:
        calls.append(name)
        return value

    with Run.open(root, "job", SPEC) as run:
        if not run.finished:
            run.note("version", "1")
            first = run.step("first", lambda: build("first", [0.1, 2]))

            def heavy() -> dict[str, list[int]]:
                run.save_array("deep/scores", np.arange(12.0).reshape(3, 4) * first[0])
                return build("heavy", {"shape": [3, 4]})

            run.step("heavy", heavy)
            run.step("a/third", lambda: build("a/third", None))
            run.step("last", lambda: build("last", "text é"))
            run.finish()
    with Run.open(root, "job", SPEC) as run:
        assert run.finished
        return {"steps": run.steps, "notes": run.notes, "array": run.load_array("deep/scores").tolist()}


def test_a_fault_at_any_write_changes_no_result(tmp_path: Path, every_fault) -> None:
    truth = job(tmp_path / "truth", [])
    calls: list[str] = []

    def check(n: int) -> None:
        assert job(tmp_path / str(n), calls) == truth
        assert len(calls) <= 4 + 1, f"more than one step was repeated: {calls}"
        calls.clear()

    assert every_fault(lambda n: job(tmp_path / str(n), calls) and None, check) >= 16


def test_kill_minus_nine_in_a_step(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "inside\n"
    with pytest.raises(RunError, match=f"process {child.pid} is working on this run"):
        Run.open(tmp_path, "job", {"seed": 1})
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with Run.open(tmp_path, "job", {"seed": 1}) as run:
        assert run.steps == {f"step/{index}": {"value": index / 3} for index in range(3)}
        assert run.step("step/3", lambda: "again") == "again"
        run.finish()


def test_a_second_opening_in_this_process_is_refused_until_closed(tmp_path: Path) -> None:
    with Run.open(tmp_path, "job", SPEC), pytest.raises(RunError, match="working on this run"):
        Run.open(tmp_path, "job", SPEC)
    Run.open(tmp_path, "job", SPEC).close()


def test_a_resumed_step_sees_what_the_first_one_saw(tmp_path: Path) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        first = run.step("pair", lambda: (1, 0.1 + 0.2, {"k": (2,)}))
        first[0] = 99  # the caller's copy, not the journal's
    with Run.open(tmp_path, "job", SPEC) as run:
        assert run.step("pair", lambda: pytest.fail("repeated")) == [1, 0.1 + 0.2, {"k": [2]}]


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    paths = set()
    for spec in (SPEC, {**SPEC, "seed": 1}, {**SPEC, "more": None}):
        with Run.open(tmp_path, "job", spec) as run:
            paths.add(run.path)
    assert len(paths) == 3


def test_a_finished_run_cannot_be_changed(tmp_path: Path) -> None:
    job(tmp_path, [])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with Run.open(tmp_path, "job", SPEC) as run:
        assert run.step("first", lambda: pytest.fail("repeated")) == [0.1, 2]
        for change in (
            lambda: run.step("new", lambda: 1),
            lambda: run.note("version", 2),
            lambda: run.save_array("new", [1]),
        ):
            with pytest.raises(RunError, match="finished"):
                change()
        assert run.finish() == run.path / "run.json"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in run.path.iterdir()) == [
        "arrays",
        "run.json",
        "spec.json",
        "steps.parquet",
    ]


def test_a_closed_run_says_so(tmp_path: Path) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        pass
    with pytest.raises(RunError, match="closed"):
        run.step("late", lambda: 1)


@pytest.mark.parametrize("value", [float("nan"), {"x": float("inf")}, object(), b"bytes", np.float32(1)])
def test_a_step_that_json_cannot_hold_is_refused_and_not_stored(tmp_path: Path, value: Any) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        with pytest.raises(InputError, match="step 'bad'"):
            run.step("bad", lambda: value)
        assert run.steps == {}


@pytest.mark.parametrize("name", ["", "..", "../up", "a b", "/root", ".hidden", "a//b"])
def test_names_cannot_leave_the_run(tmp_path: Path, name: str) -> None:
    with Run.open(tmp_path, "job", SPEC) as run, pytest.raises(InputError, match="not a usable name"):
        run.folder(name)
    with pytest.raises(InputError, match="not a usable name"):
        Run.open(tmp_path, name, SPEC)


@pytest.mark.parametrize("spec", [{"x": float("nan")}, {"x": object()}])
def test_settings_must_be_plain(tmp_path: Path, spec: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not plain JSON"):
        Run.open(tmp_path, "job", spec)


def test_arrays_round_trip_exactly(tmp_path: Path) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        for name, array in {
            "f": np.float32([[1, np.nan]]),
            "i": np.arange(3),
            "empty": np.zeros((0, 4)),
        }.items():
            run.save_array(name, array)
            back = run.load_array(name)
            assert back.dtype == array.dtype
            np.testing.assert_array_equal(back, array)
        assert run.has_array("f") and not run.has_array("g")
        with pytest.raises(InputError, match="Python objects"):
            run.save_array("o", np.array([{}], dtype=object))
        with pytest.raises(RunError, match="no such array"):
            run.load_array("g")


@pytest.mark.parametrize("keep", [0, 1, 60, -1])
def test_a_damaged_array_is_refused(tmp_path: Path, keep: int) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        path = run.save_array("a", np.arange(5.0))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(RunError, match="damaged"):
            run.load_array("a")


@pytest.mark.parametrize("name", ["journal.sqlite", "spec.json", "run.json"])
def test_a_damaged_run_is_one_sentence(tmp_path: Path, name: str) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        run.step("one", lambda: 1)
    for leftover in run.path.glob("journal.sqlite-*"):
        leftover.unlink()
    (run.path / name).write_bytes(b"\x00broken" * 500)
    with pytest.raises(GlasshouseError) as caught:
        Run.open(tmp_path, "job", SPEC)
    assert str(run.path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path, "job", SPEC) as run:
        pass
    files.write_json(run.path / "spec.json", {"model": "other"})
    with pytest.raises(StaleError, match="other settings"):
        Run.open(tmp_path, "job", SPEC)
