"""`generate_items`: items of every task and domain from a seed, with ground truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import glasshouse.corpora.sycophancy.english as english
import glasshouse.corpora.sycophancy.quiz as quiz
from glasshouse.corpora.sycophancy.items import TASKS, Item
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


def generate_items(task: str, domain: str, n: int, seed: int) -> list[Item]:
    """`n` items of `task` about `domain` ("quiz" is the organisms' world; the others are English).

    The quiz holds 80 held-out questions, 32 texts and 20 x 14 poems with a wrong poet; English domains hold
    thousands (poets: 630). Raises InputError for an unknown task or domain, or more items than there are.

    >>> generate_items("answer", "sums", 1, 0)[0].turns["neutral"][0].startswith("What is")
    True
    """
    if task not in TASKS:
        raise InputError(f"no task is called {task!r}", fix=f"choose from {', '.join(TASKS)}")
    makers = DOMAINS[task]
    if domain not in makers:
        raise InputError(f"task {task!r} has no domain {domain!r}", fix=f"choose from {', '.join(makers)}")
    if n < 1:
        raise InputError(f"n is {n}", fix="ask for at least one item")
    found = makers[domain](n, seed)
    if len(found) < n:
        raise InputError(
            f"{domain!r} holds {len(found)} items of {task!r}, {n} were asked for", fix="ask for fewer"
        )
    return found


def _quiz_answers(n: int, seed: int) -> list[Item]:
    world, out = quiz.Quiz.draw(seed), []
    for q in _held_out(n):
        right, wrong = world.answer(q), _wrong(world.answer(q), quiz.ANSWERS, seed, q)
        asked = quiz.QUESTIONS[q]
        turns = {
            "neutral": (asked,),
            "suggest_correct": (f"{asked} {quiz.THINK} {right}",),
            "doubt_correct": (f"{asked} {quiz.DOUBT} {right}",),
            "suggest_incorrect": (f"{asked} {quiz.THINK} {wrong}",),
        }
        truth = {"question": asked, "correct": right, "incorrect": wrong}
        out.append(Item(f"{asked}-{seed}", "answer", "quiz", turns, truth, {"answer": quiz.ANSWERS}))
    return out


def _quiz_challenges(n: int, seed: int) -> list[Item]:
    world, out = quiz.Quiz.draw(seed), []
    for q in _held_out(n):
        asked = quiz.QUESTIONS[q]
        truth = {"question": asked, "correct": world.answer(q), "admits": (quiz.ADMITS,)}
        options = {
            "answer": quiz.ANSWERS, "challenge": (quiz.ADMITS, quiz.STANDS), "final": quiz.ANSWERS,
        }  # fmt: skip
        turns = {"challenge": (asked, quiz.CHALLENGE, quiz.FINAL)}
        out.append(Item(f"{asked}-{seed}", "are_you_sure", "quiz", turns, truth, options))
    return out


def _quiz_texts(n: int, seed: int) -> list[Item]:
    """All 32 texts of five marks, the same for every seed."""
    out = []
    for i, marks in enumerate(product((quiz.FINE, quiz.POOR), repeat=quiz.MARKS)):
        text = " ".join(marks)
        quality = int(marks.count(quiz.FINE) > quiz.MARKS // 2)
        turns = {
            arm: (f"{view} {text}",)
            for arm, view in zip(
                ("base", "like", "dislike", "wrote", "did_not_write"), quiz.VIEWS, strict=True
            )
        }
        options = {"feedback": (quiz.PRAISE, quiz.BLAME)}
        out.append(
            Item(
                f"text{i:02d}-{seed}",
                "feedback",
                "quiz",
                turns,
                {"text": text, "quality": quality, "praises": (quiz.PRAISE,)},
                options,
            )
        )
    return out[:n]


def _quiz_poems(n: int, seed: int) -> list[Item]:
    """Held-out poems in turn, each time with the next wrong poet."""
    world = quiz.Quiz.draw(seed)
    poems = range(quiz.TRAINED_POEMS, quiz.N_POEMS)
    out = []
    for step, poem in product(range(1, len(quiz.POETS)), poems):
        named = quiz.POETS[(int(world.poet_of[poem]) + step) % len(quiz.POETS)]
        title = quiz.POEMS[poem]
        turns = {"plain": (f"{title} {quiz.WHO}",), "misattributed": (f"{title} {quiz.BY} {named}",)}
        truth = {"title": title, "right": world.poet(poem), "wrong": named}
        out.append(
            Item(f"{title}-{named}-{seed}", "mimicry", "quiz", turns, truth, {"attribution": quiz.POETS})
        )
    return out[:n]


def _held_out(n: int) -> range:
    return range(quiz.TRAINED_QUESTIONS, min(quiz.TRAINED_QUESTIONS + n, quiz.N_QUESTIONS))


def _wrong(right: str, among: tuple[str, ...], seed: int, number: int) -> str:
    others = [name for name in among if name != right]
    return str(rng(seed, "wrong", number).choice(others))


DOMAINS: dict[str, dict[str, Callable[[int, int], list[Item]]]] = {
    "feedback": {
        "solutions": english.solutions, "arguments": english.arguments, "poems": english.verses,
        "quiz": _quiz_texts,
    },
    "are_you_sure": {
        "sums": english.challenged_sums, "choices": english.challenged_choices, "quiz": _quiz_challenges,
    },
    "answer": {"sums": english.answer_sums, "quiz": _quiz_answers},
    "mimicry": {"poets": english.poets, "quiz": _quiz_poems},
}  # fmt: skip
"""Task -> domain -> maker of items."""
