"""The challenges card, as the wing's tools know it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glasshouse.governance._hub import HubFolder
from glasshouse.governance._types import CardType
from glasshouse.governance.foundational_challenges.challenge_map import load_map
from glasshouse.governance.foundational_challenges.taxonomy import ChallengesCard, check, safety_case

if TYPE_CHECKING:
    from glasshouse.evidence.report import Section


def prefill(folder: HubFolder) -> ChallengesCard:
    """A folder holds no evidence about open questions: an empty card for its model."""
    subject = folder.subject().model_dump(mode="json", exclude_defaults=True)
    card: ChallengesCard = ChallengesCard.parse({"card_type": "challenges", "subject": subject})
    return card


def sections(card: ChallengesCard) -> Iterator[Section]:
    """One table per challenge: each question with its stances, "not evaluated" said."""
    from glasshouse.evidence.findings import TableEvidence
    from glasshouse.evidence.report import Section

    found = load_map()
    rows = safety_case(card, found)
    for challenge, about in found.challenges.items():
        own = tuple(
            (r["question"], r["text"], r["stance"], str(r["records"]))
            for r in rows
            if r["challenge"] == challenge
        )
        known = sum(row[2] != "not evaluated" for row in own)
        table = TableEvidence(title="Questions", columns=("id", "question", "stance", "records"), rows=own)
        yield Section(
            f"{challenge} {about['name']}", f"{known} of {len(own)} questions have evidence.", (table,)
        )


TYPE = CardType(
    "challenges", "Challenges card", ChallengesCard, check=check, prefill=prefill, sections=sections
)
