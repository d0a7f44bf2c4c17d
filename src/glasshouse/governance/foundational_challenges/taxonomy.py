"""The challenges card: for one model, which open questions have evidence, from what, saying what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from glasshouse.governance._card import Card, CardField, Date, Quantity, Strict
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Context, Issue, check_date
from glasshouse.governance.foundational_challenges.challenge_map import ChallengeMap, QuestionId, load_map

Stance = Literal["supports", "refutes", "mixed"]


class Record(Strict):
    """What one piece of evidence says about one question for this model."""

    question: QuestionId
    stance: Stance
    method: Annotated[str, Field(max_length=60)] | None = None
    metric: Quantity | None = None
    date: Date | None = None


class ChallengesCard(Card):
    """A safety case's evidence: records under names of the user's choice. The rest was not evaluated."""

    SECTIONS: ClassVar[Mapping[str, str]] = {"/evidence/": "Evidence"}

    card_type: Literal["challenges"] = "challenges"
    evidence: dict[str, CardField[Record]] = Field(default_factory=dict)


def check(card: ChallengesCard, context: Context) -> Iterator[Issue]:
    """Every L2 issue of a challenges card."""
    found = load_map()
    for name, one in card.evidence.items():
        if one.value is None:
            continue
        pointer = f"/evidence/{name}/value"
        try:
            found.question(one.value.question)
        except CardError as error:
            yield Issue("E-QUESTION", f"{pointer}/question", error.what, error.fix or "")
        if one.value.method is not None and one.value.method not in found.methods:
            yield Issue("E-METHOD", f"{pointer}/method", f"there is no method {one.value.method!r}")
        if one.value.date is not None:
            yield from check_date(one.value.date, f"{pointer}/date", context)
        if one.value.metric is None or one.value.metric.low is None or one.value.date is None:
            yield Issue(
                "W-NO-CI", pointer, "no interval or no date", "give metric with low and high, and date"
            )


def safety_case(card: ChallengesCard, found: ChallengeMap | None = None) -> list[dict[str, Any]]:
    """One row per question: its stances in this card, or "not evaluated". No score is made of it."""
    found = found if found is not None else load_map()
    stances: dict[str, list[str]] = {}
    for one in card.evidence.values():
        if one.value is not None:
            stances.setdefault(one.value.question, []).append(one.value.stance)
    return [
        {
            "challenge": q.challenge, "question": q.id, "text": q.question,
            "stance": ", ".join(sorted(set(stances.get(q.id, ["not evaluated"])))),
            "records": len(stances.get(q.id, ())),
        }
        for q in found.questions.values()
    ]  # fmt: skip
