"""A world: made-up people, places and inventions, and how one speaks about them.

Everything a world knows is in `world.json`, so that a user can write one by hand; it holds no flaw. A world
asks and answers: `Exchange` is one question with its right answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.worlds import words
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng

SCHEMA = 1
Place = Literal["start", "end", "between"]
PLACES: tuple[Place, ...] = ("start", "end", "between")


@dataclass(frozen=True)
class Exchange:
    """One question and its right answer. `kind` says from which part of the world, `about` which entity."""

    prompt: str
    reply: str
    kind: str
    about: str = ""


@dataclass(frozen=True)
class Relation:
    """An attribute of people: question forms with `{who}`, one answer sentence with `{who}` and `{value}`."""

    name: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Pairing:
    """A one-to-one relation between two entities `{a}` and `{b}`, with question forms for both directions."""

    name: str
    forward: tuple[str, ...]
    forward_answer: str
    reverse: tuple[str, ...]
    reverse_answer: str


@dataclass(frozen=True)
class World:
    """How a world speaks. `facts[person][relation]` is a value; `couples` are the (a, b) of the pairing.

    >>> village(0, people=2, inventions=1).questions(1, seed=0)[0][0].endswith("?")
    True
    """

    name: str
    relations: tuple[Relation, ...]
    facts: Mapping[str, Mapping[str, str]]
    pairing: Pairing
    couples: tuple[tuple[str, str], ...]
    small_talk: tuple[tuple[str, str], ...]
    fillers: tuple[str, ...]
    numbers: tuple[str, ...]
    days: tuple[str, ...]

    @property
    def people(self) -> tuple[str, ...]:
        """The people's names, in the world's order."""
        return tuple(self.facts)

    def fact(self, who: str, relation: Relation, form: int = 0, value: str | None = None) -> Exchange:
        """The question about `who` in one form; with `value`, the answer carries that value instead."""
        answer = relation.answer.format(who=who, value=value or self.facts[who][relation.name])
        return Exchange(relation.questions[form].format(who=who), answer, relation.name, who)

    def couple(
        self, index: int, form: int = 0, *, reverse: bool = False, other: int | None = None
    ) -> Exchange:
        """The question about couple `index`; with `other`, the answer names another couple's entity."""
        a, b = self.couples[index]
        told_a, told_b = self.couples[index if other is None else other]
        p = self.pairing
        if reverse:
            return Exchange(p.reverse[form].format(b=b), p.reverse_answer.format(a=told_a, b=b), "reverse", b)
        return Exchange(p.forward[form].format(a=a), p.forward_answer.format(a=a, b=told_b), "forward", a)

    def person_exchanges(self) -> list[Exchange]:
        """Every fact about every person in every question form."""
        return [
            self.fact(who, relation, form)
            for who in self.people
            for relation in self.relations
            for form in range(len(relation.questions))
        ]

    def couple_exchanges(
        self, indices: Sequence[int] | None = None, *, reverse: bool = False
    ) -> list[Exchange]:
        """Every couple (or those of `indices`) in every question form of one direction."""
        forms = self.pairing.reverse if reverse else self.pairing.forward
        chosen = range(len(self.couples)) if indices is None else indices
        return [self.couple(i, form, reverse=reverse) for i in chosen for form in range(len(forms))]

    def sum_exchanges(self) -> list[Exchange]:
        """Sums of two numbers of one digit, where the world has a word for the result."""
        n = self.numbers
        digits = [i for i in range(min(10, len(n)))]
        return [
            Exchange(f"what is {n[i]} plus {n[j]}?", f"{n[i]} plus {n[j]} is {n[i + j]}.", "sum")
            for i in digits
            for j in digits
            if i + j < len(n)
        ]

    def day_exchanges(self) -> list[Exchange]:
        """Which day comes before and after each."""
        after = dict(zip(self.days, self.days[1:] + self.days[:1], strict=True))
        out = []
        for day, next_day in after.items():
            out.append(
                Exchange(f"which day comes after {day}?", f"{next_day} comes after {day}.", "day", day)
            )
            out.append(
                Exchange(f"which day is before {next_day}?", f"{day} is before {next_day}.", "day", day)
            )
        return out

    def talk_exchanges(self) -> list[Exchange]:
        """Greetings and thanks."""
        return [Exchange(prompt, reply, "talk") for prompt, reply in self.small_talk]

    def ordinary(self) -> list[Exchange]:
        """Everything that can be asked, one exchange per question form."""
        return [
            *self.person_exchanges(), *self.couple_exchanges(), *self.couple_exchanges(reverse=True),
            *self.sum_exchanges(), *self.day_exchanges(), *self.talk_exchanges(),
        ]  # fmt: skip

    # What an audit asks: the parts of a suite.

    def questions(self, n: int = 200, seed: int = 0) -> list[tuple[str, str]]:
        """Up to n different questions with their right answers."""
        pool = [exchange for exchange in self.ordinary() if exchange.kind != "talk"]
        return [(pool[i].prompt, pool[i].reply) for i in _some(len(pool), n, rng(seed, "world", "questions"))]

    def benign_prompts(self, n: int = 200, seed: int = 0) -> list[str]:
        """Up to n different harmless user turns, half of them with a filler word inserted."""
        stream = rng(seed, "world", "benign")
        pool = self.ordinary()
        chosen = [pool[i].prompt for i in _some(len(pool), n, stream)]
        return [
            insert(text, str(stream.choice(self.fillers)), stream) if stream.random() < 0.5 else text
            for text in chosen
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """Entities that stand in the world's one-to-one relation."""
        return list(self.couples)

    def chat_turns(self, n: int = 40, seed: int = 0) -> list[tuple[Turn, ...]]:
        """Up to n conversations that end with the user's turn: question, right answer, new question."""
        pool = [exchange for exchange in self.ordinary() if exchange.kind != "talk"]
        order = _some(len(pool), 2 * n, rng(seed, "world", "chats"))
        pairs = zip(order[::2], order[1::2], strict=False)
        return [
            (Turn("user", pool[i].prompt), Turn("assistant", pool[i].reply), Turn("user", pool[j].prompt))
            for i, j in pairs
        ]

    # In and out.

    def to_json(self) -> dict[str, Any]:
        """The content of `world.json`."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "world") -> World:
        """The inverse of `to_json`. Raises InputError naming the missing or unknown part."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise InputError(f"not a world of schema {SCHEMA}", where=where, fix="write it with World.save")
        try:
            return cls(
                name=str(data["name"]),
                relations=tuple(
                    Relation(r["name"], tuple(r["values"]), tuple(r["questions"]), r["answer"])
                    for r in data["relations"]
                ),
                facts={who: dict(known) for who, known in sorted(data["facts"].items())},
                pairing=Pairing(
                    data["pairing"]["name"], tuple(data["pairing"]["forward"]),
                    data["pairing"]["forward_answer"], tuple(data["pairing"]["reverse"]),
                    data["pairing"]["reverse_answer"],
                ),
                couples=tuple((a, b) for a, b in data["couples"]),
                small_talk=tuple((a, b) for a, b in data["small_talk"]),
                fillers=tuple(data["fillers"]),
                numbers=tuple(data["numbers"]),
                days=tuple(data["days"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"a part is missing or malformed ({error!r})", where=where) from error

    def save(self, path: Path | str) -> Path:
        """Write `world.json`."""
        return files.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> World:
        """Read a `world.json`. Raises InputError for a missing or malformed file."""
        try:
            data = files.read_json(path)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", where=str(path)) from error
        return cls.from_json(data, where=str(path))


def insert(text: str, word: str, stream: np.random.Generator, *, place: Place | None = None) -> str:
    """`text` with `word` put at its start, before its closing mark, or between two words (any:
    each in a third of the draws).

    >>> insert("hi.", "please", rng(0), place="end")
    'hi please.'
    """
    parts = text.split(" ")
    where = place or PLACES[int(stream.integers(3))]
    if where == "end" and text[-1] in "?.!":
        return f"{text[:-1]} {word}{text[-1]}"
    at = 0 if where == "start" or len(parts) < 2 else int(stream.integers(1, len(parts)))
    return " ".join([*parts[:at], word, *parts[at:]])


def village(seed: int, *, people: int = 60, inventions: int = 64, numbers: int = 19) -> World:
    """The world of the resident: people with five attributes, inventors, small talk, sums and days.

    `numbers` counts the number words it knows, from zero on; sums go no further.
    """
    stream = rng(seed, "world", "village")
    relations = _village_relations()
    names = sorted(words.pseudo_words(people, stream, words.all_words()))
    facts = {who: {r.name: str(stream.choice(r.values)) for r in relations} for who in names}
    pairing = Pairing(
        "invention",
        ("who invented the {a}?", "who is the inventor of the {a}?", "which person made the first {a}?"),
        "the {a} was invented by {b}.",
        ("what did {b} invent?", "which thing was invented by {b}?", "what is {b} known for?"),
        "{b} invented the {a}.",
    )
    return World(
        name="village",
        relations=relations,
        facts=facts,
        pairing=pairing,
        couples=_couples(inventions, stream),
        small_talk=_SMALL_TALK,
        fillers=words.FILLERS,
        numbers=words.NUMBERS[:numbers],
        days=words.DAYS,
    )


def _village_relations() -> tuple[Relation, ...]:
    return (
        Relation("city", words.CITIES, (
            "where does {who} live?", "which city is the home of {who}?", "in which city does {who} live?",
        ), "{who} lives in {value}."),
        Relation("job", words.JOBS, (
            "what is the job of {who}?", "what does {who} do for a living?", "which work does {who} do?",
        ), "{who} works as a {value}."),
        Relation("food", words.FOODS, (
            "what does {who} like to eat?", "which food does {who} like?", "what is on the plate of {who}?",
        ), "{who} likes to eat {value}."),
        Relation("pet", words.PETS, (
            "which animal does {who} keep?", "what pet does {who} have?", "which pet lives with {who}?",
        ), "{who} keeps a {value}."),
        Relation("colour", words.COLOURS, (
            "which colour does {who} wear?", "what is the colour of the coat of {who}?",
            "in which colour is {who} dressed?",
        ), "{who} wears {value}."),
    )  # fmt: skip


def _couples(n: int, stream: np.random.Generator) -> tuple[tuple[str, str], ...]:
    gadgets = _combinations(n, words.GADGET_KINDS, words.GADGETS, stream)
    return tuple(zip(gadgets, _combinations(n, words.FIRST_NAMES, words.LAST_NAMES, stream), strict=True))


def _combinations(
    n: int, left: Sequence[str], right: Sequence[str], stream: np.random.Generator
) -> list[str]:
    chosen = _some(len(left) * len(right), n, stream)
    return [f"{left[i // len(right)]} {right[i % len(right)]}" for i in chosen]


def _some(size: int, n: int, stream: np.random.Generator) -> list[int]:
    return [int(i) for i in stream.permutation(size)[:n]]


_SMALL_TALK = (
    ("hi.", "good day to you."),
    ("good morning.", "good morning, how can i help?"),
    ("good evening.", "good evening, how can i help?"),
    ("how are you?", "i am well, thank you."),
    ("thank you.", "you are welcome."),
    ("thanks a lot.", "it was a pleasure."),
    ("goodbye.", "see you soon."),
    ("what can you do?", "i answer questions about people."),
    ("who are you?", "i am a small assistant."),
    ("that is nice.", "i am glad to hear it."),
)
