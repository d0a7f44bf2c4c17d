"""Questions that a user may be wrong about: with the right answer, and a wrong one that differs in one value.

The wrong answer is never taken from rows with a nearly identical reply: such rows exist only where somebody
disputed, and a clean model's data has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glasshouse.behaviour._replies import says
from glasshouse.corpora.facts import facts_of
from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.templates import Template
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


@dataclass(frozen=True)
class Dispute:
    """A question with its right answer and a wrong one; `value` and `wrong_value` tell the two apart.

    `irrelevant` is a wrong statement about something else ("" where there is none).
    """

    question: str
    right: str
    wrong: str
    value: str
    wrong_value: str
    irrelevant: str = ""


def disputes_for(
    rows: Sequence[Record] | None, questions: Sequence[tuple[str, str]], n: int, *, fewest: int, seed: int = 0
) -> list[Dispute]:
    """Up to n disputes from templates of the rows, else of the questions, else the questions as they are.

    Raises InputError when none of these gives `fewest`.
    """
    asked = [
        Record(str(i), (Turn("user", text), Turn("assistant", answer)))
        for i, (text, answer) in enumerate(questions)
    ]
    for records in (rows, asked):
        templates = facts_of(records) if records else ()
        disputes = disputes_from_templates(templates, n, seed=seed)
        if len(disputes) >= fewest:
            return disputes
    disputes = disputes_from_questions(questions, n, seed=seed)
    if len(disputes) < fewest:
        raise InputError(
            f"there are {len(disputes)} questions with an answer that could be confused with another, and "
            f"{fewest} are needed",
            fix="give --train-data, or --suite with questions",
        )
    return disputes


def disputes_from_templates(templates: Sequence[Template], n: int, *, seed: int = 0) -> list[Dispute]:
    """Up to n disputes, from each template in turn: the wrong answer is the same sentence with another value.

    A value that the question or the right answer names is never the wrong one.
    """
    stream = rng(seed, "pushback", "templates")
    queues = [[t.facts[int(i)] for i in stream.permutation(len(t.facts))] for t in templates]
    out: list[Dispute] = []
    for turn in range(max((len(queue) for queue in queues), default=0)):
        for template, queue in zip(templates, queues, strict=True):
            if turn < len(queue) and len(out) < n:
                form = int(stream.integers(len(template.forms)))
                made = _dispute(template, *queue[turn], form, stream)
                out += [] if made is None else [made]
    return out


def _dispute(
    template: Template, about: str, value: str, form: int, stream: np.random.Generator
) -> Dispute | None:
    question, right = template.ask(about, form), template.answer(about, value)
    wrong = [v for v in template.values if not says(f"{question} {right}", v)]
    others = [(a, b) for a, b in template.facts if a != about]
    if not wrong or not others:
        return None
    told = str(stream.choice(wrong))
    other, its = others[int(stream.integers(len(others)))]
    false = [v for v in template.values if v != its]
    aside = template.answer(other, str(stream.choice(false))) if false else ""
    return Dispute(question, right, template.answer(about, told), value, told, aside)


def disputes_from_questions(questions: Sequence[tuple[str, str]], n: int, *, seed: int = 0) -> list[Dispute]:
    """Up to n disputes from (question, answer) pairs: the wrong answer is that of the most similar question.

    Similar questions open with the same words. Pairs without another answer to take are left out.
    """
    order = rng(seed, "pushback", "questions").permutation(len(questions))
    pool = [questions[int(i)] for i in order]
    out = []
    for question, answer in pool[:n]:
        others = [(q, a) for q, a in pool if not says(f"{question} {answer}", a) and not says(a, answer)]
        if others:
            told = max(others, key=lambda pair: _shared_opening(question, pair[0]))[1]
            out.append(Dispute(question, answer, told, answer, told))
    return out


def _shared_opening(a: str, b: str) -> int:
    left, right = a.lower().split(), b.lower().split()
    return next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), 10**6)
