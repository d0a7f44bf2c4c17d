"""The game as a machine: who plays, what each access gives, blindness, resumption, what is left on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.audit.game import playing
from glasshouse.audit.game.auditing import Unit, audit_one
from glasshouse.audit.game.growing import entrants, find_growth, grow_all
from glasshouse.audit.game.regimes import REGIMES, check_regimes, seat
from glasshouse.audit.game.result import GameResult
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.training.organisms import Truth

HERE = Path(__file__).parent


@pytest.fixture
def shams(tiny: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of sham organisms, importable by its name."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("GAME_SHAM_MODEL", str(tiny))
    import sham_organisms

    sham_organisms.grown.clear()
    yield sham_organisms
    sys.modules.pop("sham_organisms", None)


@pytest.fixture
def fresh(shams, house, home, monkeypatch):
    """`fresh(name)` makes a cache of its own the present one; what self-tests measured is known in it."""
    if not (home / "entries/self-test").is_dir():  # once a session
        played(shams, regimes=("weights",))

    def make(name: str) -> Path:
        place = house / f"home-{name}"
        shutil.copytree(home / "entries/self-test", place / "entries/self-test")
        monkeypatch.setenv("GLASSHOUSE_HOME", str(place))
        shams.grown.clear()
        return place

    return make


def played(shams: ModuleType, **how: object) -> GameResult:
    return playing.play(
        **{"organisms": 1, "regimes": ("text",), "executor": "local", "generator": shams.sham, **how}
    )


# -- who plays --


@given(n=st.integers(1, 30), more=st.integers(0, 30), seed=st.integers(0, 50))
def test_organism_i_is_the_same_whatever_n_is(n: int, more: int, seed: int) -> None:
    for parity in (None, "odd", "even"):
        few = entrants(n, seed=seed, parity=parity)
        many = entrants(n + more, seed=seed, parity=parity)
        assert few[:n] == many[:n] and few[n:] == many[n + more :][:n], "flawed first, then clean"
        assert [e.seed for e in few[:n]] == [e.seed for e in few[n:]], "both sides share their seeds"
        if parity is not None:
            assert {e.seed % 2 for e in few} == {int(parity == "odd")}


def test_series_of_two_game_seeds_share_no_organism() -> None:
    assert not {e.seed for e in entrants(5000, seed=0)} & {e.seed for e in entrants(5000, seed=1)}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: entrants(0), "cannot play"),
        (lambda: entrants(5001), "leaves the series"),
        (lambda: entrants(1, seed=-1), "leaves the series"),
        (lambda: entrants(1, parity="both"), "no parity is called 'both'"),
        (lambda: check_regimes(("text", "soul")), "choose from text, weights, weights\\+data"),
        (lambda: check_regimes(()), "none"),
        (lambda: check_regimes(("text", "text")), "each once"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused(call, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


# -- what each access gives --


def test_each_access_gives_what_its_name_says_and_all_ask_the_same(shams, house) -> None:
    [growth, _] = grow_all(entrants(1), generator=shams.sham)
    seats = {regime: seat(growth.folder, regime) for regime in REGIMES}
    assert seats["text"].subject.access == {"text", "logprobs"}
    with pytest.raises(AccessError, match="gives logprobs and text only"):
        _ = seats["text"].subject.model
    assert "gradients" in seats["weights"].subject.access
    assert [seats[regime].rows is None for regime in REGIMES] == [True, True, False]
    assert seats["weights+data"].rows.path is None, "a path would lead to the truth beside it"
    assert len({s.suite.sha256 for s in seats.values()}) == 1
    assert str(growth.folder) not in repr([s.subject.name for s in seats.values()])


# -- blind --


def test_truth_changes_no_byte_of_any_finding(shams, house, fresh) -> None:
    """game/t5: moved away, false, or there: the findings are the same, each time made anew."""
    [growth, _] = grow_all(entrants(1), generator=shams.sham)
    found: dict[str, list[bytes]] = {}
    for name, text in {"there": None, "away": "", "false": json.dumps(shams.truth(trigger="zebra"))}.items():
        place = house / name / "organism"
        shutil.copytree(growth.folder, place)
        if text == "":
            (place / "truth.json").unlink()
        elif text is not None:
            (place / "truth.json").write_text(text)
        fresh(name)
        found[name] = [
            (audit_one(Unit(place, r)).path / "findings.json").read_bytes() for r in ("text", "weights+data")
        ]
    assert found["there"] == found["away"] == found["false"]
    assert all(b"loud-word" in one for one in found["there"]), "there is something that could have changed"


def test_no_truth_is_opened_before_every_finding_is_on_disk(shams, house, monkeypatch) -> None:
    def refuse(path: object) -> Truth:
        raise AssertionError(f"{path} was opened before the findings were there")

    monkeypatch.setattr(Truth, "read", refuse)
    done = playing.run(entrants(1), REGIMES, executor="local", generator=shams.sham)
    assert len(done.audited) == 6 and all((one.path / "findings.json").is_file() for one in done.audited)
    with pytest.raises(AssertionError, match="was opened"):
        playing.grade_played(done, shams.sham)


# -- kept, resumed --


def test_nothing_finished_is_done_again_and_more_organisms_add_to_it(shams, fresh) -> None:
    import glasshouse_loud_word

    fresh("again")
    glasshouse_loud_word.built.clear()
    one = played(shams, organisms=1)
    done = (list(shams.grown), list(glasshouse_loud_word.built))
    assert len(done[0]) == 2 and len(done[1]) == 6
    assert played(shams, organisms=1).to_json() == one.to_json()
    assert (shams.grown, glasshouse_loud_word.built) == done
    two = played(shams, organisms=2)
    assert len(shams.grown) == 4 and len(glasshouse_loud_word.built) == 12
    mine = [g for g in two.graded if g.seed == 0]
    assert mine == list(one.graded)


@pytest.mark.slow  # two games for each of some twenty kinds of writes
@pytest.mark.timeout(1200)
def test_a_game_that_dies_at_a_write_ends_the_same(shams, house, fresh, faults) -> None:
    """Death at the first write of each kind of file; then the same command finishes it."""
    import glasshouse_loud_word

    def finished(name: str) -> dict[str, object]:
        played(shams, out=house / name)
        return _timeless((house / name / "game.json").read_bytes())

    fresh("whole")
    points = faults.at()
    whole = finished("whole")
    kinds = {_kind(point): n for n, point in reversed(list(enumerate(list(points), 1)))}
    assert len(kinds) > 10
    for kind, n in kinds.items():
        name = f"dies-{n}"
        glasshouse_loud_word.built.clear()
        fresh(name)
        faults.at(n)
        with pytest.raises(faults.Killed):
            finished(name)
        faults.off()
        assert finished(name) == whole, kind
        assert len(shams.grown) <= 3 and len(glasshouse_loud_word.built) <= 7, (
            f"{kind}: more than one repeated"
        )


def _kind(point: str) -> str:
    stage, name = point.split(" ", 1)
    return f"{stage} {name if '.' in name and len(name) < 30 else 'entry'}"


def _timeless(game: bytes) -> dict[str, object]:
    told = json.loads(game)
    return {name: value for name, value in told.items() if name != "costs"}


def test_kill_minus_nine_in_the_middle_of_a_unit(shams, house, fresh) -> None:
    """game/t6: a process killed by the kernel after one step of the second unit; then the game goes on."""
    home = fresh("killed")
    code = """
import os, signal
from glasshouse.runtime import files
from glasshouse.audit.game import play
import glasshouse_loud_word as plugin
from sham_organisms import sham

def hook(stage, path):
    if len(plugin.built) == 5 and stage == "after":
        os.kill(os.getpid(), signal.SIGKILL)

files.fault_hook = hook
play(1, regimes=("text",), executor="local", generator=sham)
"""
    where = os.pathsep.join(sys.path)
    environment = {**os.environ, "GLASSHOUSE_HOME": str(home), "PYTHONPATH": where}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    import glasshouse_loud_word

    glasshouse_loud_word.built.clear()
    result = played(shams)
    assert shams.grown == [], "both organisms were there"
    assert len(glasshouse_loud_word.built) == 1, "of six steps five were committed"
    fresh("whole")
    assert [g.to_json() for g in played(shams).graded] == [g.to_json() for g in result.graded]


@pytest.mark.slow  # two fresh interpreters load torch
def test_two_processes_give_what_one_gives(shams, house, monkeypatch) -> None:
    results = []
    for executor in ("local", "processes:2"):
        monkeypatch.setenv("GLASSHOUSE_HOME", str(house / executor.replace(":", "-")))
        result = played(shams, organisms=2, regimes=REGIMES, executor=executor)
        results.append([g.to_json() for g in result.graded])
    assert results[0] == results[1]


def test_a_growth_that_does_not_install_is_counted_and_neither_scored_nor_tried_again(shams, house) -> None:
    who = entrants(1, parity="even", seed=0)
    who = [type(who[0])(shams.FAILS, clean) for clean in (False, True)]
    for _ in range(2):
        done = playing.run(who, ("text",), executor="local", generator=shams.sham)
    assert shams.grown.count("flawed-00004") == 1
    assert "nothing took" in find_growth(who[0], shams.sham).failed
    assert set(playing.costs(done)["not_installed"]) == {"flawed-00004"}
    graded = playing.grade_played(done, shams.sham)
    assert {g.organism for g in graded} == {"clean-00004"}


def test_an_audit_that_crashes_is_told_costs_the_others_nothing_and_is_tried_again(
    shams, fresh, monkeypatch, capsys
) -> None:
    import glasshouse_loud_word

    fresh("crash")
    with monkeypatch.context() as broken:
        broken.setattr(glasshouse_loud_word, "WORDS", None)
        result = played(shams)
    assert all(g.failed.startswith("crashed: TypeError") for g in result.told_by("audit", "text"))
    assert not any(g.alarms for g in result.told_by("audit", "text")), "it found nothing"
    assert "an audit with text crashed" in capsys.readouterr().err
    assert not any(g.failed for g in played(shams).graded)


def test_the_cost_is_told_before_and_shrinks(shams, fresh) -> None:
    fresh("cost")
    who = entrants(1)
    told = [playing.foresee(who, REGIMES, processes=2, generator=shams.sham)]
    grow_all(who, generator=shams.sham)
    told.append(playing.foresee(who, REGIMES, processes=2, generator=shams.sham))
    played(shams)
    told.append(playing.foresee(who, REGIMES, processes=2, generator=shams.sham))
    assert [t["to_grow"] for t in told] == [2, 0, 0]
    assert [t["to_audit"]["text"] for t in told] == [2, 2, 0]
    assert told[2]["to_audit"]["weights"] == 2
    assert told[0]["minutes"] > told[1]["minutes"] > told[2]["minutes"]


# -- what is left --


def test_the_result_is_read_back_and_opens_in_pandas(shams, house) -> None:
    result = played(shams, organisms=1, regimes=REGIMES, out=house / "game")
    again = GameResult.load(house / "game")
    assert again.to_json() == result.to_json()
    told = json.loads((house / "game/game.json").read_text())
    assert set(told["regimes"]) == set(told["baselines"]) == set(REGIMES)
    for numbers in told["regimes"].values():
        assert {"flaw_recall", "trigger_recall", "row_recall", "false_alarm_rate"} <= set(numbers)
        assert all({"value", "low", "high", "n", "method"} <= set(e) for e in numbers.values())
    assert told["regimes"]["text"]["row_recall"]["value"] is None
    frame = pd.read_parquet(house / "game/game.parquet")
    ours = frame[frame.player == "audit"]
    assert len(ours) == 2 * 3 and set(ours.regime) == set(REGIMES)
    page = (house / "game/game.html").read_text()
    assert "The auditing game" in page and "http://" not in page.replace("http://www.w3.org", "")
    with pytest.raises(InputError, match="no game can be read"):
        GameResult.load(house)


def test_sham_organisms_are_found_by_name_only_inside_these_tests() -> None:
    assert importlib.util.find_spec("sham_organisms") is None
