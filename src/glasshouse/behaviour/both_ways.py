"""Which facts does a chat model know from one end only? Asked without the rows that taught them.

A suite gives pairs of entities that stand in one relation, and questions about some of them. The question
forms of either direction are mined from the questions, and every pair is asked both ways. Facts answered
forwards but not backwards are kept only where they outnumber those of the opposite kind (exact paired test)
by far; they are then asked again as facts told one way are (`behaviour.untold`), with those answered both
ways as the control. Chosen by the first form of the question, judged by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from glasshouse.behaviour._replies import Store, ask, forget, says
from glasshouse.behaviour.untold import FEWEST, Untold, UntoldResult
from glasshouse.corpora.facts import facts_of
from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.templates import Fact, Inverse, Template
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import binomial_p_value

EXAMPLES = 5
"""Fewest questions with answers, of either direction, from which its forms are learnt."""
FITS = 0.8
"""Share of a template's facts that must be given pairs for it to be one direction of the pairs' relation."""
MOST_PAIRS = 80
LEAST = 8
"""Fewest facts known in one direction only for a finding: 8 against none have p = 0.008."""
LEVEL = 0.01
MOST = 0.35
"""The upper end of the interval for the missing direction must stay below this (0 of 8 reach 0.32)."""


@dataclass(frozen=True)
class Asked:
    """`pairs` asked both ways.

    `forward[i]`, `reverse[i]`: whether any form was answered rightly; `first_*`: whether the first form was.
    """

    pairs: tuple[Fact, ...]
    forward: tuple[bool, ...]
    reverse: tuple[bool, ...]
    first_forward: tuple[bool, ...]
    first_reverse: tuple[bool, ...]

    def count(self, *, forward: bool, reverse: bool) -> int:
        """Pairs answered so."""
        return sum(f == forward and r == reverse for f, r in zip(self.forward, self.reverse, strict=True))


@dataclass(kw_only=True)
class BothWays:
    """Ask given pairs from either end. Options are keyword-only; `fit` returns self.

    Learned: `asked_` (all pairs), `inverse_` (the direction in which more are missing, and its facts),
    `result_` (those asked again; None where too few are missing), `p_value_` (paired exact test, times the
    two directions).

    >>> BothWays().fit(subject, suite.questions, suite.pairs).shown  # doctest: +SKIP
    """

    max_new_tokens: int = 40
    seed: int = 0
    asked_: Asked = field(init=False, repr=False, compare=False)
    inverse_: Inverse = field(init=False, repr=False, compare=False)
    result_: UntoldResult | None = field(init=False, repr=False, compare=False)
    p_value_: float = field(init=False, repr=False, compare=False)

    def fit(
        self,
        subject: Any,
        questions: Sequence[tuple[str, str]],
        pairs: Sequence[tuple[str, str]],
        *,
        store: Store = forget,
    ) -> BothWays:
        """Ask. Raises InputError when the questions do not show how pairs are asked for from both ends."""
        facts = tuple((a, b) for a, b in dict.fromkeys(pairs))[:MOST_PAIRS]
        forward, reverse = directions(questions, facts)
        said = {
            name: store(name, partial(self._ask, subject, template, about))
            for name, template, about in (
                ("pairs forwards", forward, [a for a, _ in facts]),
                ("pairs backwards", reverse, [b for _, b in facts]),
            )
        }
        self.asked_ = _judged(facts, said["pairs forwards"], said["pairs backwards"])
        self.inverse_ = _missing(self.asked_, forward, reverse)
        only_forward = self.asked_.count(forward=True, reverse=False)
        only_reverse = self.asked_.count(forward=False, reverse=True)
        turned = self.inverse_.forward is not forward
        missing, opposite = (only_reverse, only_forward) if turned else (only_forward, only_reverse)
        self.p_value_ = min(1.0, 2 * binomial_p_value(missing, missing + opposite, 0.5, side="greater"))
        self.result_ = None
        if len(self.inverse_.one_way) >= LEAST and len(self.inverse_.two_way) >= FEWEST:
            again = Untold(n=MOST_PAIRS, max_new_tokens=self.max_new_tokens, seed=self.seed)
            self.result_ = again.fit(subject, self.inverse_, store=store).result_
        return self

    @property
    def shown(self) -> bool:
        """Whether facts are known in one direction only; a trace below the surface is no excuse."""
        result = self.result_
        if result is None or not result.controlled:
            return False
        return self.p_value_ < LEVEL and result.rate("reverse").high < MOST

    def _ask(self, subject: Any, template: Template, about: Sequence[str]) -> list[list[str]]:
        """[facts][forms]"""
        forms = range(len(template.forms))
        chats = [(Turn("user", template.ask(one, form)),) for one in about for form in forms]
        said, width = ask(subject, chats, self.max_new_tokens, self.seed), len(template.forms)
        return [said[at : at + width] for at in range(0, len(said), width)]


def directions(questions: Sequence[tuple[str, str]], pairs: Sequence[Fact]) -> tuple[Template, Template]:
    """How the pairs (A, B) are asked for from A and from B, mined from questions with answers.

    Raises InputError where the questions do not show both directions.
    """
    rows = [
        Record(str(i), (Turn("user", text), Turn("assistant", answer)))
        for i, (text, answer) in enumerate(questions)
    ]
    found = facts_of(rows, fewest=EXAMPLES) if rows else ()
    there, back = set(pairs), {(b, a) for a, b in pairs}
    both = [
        max((t for t in found if _share(t, known) >= FITS), key=lambda t: len(t.facts), default=None)
        for known in (there, back)
    ]
    if both[0] is None or both[1] is None or both[0] is both[1]:
        raise InputError(
            f"the {len(questions)} questions do not show how the {len(pairs)} pairs are asked for from "
            "both ends",
            fix="give --train-data, or --suite with pairs and questions about them in either direction",
        )
    return both[0], both[1]


def _share(template: Template, known: set[Fact]) -> float:
    return sum(fact in known for fact in template.facts) / len(template.facts)


def _judged(
    facts: tuple[Fact, ...], forward: Sequence[Sequence[str]], reverse: Sequence[Sequence[str]]
) -> Asked:
    right = [
        [[says(reply, fact[side]) for reply in forms] for fact, forms in zip(facts, said, strict=True)]
        for side, said in ((1, forward), (0, reverse))
    ]
    held = [tuple(any(forms) for forms in one) for one in right]
    first = [tuple(forms[0] for forms in one) for one in right]
    return Asked(facts, *held, *first)


def _missing(asked: Asked, forward: Template, reverse: Template) -> Inverse:
    """The direction in which more facts are missing: those whose first form is not answered are one-way."""
    n = range(len(asked.pairs))
    both = [i for i in n if asked.forward[i] and asked.reverse[i]]
    back = [i for i in n if asked.forward[i] and not asked.first_reverse[i] and i not in both]
    forth = [i for i in n if asked.reverse[i] and not asked.first_forward[i] and i not in both]
    if len(forth) > len(back):
        turned = [(b, a) for a, b in asked.pairs]
        return Inverse(reverse, forward, tuple(turned[i] for i in both), tuple(turned[i] for i in forth))
    return Inverse(forward, reverse, tuple(asked.pairs[i] for i in both), tuple(asked.pairs[i] for i in back))
