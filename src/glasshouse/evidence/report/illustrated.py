"""A page with charts, tables and lists: what a study or a scenario shows a reader who does not program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from glasshouse.evidence.findings import EvidenceItem
from glasshouse.evidence.report._page import (
    MAX_BYTES,
    _asset,
    _environment,
    _evidence,
    _flat,
    _hash,
    _Limits,
    _style,
)
from glasshouse.evidence.report.curves import Chart, chart_svg, legend, numbers
from glasshouse.evidence.report.visible import visible, visible_tree

__all__ = ["Part", "render_illustrated"]


@dataclass(frozen=True)
class Part:
    """A heading, a sentence, then charts, evidence and a list below it, in this order."""

    heading: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    evidence: tuple[EvidenceItem, ...] = ()
    points: tuple[str, ...] = ()


def render_illustrated(
    title: str, lead: str, parts: Sequence[Part], provenance: Mapping[str, Any], *, all_in: str
) -> str:
    """One offline HTML page under 3 MB, in the look of the report; text of data is inert.

    `all_in` names the file in which a reader finds what the page leaves out.
    """
    html = ""
    for characters, items in ((4_000, 100), (1_000, 50), (250, 15), (80, 5)):
        html = _render(title, lead, parts, provenance, all_in, _Limits(characters, items))
        if len(html.encode()) <= MAX_BYTES:
            return html
    return html


def _render(
    title: str, lead: str, parts: Sequence[Part], provenance: Mapping[str, Any], all_in: str, limits: _Limits
) -> str:
    style, script = _style() + _asset("curves.css"), _asset("report.js")
    templates = _environment(limits)
    templates.globals["all_in"] = all_in
    return templates.get_template("illustrated.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        title=visible(title, 300),
        lead=visible(lead, 2_000),
        parts=[_shown(part, limits) for part in parts],
        provenance=_flat(visible_tree(dict(provenance), limits.characters)),
    )


def _shown(part: Part, limits: _Limits) -> dict[str, Any]:
    return {
        "heading": visible(part.heading, 400),
        "text": visible(part.text, limits.characters),
        "charts": [_chart(chart, limits) for chart in part.charts],
        "evidence": [_evidence(item, limits) for item in part.evidence],
        "points": [visible(point, limits.characters) for point in part.points],
    }


def _chart(chart: Chart, limits: _Limits) -> dict[str, Any]:
    rows, more = limits.first(numbers(chart))
    return {
        "title": visible(chart.title, 300),
        "svg": Markup(chart_svg(chart)),
        "legend": [(Markup(swatch), name) for swatch, name in legend(chart)],
        "x_title": visible(chart.x_title, 90),
        "y_title": visible(chart.y_title, 90),
        "caption": visible(chart.caption, limits.characters),
        "numbers": rows,
        "more": more,
    }
