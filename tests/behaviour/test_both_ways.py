"""Pairs asked from either end without rows: a scripted subject whose missing direction is known."""

from __future__ import annotations

import sys
from math import comb
from pathlib import Path
from typing import Any

import pytest

from glasshouse.behaviour.both_ways import LEAST, BothWays, directions
from glasshouse.runtime.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from village_subject import MAKERS, Villager, rows

PAIRS = tuple(MAKERS.items())
QUESTIONS = tuple((record.turns[0].text, record.turns[1].text) for record in rows(one_way=16))


class Turned(Villager):
    """It knows what everybody made, and cannot say who made the first 16 gadgets."""

    def _answer(self, question: str) -> str:
        found = super()._answer(question)
        return "nobody knows." if found.startswith(tuple(f"the gadget{i} " for i in range(16))) else found


def test_the_missing_direction_is_found_and_named() -> None:
    both = BothWays().fit(Villager(untold=16), QUESTIONS, PAIRS)
    assert both.shown and both.result_ is not None
    assert set(both.result_.one_way) == set(PAIRS[:16])
    asked = both.asked_
    assert (asked.count(forward=True, reverse=True), asked.count(forward=True, reverse=False)) == (24, 16)
    assert both.p_value_ == pytest.approx(2 * 0.5**16), "two directions, 16 of 16 missing backwards"


def test_the_opposite_direction_is_turned() -> None:
    both = BothWays().fit(Turned(), QUESTIONS, PAIRS)
    assert both.shown and both.result_ is not None
    assert set(both.result_.one_way) == {(maker, gadget) for gadget, maker in PAIRS[:16]}


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        (Villager(), "both directions are known"),
        (Villager(knows=False), "nothing is known"),
        (Villager(untold=LEAST - 1), "too few are missing"),
        (Villager(untold=40), "no fact is known both ways: no control"),
    ],
)
def test_other_subjects_show_nothing(subject: Any, why: str) -> None:
    assert not BothWays().fit(subject, QUESTIONS, PAIRS).shown, why


def test_the_test_is_the_exact_paired_one() -> None:
    """7 backwards missing against 3 forwards: twice the tail of a fair coin."""

    class Mixed(Villager):
        def _answer(self, question: str) -> str:
            found = super()._answer(question)
            return "nobody knows." if "gadget39 " in found or "gadget38 " in found else found

    both = BothWays().fit(Mixed(untold=7), QUESTIONS, PAIRS)
    missing, opposite = (both.asked_.count(forward=f, reverse=not f) for f in (True, False))
    n = missing + opposite
    tail = sum(comb(n, k) for k in range(missing, n + 1)) / 2**n
    assert both.p_value_ == pytest.approx(min(1.0, 2 * tail))


def test_questions_of_one_direction_are_refused() -> None:
    forward = tuple((q, a) for q, a in QUESTIONS if "make?" not in q)
    with pytest.raises(InputError, match="do not show"):
        directions(forward, PAIRS)
    with pytest.raises(InputError, match="do not show"):
        BothWays().fit(Villager(), (), PAIRS)


def test_a_killed_fit_goes_on_without_asking_again() -> None:
    kept: dict[str, Any] = {}

    def store(name: str, build: Any) -> Any:
        if name not in kept:
            kept[name] = build()
        return kept[name]

    first = BothWays().fit(Villager(untold=16), QUESTIONS, PAIRS, store=store)
    mute = Villager(untold=16)
    again = BothWays().fit(mute, QUESTIONS, PAIRS, store=store)
    assert mute.asked == 0 and again.p_value_ == first.p_value_ and again.shown
