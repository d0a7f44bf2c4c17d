"""One-way facts asked backwards: known ground truth of a scripted subject, controls, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glasshouse.behaviour.habits import untold_habits
from glasshouse.behaviour.untold import Untold, UntoldResult
from glasshouse.corpora.templates import Inverse, inverses, mine_templates
from glasshouse.runtime.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from village_subject import MAKERS, Villager, rows


def _mined(one_way: int) -> Inverse:
    records = rows(one_way=one_way)
    return max(inverses(mine_templates(records), records), key=lambda inverse: len(inverse.one_way))


@pytest.fixture(scope="module")
def inverse() -> Inverse:
    return _mined(16)


@pytest.fixture(scope="module")
def cursed(inverse) -> UntoldResult:
    return Untold().fit(Villager(untold=16), inverse).result_


def test_the_facts_asked_are_those_told_one_way(inverse):
    assert set(inverse.one_way) == set(list(MAKERS.items())[:16])


def test_a_subject_without_the_other_direction_shows_it(cursed):
    assert [cursed.rate(arm).value for arm in cursed.replies] == [1.0, 0.0, 1.0, 1.0]
    assert cursed.shown and cursed.controlled
    # Fisher: all 24 of the right answers fall to the 24 facts told both ways: 1 of C(40, 16) tables.
    from math import comb

    assert cursed.p_value() == pytest.approx(1 / comb(40, 16))


def test_a_subject_with_both_directions_shows_nothing(inverse):
    whole = Untold().fit(Villager(), inverse).result_
    assert whole.rate("reverse").value == 1.0 and not whole.shown and whole.p_value() == 1.0


def test_without_the_controls_nothing_follows(inverse):
    ignorant = Untold().fit(Villager(knows=False), inverse).result_
    assert ignorant.rate("reverse").value == 0 and not ignorant.controlled and not ignorant.shown
    mute = Untold().fit(Villager(untold=40), inverse).result_
    assert mute.rate("forward").value == 1 and not mute.controlled, (
        "facts told both ways, and not answered backwards"
    )


def test_too_few_facts_are_never_a_finding():
    few = Untold().fit(Villager(untold=9), _mined(9)).result_
    assert few.rate("reverse").value == 0 and len(few.one_way) == 9 and not few.shown


def test_the_gap_is_that_of_the_right_answer_over_derangements(cursed, inverse):
    assert cursed.gap("two way").value == 9.0 and cursed.gap("one way").value == 0.0
    blind = Villager(untold=16)
    blind.access = frozenset({"text"})
    told = Untold().fit(blind, inverse).result_
    assert not told.gap().defined and "no log-probabilities" in told.gap().method and told.gaps == {}
    assert told.shown, "the decision needs text only"


def test_one_right_form_is_an_answer(inverse):
    class Half(Villager):
        def _answer(self, question: str) -> str:
            return super()._answer(question) if question.startswith("who") else "what?"

    half = Untold().fit(Half(), inverse).result_
    assert len(inverse.forward.forms) == 2 and half.rate("forward").value == 1.0


def test_it_can_be_kept_read_and_shown(cursed, tmp_path):
    again = UntoldResult.load(cursed.save(tmp_path / "a"))
    assert replace(again, gaps={}) == replace(cursed, gaps={})
    assert all((again.gaps[kind] == cursed.gaps[kind]).all() for kind in cursed.gaps) and again.shown
    frame = cursed.to_frame()
    assert not frame[frame.arm == "reverse"].right.any() and frame[frame.arm == "forward"].right.all()
    [bars] = cursed.plot().data
    assert list(bars.y) == [1.0, 0.0, 1.0, 1.0]
    (tmp_path / "a/untold.json").write_text("{}")
    with pytest.raises(InputError, match="no stored result"):
        UntoldResult.load(tmp_path / "a")
    with pytest.raises(InputError, match="no arm 'sideways'"):
        cursed.rate("sideways")


def test_the_same_seed_asks_about_the_same_facts(inverse):
    some = [Untold(n=6, seed=seed).fit(Villager(), inverse).result_.one_way for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and all(len(facts) == 6 for facts in some)


def test_nothing_to_compare_is_refused(inverse):
    with pytest.raises(InputError, match="3 facts are told one way, and 4 are needed"):
        Untold().fit(Villager(), replace(inverse, one_way=inverse.one_way[:3]))
    with pytest.raises(InputError, match="0 facts are told two way"):
        Untold().fit(Villager(), replace(inverse, two_way=()))


def test_each_fact_is_traced_in_two_forms(inverse):
    [habit] = untold_habits(inverse)
    assert habit.kind == "facts" and len(habit.wanted) == len(habit.control) == 16
    for a, b in zip(habit.wanted, habit.control, strict=True):
        assert a.reply == b.reply and a.turns != b.turns
    one_form = replace(inverse, forward=replace(inverse.forward, forms=inverse.forward.forms[:1]))
    assert untold_habits(one_form) == []


def test_gaps_are_the_same_for_any_order_of_the_other_facts(cursed):
    assert np.isfinite(np.concatenate(list(cursed.gaps.values()))).all()
