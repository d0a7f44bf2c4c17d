"""A page of evidence without findings: what a method shows when it was asked directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from glasshouse.evidence.findings import EvidenceItem
from glasshouse.evidence.report._page import MAX_BYTES
from glasshouse.evidence.report._page import _asset as asset
from glasshouse.evidence.report._page import _environment as environment
from glasshouse.evidence.report._page import _evidence as drawn
from glasshouse.evidence.report._page import _flat as flat
from glasshouse.evidence.report._page import _hash as hash_of
from glasshouse.evidence.report._page import _Limits as Limits
from glasshouse.evidence.report._page import _style as style_sheet
from glasshouse.evidence.report.visible import visible, visible_tree


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and evidence below it."""

    heading: str
    text: str
    evidence: tuple[EvidenceItem, ...]


def sections_page(
    title: str, lead: str, sections: Sequence[Section], provenance: Mapping[str, Any], all_in: str
) -> str:
    """The page, under 3 MB; shows fewer rows and shorter texts where it would pass that."""
    html = ""
    for characters, items in ((4_000, 50), (1_000, 25), (250, 10), (80, 3)):
        html = _render(title, lead, sections, provenance, all_in, Limits(characters, items))
        if len(html.encode()) <= MAX_BYTES:
            return html
    return html


def _render(
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    all_in: str,
    limits: Limits,
) -> str:
    style, script = style_sheet(), asset("report.js")
    templates = environment(limits)
    templates.globals["all_in"] = all_in
    return templates.get_template("sections.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=hash_of(style),
        script_hash=hash_of(script),
        title=visible(title, 200),
        lead=visible(lead, 2_000),
        sections=[_shown(section, limits) for section in sections],
        provenance=flat(visible_tree(dict(provenance), limits.characters)),
    )


def _shown(section: Section, limits: Limits) -> dict[str, Any]:
    return {
        "heading": visible(section.heading, 400),
        "text": visible(section.text, limits.characters),
        "evidence": [drawn(item, limits) for item in section.evidence],
    }
