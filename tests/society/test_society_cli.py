"""`glasshouse society`: it teaches, resumes, writes offline pages, and refuses in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glasshouse import cli
from glasshouse.society._door import doors, open_door
from glasshouse.society._sweeps import sweep

SMALL = {"users": "no-information", "size": 40, "starts": 6}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("COLUMNS", "110")
    return tmp_path


@pytest.fixture
def market(tmp_path):
    path = tmp_path / "market.yaml"
    path.write_text("\n".join(f"{k}: {v}" for k, v in SMALL.items()) + "\n")
    return str(path)


def society(*arguments, system="competition"):
    return cli.run(["society", system, *arguments])


@pytest.mark.parametrize(
    "act",
    ["import glasshouse.society", "import glasshouse.society.model_competition",
     "from glasshouse import cli; cli.run(['society', 'competition', 'report', '--help'])"],
)  # fmt: skip
def test_nothing_heavy_is_imported(act):
    heavy = ("torch", "pandas", "scipy", "transformers", "sklearn", "plotly", "numpy")
    code = f"import sys; {act}\nprint('LOADED', *(m for m in {heavy!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stderr.strip().splitlines()[-1] == "LOADED", done.stderr


@pytest.mark.parametrize("system", sorted(doors()))
def test_help_teaches(system, capsys):
    assert cli.run(["society", "--help"]) == 0
    assert system in capsys.readouterr().out
    for command in ("run", "sweep", "report"):
        assert society(command, "--help", system=system) == 0
        said = capsys.readouterr().out
        assert f"glasshouse society {system} {command}" in said and "--config" in said and "Writes" in said


def test_the_systems_of_the_help_are_the_doors():
    from glasshouse.cli.society import FIELDS, SYSTEMS

    assert set(SYSTEMS) == set(doors()) == set(FIELDS)


@pytest.mark.parametrize("system", sorted(doors()))
def test_the_examples_of_the_help_are_valid_scenarios(system):
    from glasshouse.cli.society import FIELDS, SYSTEMS, _assignments, _grid

    door, example = open_door(system), FIELDS[system]
    assert door.question == SYSTEMS[system] and door.name == system
    scenario = door.scenario().changed(_assignments([example["set"]], "--set"))
    scenario.changed(_assignments([example["scenario"].replace(": ", "=")], "file"))
    for name, values in _grid([example["over"]], scenario).items():
        assert all(getattr(scenario.changed({name: value}), name) is not None for value in values)
    assert type(scenario).parse(json.loads(json.dumps(scenario.to_json()))) == scenario


def test_run_prints_the_answer_with_its_certificate(market, capsys, tmp_path):
    from glasshouse.society.model_competition import Equilibrium

    assert society("run", "-c", market, "--set", "alpha=0.2", "-o", "out") == 0
    said = capsys.readouterr().out
    assert "equilibrium (one prediction)" in said and "users' loss 0.2000" in said
    assert Equilibrium.load(tmp_path / "out" / "solution").converged
    told = json.loads((tmp_path / "out" / "solution" / "scenario.json").read_text())
    assert told["scenario"]["alpha"] == 0.2 and told["seed"] == 0


def test_a_sweep_resumes_and_does_not_depend_on_the_executor(tmp_path, faults):
    from glasshouse.runtime.runs import Run

    door = open_door("competition")
    scenario = door.scenario.parse(SMALL)
    grid = {"alpha": [0.2, 0.4], "providers": [2, 3]}
    whole, _ = sweep(door, scenario, grid, seeds=[0, 1], out=tmp_path / "whole")
    assert len(whole) == 8 and [row["seed"] for row in whole] == [0, 1] * 4
    faults.at(9)
    with pytest.raises(faults.Killed):
        sweep(door, scenario, grid, seeds=[0, 1], out=tmp_path / "cut")
    faults.off()
    half = next((tmp_path / "cut").iterdir())
    spec = json.loads((half / "spec.json").read_text())
    with Run.open(tmp_path / "cut", "society-competition", spec) as run:
        done = len(run.steps)
    assert 0 < done < 8
    again, _ = sweep(door, scenario, grid, seeds=[0, 1], out=tmp_path / "cut")
    assert again == whole


@pytest.mark.slow  # two fresh interpreters
def test_processes_give_the_same_rows(tmp_path):
    door = open_door("competition")
    scenario = door.scenario.parse(SMALL)
    grid = {"alpha": [0.2, 0.4]}
    here, _ = sweep(door, scenario, grid, seeds=[0], out=tmp_path / "a")
    there, _ = sweep(door, scenario, grid, seeds=[0], out=tmp_path / "b", executor="processes:2")
    assert here == there


def test_sweep_writes_parquet_that_says_its_scenario(market, capsys, tmp_path):
    import pandas as pd

    assert society("sweep", "-c", market, "--over", "alpha=0.2,0.4", "--seeds", "2", "-o", "out") == 0
    frame = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert len(frame) == 4 and set(frame["alpha"]) == {0.2, 0.4} and (frame["eps_nash"] <= 1e-3).all()
    assert frame["theory_low"].tolist() == pytest.approx(frame["SL"].tolist(), abs=0.01)
    assert "4 rows" in capsys.readouterr().out


def test_report_is_one_offline_page_with_theory_and_control(market, capsys, tmp_path):
    assert society("report", "-c", market, "--seeds", "2", "-o", "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("theory, 3 providers", "one provider (no competition)", "What is assumed", "Certificates",
                 "recommends no policy", "alpha* = 0.345"):  # fmt: skip
        assert part in page, part
    assert "agree?" in page and "<td>no</td>" not in page
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "style=" not in page  # the page's policy forbids inline styles
    assert "largest gain" in capsys.readouterr().out


def test_schema(capsys):
    assert society("run", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["noise"]["description"]


def bomb(folder: Path) -> str:
    lines = ["a: &a [x, x]"] + [f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)]
    (folder / "bomb.yaml").write_text("\n".join(lines))
    return "bomb.yaml"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "-c", "none.yaml"], "none.yaml"),
        (["run", "--set", "providers"], "--set: 'providers' says no value; write FIELD=VALUE."),
        (["run", "--set", "providrs=3"], "no field 'providrs'"),
        (["run", "--set", "noise=-1"], "noise is -1"),
        (["run", "--set", "device=quantum"], "'quantum' is not a device"),
        (["run", "--set", "users=features", "--set", "features=no.npz"], "no.npz"),
        (["sweep", "--over", "colour=1,2"], "names no field"),
        (["sweep", "--over", "alpha="], "has no values"),
        (["sweep", "--over", "alpha=0.2,7"], "alpha is 7"),
        (["sweep", "--executor", "cloud"], "no executor 'cloud'"),
        (["report", "-c", "{list}"], "not one mapping"),
        (["report", "-c", "{bad}"], "bad.yaml:2"),
        (["report", "-c", "{bomb}"], "anchors"),
        (["report", "-c", "{binary}"], "not UTF-8"),
        (["report", "-c", "{tag}"], "not YAML"),
        (["report", "-o", "{file}"], "is a file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, says, capsys, tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bad.yaml").write_text("a: 1\n b: [\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "tag.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    names = {"list": "list.yaml", "bad": "bad.yaml", "binary": "binary.yaml", "tag": "tag.yaml",
             "bomb": bomb(tmp_path), "file": "list.yaml"}  # fmt: skip
    assert society(*(a.format(**names) for a in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1 and "Traceback" not in said


def test_text_of_a_scenario_is_inert_in_the_page(tmp_path, capsys):
    nasty = "<script>alert(1)</script>\x1b[31m.npz"
    draws = np.random.default_rng(0)
    X = draws.normal(size=(60, 3))
    path = tmp_path / nasty.replace("/", "_")
    np.savez(path, X=X, y=(X[:, 0] > 0.3).astype(int))
    market = tmp_path / "m.json"
    market.write_text(json.dumps({"users": "features", "features": str(path), "starts": 6}))
    grid = ["--over", "representation=pca:0,pca:1"]
    assert society("sweep", "-c", str(market), *grid, "--seeds", "2", "-o", "out") == 0
    from glasshouse.society._report import render_page

    door = open_door("competition")
    scenario = door.scenario.read(market)
    rows, _ = sweep(door, scenario, {"representation": ["pca:0", "pca:1"]}, seeds=[0, 1], out=tmp_path / "r")
    page = render_page(door.page(scenario, [{"sweep": "ladder", **row} for row in rows], (0, 1)))
    assert "<script>alert" not in page and "\x1b" not in page and "alert(1)" in page
