"""The task `glasshouse/questions`: a suite's questions, each graded against its stated answer.

Reached as `inspect eval glasshouse/questions -T suite=FILE --model ...`; `suite` may be a suite file, the
folder of an organism or `organism://NAME`, whose world then asks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from glasshouse.corpora.suites import Suite
from glasshouse.runtime.errors import SuiteError


def questions_task(suite: Suite, *, n: int = 200, max_tokens: int = 32) -> Task:
    """Ask the first `n` questions of a suite, greedily; `stated` says whether the answer was said.

    Raises SuiteError for a suite without questions.
    """
    if not suite.questions:
        raise SuiteError("the suite has no questions", fix="give one with questions and answers")
    return Task(
        dataset=MemoryDataset(question_samples(suite.questions[:n]), name="questions"),
        solver=generate(),
        scorer=answer_stated(),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
        version=1,
        metadata={"suite": suite.sha256, "source": suite.source},
    )


def question_samples(questions: Sequence[tuple[str, str]]) -> list[Sample]:
    """One sample per question, with ids that depend on nothing but the place in the suite."""
    return [
        Sample(
            input=prompt,
            target=answer,
            id=f"question-{index:04d}",
            metadata={"arm": "plain", "pair_id": f"question-{index:04d}", "group": "questions"},
        )
        for index, (prompt, answer) in enumerate(questions)
    ]


@scorer(metrics={"*": [mean(), stderr()]})  # type: ignore[untyped-decorator]
def answer_stated() -> Scorer:
    """`stated`: 1 where the reply contains the answer as whole words, whatever case and punctuation.

    A reply that is empty or was cut off before it said the answer has no grade (NaN), not a wrong one.
    """

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion
        stated = any(contains_words(reply, answer) for answer in target)
        if not stated and (not reply.strip() or state.output.stop_reason in ("max_tokens", "model_length")):
            return Score(value={"stated": float("nan")}, answer=reply, reason="no_answer")
        return Score(value={"stated": float(stated)}, answer=reply)

    return score


def contains_words(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words in a row, whatever case, accents' form and punctuation.

    >>> contains_words("It was Ada Zeller!", "ada zeller"), contains_words("adage", "ada")
    (True, False)
    """
    wanted = _words(words)
    return bool(wanted) and f" {wanted} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
