"""The RLHF card, as the wing's tools know it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glasshouse.governance._types import CardType
from glasshouse.governance.rlhf_disclosure.autofill import prefill
from glasshouse.governance.rlhf_disclosure.registry import exposed, problems
from glasshouse.governance.rlhf_disclosure.rules import agreement_of_two, check, noise_ceiling
from glasshouse.governance.rlhf_disclosure.taxonomy import ITEMS, RLHFCard

if TYPE_CHECKING:
    from glasshouse.evidence.report import Section


def sections(card: RLHFCard) -> Iterator[Section]:
    """What raters' noise allows, and each known problem with the fields that would reveal it."""
    from glasshouse.evidence.findings import TableEvidence
    from glasshouse.evidence.report import Section

    agreement = card.quality.agreement.value
    p_agree = agreement_of_two(agreement) if agreement is not None else None
    ceiling = noise_ceiling(p_agree) if p_agree is not None else None
    if ceiling is not None:
        text = f"Two raters agree {p_agree:.3f} of the time; no model can match one above {ceiling:.3f}."
        yield Section("What the raters' noise allows", text, ())
    fields = dict(card.fields())
    rows = tuple(
        (
            one.id,
            one.kind,
            one.text,
            ", ".join(f"{p} ({fields[p].status})" for p in one.revealed_by),
            ", ".join(one.measured_by) or "–",
        )
        for one in problems().values()
    )
    columns = ("problem", "kind", "what", "would be revealed by", "Glasshouse can measure it with")
    table = TableEvidence(title="Known problems of RLHF", columns=columns, rows=rows)
    yield Section(
        "Known problems", "After arXiv 2307.15217, recalled. A missing field is unknown, not bad.", (table,)
    )


def metadata(card: RLHFCard) -> dict[str, Any]:
    """Hub keys that the card determines."""
    base = card.pretraining.base_model.value or next(iter(card.subject.base_models), None)
    return {"base_model": base} if base else {}


TYPE = CardType(
    "rlhf", "RLHF disclosure card", RLHFCard, check=check, prefill=prefill, sections=sections,
    metadata=metadata, exposed=exposed,
    policies={
        "paper-minimum": {"require": list(ITEMS.values()), "any_of_section": True},
        "audit": {"require": list(ITEMS.values())},
        "public-redacted": {"require": list(ITEMS.values()), "any_of_section": True},
    },
)  # fmt: skip
