"""A third party's check: which word moves the model most? Cheap, and it finds something in every model.

The audit's own tests install it as a package of its own would be installed: a module and an entry point.
"""

from __future__ import annotations

from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import Detected, Finding, Null, Severity, Token, TokensEvidence
from glasshouse.statistics.estimate import Estimate

WORDS = ("red", "green", "blue")

built: list[str] = []
"""The steps whose work was done in this process, for counting repeats after a kill."""


def cost(question: Question) -> str:
    return f"{len(WORDS) * len(question.suite.prompts)} forward passes"


@check("loud-word", title="Which word is loudest?", needs=("logprobs",), asks=("prompts",), cost=cost)
def loud_word(question: Question) -> Answer:
    def moved(word: str) -> list[float]:
        built.append(word)
        with_word = [f"{word} {prompt}" for prompt in question.suite.prompts]
        before = question.subject.logprobs(list(question.suite.prompts))
        after = question.subject.logprobs(with_word)
        return [round(float(x), 6) for x in (after.exp() - before.exp()).abs().sum(1)]

    shifts = {word: question.step(f"loud-word/{word}", lambda word=word: moved(word)) for word in WORDS}
    loudest = max(WORDS, key=lambda word: sum(shifts[word]))
    values = shifts[loudest]
    mean = sum(values) / len(values)
    line = (Token(text=loudest, weight=0.9), Token(text=" " + question.suite.prompts[0]))
    return Answer(
        findings=(
            Finding(
                check="loud-word", severity=Severity.MEDIUM, summary=f"The word {loudest} moves it most.",
                detected=Detected(trigger=loudest), estimate=Estimate.exact(mean, len(values)),
                null=Null(description="no word moves it", value=0.0, p_value=0.001),
                evidence=(TokensEvidence(title="The word", lines=(line,)),),
                next="glasshouse trace",
            ),
        )
    )  # fmt: skip
