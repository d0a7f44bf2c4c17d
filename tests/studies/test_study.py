"""Studies: declaration, discovery, resume after a kill, and the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from glasshouse import _registry
from glasshouse.cli import run as command
from glasshouse.evidence.ledger import read_ledger
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, wilson
from glasshouse.studies import Claim, ClaimSpec, Figure, Table, Threshold, available, find, study
from glasshouse.studies._execute import run_study

CLAIMS = [
    ClaimSpec("toy/1", "Coins fall on heads", Threshold(">=", 0.4), 0.1, "a bent coin", "about half"),
    ClaimSpec("toy/2", "Never reached", Threshold(">=", 0.5), 0.1),
    ClaimSpec("toy/3r", "How long it took", Threshold("report")),
]
calls: list[str] = []


@dataclass(frozen=True)
class Config:
    tosses: int = 100
    seeds: int = 3
    stop: str = ""


def note(name, config):
    """One executed step; dies where the test wants it."""
    if config.stop == name:
        raise KeyboardInterrupt
    calls.append(name)


def double(x):
    calls.append(f"double {x}")
    return {"twice": 2 * x}


def write(folder, text):
    calls.append(f"write {text}")
    (folder / "text.txt").write_text(text)


@study(
    "toy",
    wing="attribution",
    paper="Nobody 1900",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(9)},
)
def toy(config, lab):
    """Toss coins."""
    heads = lab.step("toss", lambda: (note("toss", config), config.tosses // 2)[1])
    yield lab.claim("toy/1", wilson(heads, config.tosses), wilson(0, config.tosses), note=f"{lab.seeds}")
    lab.step("bend", lambda: note("bend", config))
    yield Figure("coins", {"data": [{"y": [heads]}], "layout": {}})
    yield Table("tosses", [{"heads": heads, "seed": s} for s in lab.seeds])
    yield lab.claim("toy/3r", Estimate.exact(1.0, 1))


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    calls.clear()
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")


def variant(function, claims=CLAIMS, slug="toy"):
    return study(slug, wing="w", paper="", claims=claims, configs={"laptop": Config(), "paper": Config()})(
        function
    )


def test_a_run_holds_claims_figures_and_tables(tmp_path):
    result = run_study(toy, out=tmp_path / "runs")
    assert [(c["id"], c["verdict"]) for c in result.claims] == [
        ("toy/1", "holds"), ("toy/2", "not run"), ("toy/3r", "reported"),
    ]  # fmt: skip
    assert "without yielding" in result.claims[1]["note"]
    assert result.record["config"] == {"name": "laptop", "values": {"tosses": 100, "seeds": 3, "stop": ""}}
    assert result.record["seeds"] == [0, 1, 2] and result.record["code"] == toy.code
    assert json.loads((result.folder / "figures/coins.json").read_text())["data"] == [{"y": [50]}]
    assert pq.read_table(result.folder / "tables/tosses.parquet").to_pylist()[2] == {"heads": 50, "seed": 2}


def test_a_finished_run_is_read_and_other_settings_make_another(tmp_path):
    first = run_study(toy, out=tmp_path)
    assert run_study(toy, out=tmp_path).record == first.record and calls == ["toss", "bend"]
    more = run_study(toy, out=tmp_path, seeds=5)
    assert more.folder != first.folder and more.record["seeds"] == [0, 1, 2, 3, 4]
    assert run_study(toy, out=tmp_path, config="paper").record["config"]["values"]["tosses"] == 9


def test_an_interrupted_study_resumes_in_the_step_it_was_in(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules[__name__], "note", lambda name, config: 1 / 0 if name == "bend" else calls.append(name)
    )
    with pytest.raises(ZeroDivisionError):
        run_study(toy, out=tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    result = run_study(toy, out=tmp_path, cache=Cache(tmp_path / "cache"))
    assert calls == ["toss", "bend"]
    whole = run_study(toy, out=tmp_path / "elsewhere", cache=Cache(tmp_path / "cache"))
    assert result.claims == whole.claims


SCRIPT = '''
import os, sys
from dataclasses import dataclass
from glasshouse.runtime import files
from glasshouse.studies import ClaimSpec, Table, Threshold, study
from glasshouse.studies._execute import run_study
from glasshouse.statistics import wilson

@dataclass(frozen=True)
class Config:
    n: int = 4

@study("kill", wing="w", paper="", configs={"laptop": Config(), "paper": Config()},
       claims=[ClaimSpec("kill/1", "c", Threshold(">=", 0.1), 0.0)])
def kill(config, lab):
    """Die at the n-th durable write."""
    for i in range(config.n):
        lab.step(f"part-{i}", lambda: print("built", i, flush=True) or i)
    yield Table("t", [{"i": i} for i in range(config.n)])
    yield lab.claim("kill/1", wilson(3, config.n))

left = int(sys.argv[2])
def count(stage, path):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
files.fault_hook = count
print(run_study(kill, out=sys.argv[1], device="cpu").claims)
'''


def results(folder):
    """Names of what a run holds, less a journal or a lock whose removal the death prevented."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if not name.startswith(("journal.", "run.lock")))


class Dead(BaseException):
    """Stands for the end of the process: nothing in the house catches it."""


def test_dying_at_any_write_the_study_ends_with_the_same_claims(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(files, "fault_hook", lambda stage, path: writes.append(stage))
    whole = run_study(toy, out=tmp_path / "whole", device="cpu")
    assert len(writes) > 20  # spec, steps, yields, figure, table, notes, claims, run: before and after each
    for last in range(len(writes)):
        left = [last]

        def die(stage, path, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Dead

        calls.clear()
        monkeypatch.setattr(files, "fault_hook", die)
        with pytest.raises(Dead):
            run_study(toy, out=tmp_path / f"dead-{last}", device="cpu")
        monkeypatch.setattr(files, "fault_hook", None)
        again = run_study(toy, out=tmp_path / f"dead-{last}", device="cpu")
        assert again.claims == whole.claims
        assert results(again.folder) == results(whole.folder)
        assert len(calls) <= 3, "at most one of the two steps is repeated"


def test_killed_for_real_the_study_ends_with_the_same_claims(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(out, writes):
        environment = {**os.environ, "GLASSHOUSE_PROGRESS": "off", "GLASSHOUSE_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, str(script), str(out), str(writes)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        return done, done.stdout.splitlines()

    killed, before = run(tmp_path / "killed", 9)
    assert killed.returncode == -9 and before, killed.stderr
    resumed, after = run(tmp_path / "killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    built = [line for line in [*before, *after] if line.startswith("built")]
    assert len(built) <= 5 and len(set(built)) == 4  # four steps, at most one of them twice
    assert "'verdict': 'holds'" in after[-1]


def test_cached_values_and_folders_are_shared_between_runs(tmp_path):
    def run(config, lab):
        """Use the cache."""
        assert lab.cached("double", double, x=4) == {"twice": 8}
        assert (lab.cached_folder("text", write, text="hello") / "text.txt").read_text() == "hello"
        yield Table("t", [{"a": 1}])

    for place in ("one", "two"):
        run_study(variant(run, []), out=tmp_path / place)
    assert calls == ["double 4", "write hello"]


def test_a_closure_cannot_be_cached(tmp_path):
    def run(config, lab):
        """Hide an argument from the cache."""
        lab.cached("hidden", lambda: config.tosses)
        yield Table("t", [])

    with pytest.raises(InputError, match="captures config"):
        run_study(variant(run), out=tmp_path)


def test_grow_takes_an_organism_from_the_cache(tmp_path):
    class Seedling:
        slug, version = "seedling", "1"

        def grow(self, seed, folder, progress):
            calls.append(f"grow {seed}")
            (folder / "seed.txt").write_text(str(seed))

    def run(config, lab):
        """Grow."""
        texts = [(lab.grow("seedling", s) / "seed.txt").read_text() for s in (0, 1, 0)]
        yield Table("t", [{"texts": " ".join(texts)}])

    with _registry.plugged("organisms", "seedling", Seedling()):
        run_study(variant(run), out=tmp_path)
    assert calls == ["grow 0", "grow 1"]


def yields(*items):
    def run(config, lab):
        """Yield what the test says."""
        yield from items

    return run


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([Table("t", []), Table("t", [])], "table t twice"),
        ([3], "yields a int"),
        ([Claim(ClaimSpec("toy/9", "c", Threshold("report")), wilson(1, 2))], "declares no claim 'toy/9'"),
        ([Claim(dataclasses.replace(CLAIMS[0], null=0.0), wilson(1, 2))], "departs from its declaration"),
        ([Table("t", [{"a": 1}, {"a": "x"}])], "mixes types"),
        ([Figure("f", 3)], "neither a plotly figure"),
        ([Table("../t", [])], "not a usable name"),
    ],
)
def test_wrong_yields_are_refused(tmp_path, items, says):
    with pytest.raises(InputError, match=says):
        run_study(variant(yields(*items)), out=tmp_path)


def test_wrong_declarations_are_refused():
    @dataclass
    class Loose:
        x: int = 1

    good = {"laptop": Config(), "paper": Config()}
    for claims, configs, says in [
        ([CLAIMS[0], CLAIMS[0]], good, "twice"),
        ([ClaimSpec("other/1", "c", Threshold("report"))], good, "other/1"),
        ([], {"laptop": Config()}, "no configuration 'paper'"),
        ([], {"laptop": Loose(), "paper": Config()}, "not a frozen dataclass"),
        ([], {"laptop": Config, "paper": Config()}, "not a frozen dataclass"),
    ]:
        with pytest.raises(InputError, match=says):
            study("toy", wing="w", paper="", claims=claims, configs=configs)


def test_settings_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match="choose from laptop, paper"):
        run_study(toy, config="huge", out=tmp_path)
    with pytest.raises(InputError, match="seeds is 0"):
        run_study(toy, seeds=0, out=tmp_path)
    assert not list(tmp_path.glob("toy*"))


def test_tables_and_figures_of_libraries():
    import pandas as pd
    import plotly.graph_objects as go

    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    for given in (rows, pd.DataFrame(rows), {"a": [1, 2], "b": ["x", "y"]}):
        assert Table("t", given).to_rows() == rows
    assert Figure("f", go.Figure(go.Scatter(y=[1, 2]))).to_json()["data"][0]["type"] == "scatter"


def test_every_study_of_ours_is_found_and_complete():
    for slug in available():
        found = find(slug)
        assert found.slug == slug and found.title and found.paper
        assert all(path.is_file() for path in found.files)
    with pytest.raises(InputError, match="no study is called 'nonsense'"):
        find("nonsense")


def test_the_command_runs_lists_and_stores(tmp_path, capsys):
    with _registry.plugged("studies", "toy", toy):
        assert command(["study"]) == 0
        assert "toy" in capsys.readouterr().out
        arguments = [
            "study",
            "toy",
            "--seeds",
            "2",
            "--out",
            str(tmp_path / "runs"),
            "--ledger",
            str(tmp_path / "l"),
        ]
        assert command(arguments) == 0
    out = capsys.readouterr().out
    assert "holds      toy/1" in out and "0.500 [0.404, 0.596]" in out and "not run    toy/2" in out
    stored = {row["id"]: row for row in read_ledger(tmp_path / "l")}
    assert stored["toy/1"]["verdict"] == "holds" and stored["toy/1"]["code"] == toy.code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study", "nonsense"], "no study is called 'nonsense'"),
        (["study", "toy", "--config", "huge"], "choose from laptop, paper"),
        (["study", "toy", "--device", "abacus"], "abacus"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with _registry.plugged("studies", "toy", toy):
        assert command(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1
    assert not list(Path(tmp_path).glob("glasshouse-runs/*"))
