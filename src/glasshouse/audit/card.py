"""A disclosure card beside an audit: what the developer says, next to what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glasshouse.audit.outputs import FINDINGS, REPORT
from glasshouse.evidence.findings import Clean, Findings
from glasshouse.evidence.report import render_report
from glasshouse.runtime import files

SLUG = "disclosure-card"
MOST_PARTS = 12
"""Pieces of evidence of a card that an audit's report shows; the card's own page shows all."""


def with_card(findings: Findings, path: Path | str, *, kind: str | None = None) -> Findings:
    """The findings with what the card in `path` discloses, and what its validator says, as a note.

    A card is the developer's word: it is no finding and changes no exit code. Raises CardError for a file
    that is no card.
    """
    from glasshouse.governance import card_sections, read_card, validate

    card = read_card(path, kind)
    lint = validate(card, level=3, base=Path(path).parent)
    known, every = (sum(pair[i] for pair in lint.coverage.values()) for i in (0, 1))
    summary = (
        f"The {card.card_type} card of {card.subject.name} discloses {known} of {every} fields; its "
        f"validator finds {len(lint.errors)} errors and {len(lint.warnings)} warnings. "
        "It is the developer's word, not a measurement."
    )
    evidence = tuple(item for section in card_sections(card) for item in section.evidence)[:MOST_PARTS]
    others = tuple(one for one in findings.clean if one.check != SLUG)
    return findings.model_copy(
        update={"clean": (*others, Clean(check=SLUG, summary=summary, note=True, evidence=evidence))}
    )


def attach_card(
    folder: Path | str, findings: Findings, path: Path | str, *, graded: Mapping[str, Any] | None = None
) -> Findings:
    """Write `findings.json` and the report of an audit in `folder` again, with the card in `path`."""
    found = with_card(findings, path)
    files.write_json(Path(folder) / FINDINGS, found.model_dump(mode="json"))
    page = render_report(found, graded=graded, provenance={"card": Path(path).name})
    files.write_text(Path(folder) / REPORT, page)
    return found
