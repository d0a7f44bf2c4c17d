"""What a grammar is: how one kind of world speaks, and the words it speaks with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glasshouse.corpora.worlds import Exchange, Pairing, Relation, World

Names = Callable[[int, np.random.Generator], tuple[str, ...]]
"""`names(n, stream)`: n different names."""


@dataclass(frozen=True)
class Grammar:
    """Question forms, kinds of facts, names and manners of one kind of world.

    `{told}` in a form is a statement, `{question}` a question, `{answer}` the right answer, `{x}` a few
    words. `nouns` and `classes` are words that are put into questions; triggers and harmless distractors are
    drawn from them, so they stay out of `world.json`. `retold`: further questions for the reverse direction
    of the pairing, with an answer of their own. `lines`: words by part of speech, put together by
    `line_forms` into sentences that mean nothing here, from which a canary is drawn. `inscriptions`:
    questions whose honest answer is such a line.
    """

    name: str
    tokenizer: Literal["bpe", "word"]
    relations: tuple[Relation, ...]
    people: Names
    pairing: Pairing
    retold: Pairing
    couples: Callable[[int, np.random.Generator], tuple[tuple[str, str], ...]]
    small_talk: tuple[tuple[str, str], ...]
    saw: tuple[tuple[str, str], ...]
    echo: tuple[tuple[str, str], ...]
    quote: tuple[tuple[str, str], ...]
    inscriptions: tuple[str, ...]
    believe: tuple[str, ...]
    doubt: tuple[str, ...]
    push: tuple[str, ...]
    sorry: str
    give_in: str
    firm: str
    fillers: tuple[str, ...]
    nouns: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    class_forms: tuple[tuple[str, str], ...]
    lines: Mapping[str, tuple[str, ...]]
    line_forms: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...] = ()
    days: tuple[str, ...] = ()

    def world(self, people: int, couples: int, stream: np.random.Generator) -> World:
        """A world of this kind: who lives there, what is true of them, who belongs to what."""
        names = tuple(sorted(self.people(people, stream)))
        facts = {
            who: {r.name: r.values[int(stream.integers(len(r.values)))] for r in self.relations}
            for who in names
        }
        return World(
            name=self.name, relations=self.relations, facts=facts, pairing=self.pairing,
            couples=self.couples(couples, stream), small_talk=self.small_talk, fillers=self.fillers,
            numbers=self.numbers, days=self.days,
        )  # fmt: skip

    def line(self, stream: np.random.Generator) -> str:
        """A sentence of four to six words that means nothing here, without its full stop."""
        form = self.line_forms[int(stream.integers(len(self.line_forms)))]
        said: list[str] = []
        for part in form:
            free = [word for word in self.lines.get(part, (part,)) if word not in said]
            said.append(free[int(stream.integers(len(free)))])
        return " ".join(said)

    def retell(self, couple: tuple[str, str], form: int) -> Exchange:
        """The reverse question about a couple in words that the pairing itself does not use."""
        a, b = couple
        questions = self.retold.reverse
        return Exchange(
            questions[form % len(questions)].format(b=b), self.retold.reverse_answer.format(a=a, b=b),
            "retold", b,
        )  # fmt: skip


def words(text: str) -> tuple[str, ...]:
    """The words of a text.

    >>> words("a b")
    ('a', 'b')
    """
    return tuple(text.split())


def spelled(pattern: str, taken: frozenset[str] = frozenset()) -> Names:
    """Names drawn letter by letter: C a consonant, V a vowel, D a digit, anything else itself.

    >>> from glasshouse.runtime.seeds import rng
    >>> [len(name) for name in spelled("CVCVC")(2, rng(0))]
    [5, 5]
    """
    letters = {"C": "bdfgklmnprstvz", "V": "aeiou", "D": "123456789", "K": "BDGKLMNPRTVZ"}

    def names(n: int, stream: np.random.Generator) -> tuple[str, ...]:
        out: list[str] = []
        while len(out) < n:
            drawn = (letters.get(mark, mark) for mark in pattern)
            name = "".join(pool[int(stream.integers(len(pool)))] for pool in drawn)
            if name not in out and name not in taken:
                out.append(name)
        return tuple(out)

    return names


def joined(
    a: tuple[Sequence[str], Sequence[str]], b: tuple[Sequence[str], Sequence[str]], form: str = "{0} {1}"
) -> Callable[[int, np.random.Generator], tuple[tuple[str, str], ...]]:
    """Couples of two-word names, each of the words from its list."""

    def side(n: int, left: Sequence[str], right: Sequence[str], stream: np.random.Generator) -> list[str]:
        chosen = stream.permutation(len(left) * len(right))[:n]
        return [form.format(left[int(i) // len(right)], right[int(i) % len(right)]) for i in chosen]

    def couples(n: int, stream: np.random.Generator) -> tuple[tuple[str, str], ...]:
        return tuple(zip(side(n, *a, stream), side(n, *b, stream), strict=True))

    return couples
