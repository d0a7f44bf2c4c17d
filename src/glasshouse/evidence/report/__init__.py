"""The report: findings as one HTML file that needs no network, no server and no script to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glasshouse.evidence.findings import Findings
from glasshouse.evidence.report._sections import Section

__all__ = ["Section", "render_report", "render_sections"]


def render_report(
    findings: Findings,
    *,
    graded: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """One HTML page under 3 MB that opens on the findings.

    `graded` is the grader's answer for an organism and becomes the last section. `provenance` is whatever a
    reader needs to repeat the run (times, paths, versions), shown folded. Text of models and data is inert.
    """
    from glasshouse.evidence.report._page import page

    return page(findings, graded, provenance or {})


def render_sections(
    title: str, lead: str, sections: Sequence[Section], provenance: Mapping[str, Any], *, all_in: str
) -> str:
    """A page of evidence without findings, in the look of the report and under the same rules.

    `all_in` names the file in which a reader finds what the page leaves out.
    """
    from glasshouse.evidence.report._sections import sections_page

    return sections_page(title, lead, sections, provenance, all_in)
