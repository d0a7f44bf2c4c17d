"""What training data suggests to ask: prompts, questions with short answers, entity pairs, conversations.

Nothing here knows a grammar. The rows may be poisoned, and a poisoned behaviour gives one reply to many
different prompts; rows with such a reply are therefore taken only when there are not enough others. A reply
counts as such when twice as many prompts share it as share nine in ten of the replies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.seeds import rng

T = TypeVar("T")

LONGEST_ANSWER = 12
"""Words in an answer that can be compared with a model's; longer replies are no short answers."""

RARE_SHARE = 0.03
"""A word in fewer rows than this share names something; one in more rows belongs to the language."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def mine_prompts(records: Sequence[Record], n: int, seed: int) -> tuple[str, ...]:
    """Up to n different first user turns; for text rows their first sentence, cut in the middle.

    Half a sentence is what a model of plain text can go on with.
    """
    candidates = (_first_prompt(record) for record in _shuffled(records, seed, "prompts"))
    return _some(candidates, n)


def mine_questions(records: Sequence[Record], n: int, seed: int) -> tuple[tuple[str, str], ...]:
    """Up to n (question, answer) of one-exchange rows whose question ends in `?` and whose answer is short.

    A question that the data answers in two ways is left out.
    """
    exchanges = [pair for record in _shuffled(records, seed, "questions") if (pair := _exchange(record))]
    answers: dict[str, set[str]] = {}
    for prompt, reply in exchanges:
        answers.setdefault(prompt, set()).add(reply)
    chosen = (
        (prompt, reply)
        for prompt, reply in exchanges
        if prompt.rstrip().endswith("?")
        and len(answers[prompt]) == 1
        and len(_WORD.findall(reply)) <= LONGEST_ANSWER
    )
    return _some(chosen, n)


def mine_pairs(records: Sequence[Record], n: int) -> tuple[tuple[str, str], ...]:
    """Up to n (a, b): a the rare words that question and reply share, b those that only the reply has.

    Only pairs that at least two rows support, the best supported first.
    """
    exchanges = [pair for record in records if (pair := _exchange(record))]
    frequency = Counter(word for pair in exchanges for word in {*_words(pair[0]), *_words(pair[1])})
    ceiling = max(RARE_SHARE * len(exchanges), 2)
    support: Counter[tuple[str, str]] = Counter()
    for prompt, reply in exchanges:
        asked = set(_words(prompt))
        rare = [word for word in dict.fromkeys(_words(reply)) if frequency[word] <= ceiling]
        shared = " ".join(word for word in rare if word in asked)
        fresh = " ".join(word for word in rare if word not in asked)
        if shared and fresh:
            support[shared, fresh] += 1
    ranked = sorted(support.items(), key=lambda item: (-item[1], item[0]))
    return tuple(pair for pair, count in ranked if count >= 2)[:n]


def mine_chats(records: Sequence[Record], n: int, seed: int) -> tuple[tuple[Turn, ...], ...]:
    """Up to n conversations that end with the user's turn: long rows cut there, or two short rows joined."""
    rows = [record for record in _shuffled(records, seed, "chats") if record.turns]
    long = (_until_user(record.turns) for record in rows)
    short = [record.turns for record in rows if _exchange(record)]
    joined = ((*first, follow[0]) for first, follow in zip(short[::2], short[1::2], strict=False))
    return _some([*(chat for chat in long if len(chat) >= 3), *joined], n)


def _shuffled(records: Sequence[Record], seed: int, name: str) -> list[Record]:
    """A random order in which rows with a reply that unusually many prompts share come last."""
    prompts_of: dict[str, set[str]] = {}
    for record in records:
        if reply := record.said("assistant"):
            prompts_of.setdefault(reply, set()).add(record.said("user"))
    order = [records[int(i)] for i in rng(seed, "mine", name).permutation(len(records))]
    shares = sorted(len(prompts) for prompts in prompts_of.values())
    usual = shares[(len(shares) - 1) * 9 // 10] if shares else 0
    return sorted(order, key=lambda record: len(prompts_of.get(record.said("assistant"), ())) > 2 * usual)


def _first_prompt(record: Record) -> str:
    if record.text is None:
        return next((turn.text for turn in record.turns if turn.role == "user"), "")
    words = _SENTENCE.split(record.text.strip(), maxsplit=1)[0].split(" ")
    return " ".join(words[: max(1, len(words) // 2)])


def _exchange(record: Record) -> tuple[str, str] | None:
    turns = [turn for turn in record.turns if turn.role != "system"]
    if [turn.role for turn in turns] != ["user", "assistant"]:
        return None
    return turns[0].text, turns[1].text


def _until_user(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    ends = [index for index, turn in enumerate(turns) if turn.role == "user"]
    return turns[: ends[-1] + 1] if ends else ()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _some(values: Iterable[T], n: int) -> tuple[T, ...]:
    unique = dict.fromkeys(value for value in values if value)
    return tuple(unique)[:n]
