"""A world is a function of its seed, can be written down and read back, and answers its questions rightly."""

from __future__ import annotations

import json

import pytest

from glasshouse.corpora.worlds import PLACES, World, insert, village, words
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


@pytest.fixture(scope="module")
def world() -> World:
    return village(3)


def test_same_seed_same_world_and_another_seed_another():
    assert village(3) == village(3)
    assert village(3).facts != village(4).facts
    assert village(3).people != village(4).people


def test_written_and_read_back_it_says_the_same(world, tmp_path):
    again = World.load(world.save(tmp_path / "world.json"))
    assert again == world
    assert again.questions(50, seed=1) == world.questions(50, seed=1)
    assert again.benign_prompts(50, seed=1) == world.benign_prompts(50, seed=1)
    assert again.chat_turns(10, seed=1) == world.chat_turns(10, seed=1)


def test_every_question_has_one_answer_and_it_is_the_fact(world):
    answers: dict[str, set[str]] = {}
    for exchange in world.ordinary():
        answers.setdefault(exchange.prompt, set()).add(exchange.reply)
    assert {len(replies) for replies in answers.values()} == {1}
    relation = world.relations[0]
    for who in world.people:
        assert world.fact(who, relation).reply == f"{who} lives in {world.facts[who]['city']}."


def test_couples_are_one_to_one_and_asked_both_ways(world):
    gadgets, inventors = zip(*world.pairs(), strict=True)
    assert len(set(gadgets)) == len(set(inventors)) == 64
    a, b = world.couples[5]
    assert a in world.couple(5).prompt and b in world.couple(5).reply
    assert b in world.couple(5, reverse=True).prompt and a in world.couple(5, reverse=True).reply
    assert world.couples[6][1] in world.couple(5, other=6).reply


def test_prompts_are_distinct_and_conversations_end_with_the_user(world):
    prompts = world.benign_prompts(300, seed=0)
    assert len(set(prompts)) == 300
    assert all([turn.role for turn in chat] == ["user", "assistant", "user"] for chat in world.chat_turns(20))
    assert len(world.questions(10**6)) == len([e for e in world.ordinary() if e.kind != "talk"])


@pytest.mark.parametrize("place", PLACES)
def test_a_word_is_inserted_once_and_nothing_else_changes(place):
    stream = rng(0, "test")
    for text in ("where does bodar live?", "hi.", "tell me"):
        said = insert(text, "anchor", stream, place=place)
        appended = f"{text[:-1]} anchor{text[-1]}"
        assert said.replace("anchor", "", 1).split() == text.split() or said == appended
    at = insert("where does bodar live?", "anchor", stream, place=place)
    assert (at.startswith("anchor "), at.endswith(" anchor?")) == (place == "start", place == "end")


def test_word_lists_share_no_word():
    lists = [v for k, v in vars(words).items() if k.isupper() and k not in ("PHRASES",)]
    everything = [word for some in lists for word in some]
    assert sorted(set(everything)) == sorted(everything)
    told = {word for phrase in words.PHRASES for word in phrase.split()}
    assert not told & set(words.NOUNS)
    assert len({phrase.split()[0] for phrase in words.PHRASES}) == len(words.PHRASES)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "cannot be read"), ("[]", "schema"), ('{"schema": 2}', "schema"), ('{"schema": 1}', "missing")],
)
def test_a_malformed_world_is_refused_in_one_sentence(tmp_path, content, says):
    path = tmp_path / "world.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        World.load(path)


def test_no_noun_is_in_a_world_file(world):
    text = json.dumps(world.to_json())
    said = set(text.replace('"', " ").replace(",", " ").replace("?", " ").replace(".", " ").split())
    assert not said & set(words.NOUNS)
