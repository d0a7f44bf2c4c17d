"""A study's figures as small SVG files, for pages that load no plotting library.

    svg = figure_svg(json.load(open("figures/recall.json")), run="ekfac-2ac1304dd82c")

Drawn are the four kinds of traces that studies use (scatter, bar, box, heat map), on linear, logarithmic and
category axes, in one panel or in several side by side. Text is escaped; nothing in the file is executed or
loaded. A figure that would pass `MAX_BYTES`, or that holds a trace of another kind, raises InputError: it is
then shown by nobody rather than shown wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glasshouse.runtime.errors import InputError

MAX_BYTES = 80_000
"""Largest SVG that is kept beside the ledger; a page shows a dozen."""


def figure_svg(figure: Mapping[str, Any], *, run: str = "", name: str = "figure") -> str:
    """The plotly JSON of a figure as one SVG document; `run` is written into it, `name` is used in errors.

    Raises InputError for a trace that cannot be drawn, and for a drawing of more than `MAX_BYTES`.
    """
    from glasshouse.evidence.plots._panels import draw

    svg = draw(figure, run=run, name=name)
    if len(svg.encode()) > MAX_BYTES:
        raise InputError(
            f"figure {name!r} would take {len(svg.encode()) // 1000} KB as SVG",
            fix=f"show less: the limit is {MAX_BYTES // 1000} KB",
        )
    return svg


def run_of(svg: str) -> str:
    """The run that `figure_svg` wrote into a document; empty where it holds none."""
    return svg.partition('data-run="')[2].partition('"')[0]
