"""The executor `torchrun`: two real ranks (gloo) see all results in order, and fail together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.torchrun_executor import Torchrun

SCRIPT = """
import os, signal, sys
from pathlib import Path
from glasshouse.runtime.errors import NumericalError
from glasshouse.runtime.executors import get_executor

RANK, FOLDER = int(os.environ["RANK"]), Path(sys.argv[1])

def note(name, what):
    with open(FOLDER / f"{name}-{RANK}", "a") as handle:
        handle.write(f"{what}\\n")

def tenth(row):
    note("did", row)
    return 0.1 * row

def fail(row):
    if row == 3:
        raise NumericalError("the loss is NaN", where="row 3", fix="lower the step size")
    return row

def bug(row):
    raise KeyError(row)

def dies(row):
    if row == 5 and not (FOLDER / "dead").exists():
        (FOLDER / "dead").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return tenth(row)

def stored(name, build):
    path = FOLDER / name.replace("/", "-")
    if path.exists():
        return float(path.read_text())
    value = build()
    path.with_suffix(f".{RANK}").write_text(repr(value))
    path.with_suffix(f".{RANK}").replace(path)
    return value

def case(name, act):
    seen = []
    try:
        act(seen)
    except Exception as error:
        seen += [type(error).__name__, str(error)]
    (FOLDER / f"{name}-{RANK}").write_text(repr(seen))

def killed(seen):
    seen.append(executor.map_reduce(dies, range(8), float.__add__, store=stored))
    note("whole", "yes")

executor = get_executor("torchrun:2")
if "killed" in sys.argv:
    case("killed", killed)
    sys.exit(not (FOLDER / f"whole-{RANK}").exists())
case("maps", lambda seen: seen.extend(list(executor.map(*work)) for work in ((tenth, range(7)), (abs, []))))
case("fold", lambda seen: seen.append(executor.map_reduce(tenth, range(7), float.__add__)))
case("family", lambda seen: seen.extend(executor.map(fail, range(6))))
case("bug", lambda seen: seen.extend(executor.map(bug, [5])))
case("differ", lambda seen: seen.extend(executor.map(tenth, [RANK])))
case("three", lambda seen: seen.extend(get_executor("torchrun:3").map(tenth, [RANK])))
"""


def torchrun(folder: Path, *options: str, case: str = "all") -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *options,
         "--nproc-per-node", "2", str(script), str(folder), case],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks left what they saw in each case: one launch for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    return folder


def saw(folder: Path, case: str) -> list[str]:
    return [(folder / f"{case}-{rank}").read_text() for rank in range(2)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_both_ranks_see_all_results_in_order_and_share_the_work(ran: Path) -> None:
    assert saw(ran, "maps") == [repr([[0.1 * row for row in range(7)], []])] * 2
    assert saw(ran, "fold") == [repr([total(7)])] * 2
    for rank, rows in ((0, "0246"), (1, "135")):
        assert lines(ran / f"did-{rank}") == list(rows) * 2


def test_an_error_of_one_rank_is_raised_on_all_at_its_shard(ran: Path) -> None:
    sentence = "row 3: the loss is NaN; lower the step size."
    assert saw(ran, "family") == [repr([0, 1, 2, "NumericalError", sentence])] * 2
    assert saw(ran, "bug") == [repr(["KeyError", "5"]), repr(["RunError", "rank 0: KeyError: 5."])]


def test_ranks_with_other_shards_are_refused(ran: Path) -> None:
    for seen in saw(ran, "differ"):
        assert "were not given the same shards" in seen


def test_ranks_that_were_not_started_are_named(ran: Path) -> None:
    for seen in saw(ran, "three"):
        assert "ranks that were started is 2; give --nproc-per-node 3" in seen


def total(rows: int) -> float:
    found = 0.0
    for row in range(1, rows):
        found += 0.1 * row
    return found


@pytest.mark.slow
def test_a_killed_rank_costs_one_shard_a_rank(tmp_path: Path) -> None:
    """SIGKILL inside shard 5: torchrun starts both ranks again, and stored shards are not computed."""
    done = torchrun(tmp_path, "--max-restarts", "1", case="killed")
    assert done.returncode == 0, done.stderr
    assert saw(tmp_path, "killed") == [repr([total(8)])] * 2
    did = sorted(row for rank in range(2) for row in lines(tmp_path / f"did-{rank}"))
    # Shard 4 was finished by the other rank but not exchanged: it alone is done twice.
    assert did == sorted("012344567")


def test_outside_torchrun_the_sentence_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    executor = get_executor("torchrun")
    assert isinstance(executor, Torchrun) and isinstance(executor, Executor)
    with pytest.raises(InputError, match="torchrun --nproc-per-node 2"):
        list(executor.map(abs, [1]))
    with pytest.raises(InputError, match="0 ranks"):
        get_executor("torchrun:0")
