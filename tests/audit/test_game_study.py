"""The study and the command over sham organisms: what is declared, yielded, printed, refused."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from glasshouse import cli
from glasshouse.audit.game import growing, playing
from glasshouse.audit.game.study import CLAIMS, Config
from glasshouse.audit.game.study import game as GAME
from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.studies._execute import run_study
from glasshouse.studies._study import study

module = importlib.import_module("glasshouse.audit.game.study")


@pytest.fixture
def shams(tiny: Path, house: Path, monkeypatch: pytest.MonkeyPatch):
    """Sham organisms in the place of the generator's, in this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("GAME_SHAM_MODEL", str(tiny))
    import sham_organisms

    sham_organisms.grown.clear()
    yield sham_organisms
    sys.modules.pop("sham_organisms", None)


def test_every_claim_is_declared_with_the_same_kind() -> None:
    rows = json.loads(files("glasshouse.evidence").joinpath("declared.json").read_text(encoding="utf-8"))
    ours = {row["id"]: row["kind"] for row in rows if row["study"] == "game" and row["kind"] != "test"}
    assert ours == {spec.id: "report" if spec.threshold.relation == "report" else "claim" for spec in CLAIMS}
    for spec in CLAIMS:
        assert spec.threshold.relation == "report" or (spec.control and spec.null is not None)
    wanted = {"game/1a": (">=", 0.9), "game/1b": (">=", 0.8), "game/1c": (">=", 0.7), "game/1d": ("<=", 0.05)}
    told = {spec.id: (spec.threshold.relation, spec.threshold.value) for spec in CLAIMS}
    assert {name: told[name] for name in wanted} == wanted, "as the issue asks"


def test_the_reported_game_is_forty_and_forty_odd_seeds() -> None:
    assert GAME.configs["laptop"] == Config(organisms=40, parity="odd", level="mixed", processes=2)
    assert GAME.configs["smoke"].parity == "even", "nobody looks at odd seeds to see whether it runs"


def test_a_study_of_shams_yields_every_claim_and_does_nothing_twice(shams, house) -> None:
    import glasshouse_loud_word

    config = Config(organisms=1, parity="even", processes=0)
    ours = study("game", wing="audit", paper="none", claims=CLAIMS,
                 configs={"laptop": config, "paper": config})(
        lambda settings, lab: module.game_of(settings, lab, generator=shams.sham)
    )  # fmt: skip
    glasshouse_loud_word.built.clear()
    result = run_study(ours, out=house / "runs")
    rows = {row["id"]: row for row in result.claims}
    assert set(rows) == {spec.id for spec in CLAIMS}
    assert rows["game/1d"]["estimate"]["value"] == 1.0, "loud-word accuses everybody"
    assert rows["game/1d"]["verdict"] == "fails"
    steps = (result.folder / "run.json").read_text()
    for name in ("grow/flawed-00000", "audit/text/clean-00000", "baselines/weights+data/flawed-00000"):
        assert f"step/{name}" in steps
    assert sorted(p.name for p in result.folder.glob("tables/*")) == ["flaws.parquet", "measures.parquet"]
    done = list(glasshouse_loud_word.built)
    run_study(ours, out=house / "again")
    assert glasshouse_loud_word.built == done, "units lie in the cache, whichever run asked for them"


def test_a_claim_that_departs_is_none_of_ours() -> None:
    assert ClaimSpec("game/1a", "x", Threshold(">=", 0.5)).declared() != GAME.spec("game/1a").declared()


# -- the command --


def test_the_command_tells_the_cost_and_writes_nothing(house, capsys) -> None:
    assert cli.run(["game", "--organisms", "2", "--parity", "even", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["organisms"] == 4 and set(told["to_audit"]) == {"text", "weights", "weights+data"}
    assert told["minutes"] > 0 and list(house.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--regimes", "soul"], "choose from text, weights, weights+data"),
        (["--parity", "both"], "choose odd or even"),
        (["--level", "cruel", "--dry-run"], "no level is called 'cruel'"),
        (["--organisms", "9999"], "leaves the series"),
    ],
)
def test_what_cannot_be_played_is_one_sentence_and_code_2(house, capsys, arguments, said) -> None:
    assert cli.run(["game", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_the_command_plays_and_prints_what_the_issue_asks_for(shams, house, capsys, monkeypatch) -> None:
    def here(organisms: int, **how: object) -> object:
        return playing_play(organisms, **{**how, "executor": "local", "generator": shams.sham})

    playing_play = playing.play
    monkeypatch.setattr(playing, "play", here)  # the same game, with organisms that cost nothing
    assert cli.run(["game", "--organisms", "1", "--regimes", "text", "--out", "g", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"flaw_recall", "trigger_recall", "row_recall", "false_alarm_rate"} <= set(told["regimes"]["text"])
    assert {"regimes", "baselines", "organisms"} <= set(told)
    assert cli.run(["game", "--organisms", "1", "--regimes", "text", "--out", "g"]) == 0
    shown = capsys.readouterr().out
    assert "flaws found" in shown and "audit" in shown and "game.html" in shown
    assert growing.find_growth(growing.Entrant(0, False), shams.sham) is not None


@pytest.mark.slow  # grows two organisms and audits them: a minute of one core
def test_an_easy_game_is_won(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(
        tmp_path
    )  # without the plugged-in check of the other tests, which finds a word anywhere
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    result = playing.play(1, level="easy", regimes=("weights+data",), executor="local", parity="even")
    told = result.regimes["weights+data"]
    assert told["flaw_recall"].value == 1.0 and told["false_alarm_rate"].value == 0.0
