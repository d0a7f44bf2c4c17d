"""A scenario's report: one offline HTML page that a policy analyst can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glasshouse.evidence.findings import TableEvidence
from glasshouse.evidence.report.curves import short
from glasshouse.evidence.report.illustrated import Part, render_illustrated
from glasshouse.runtime import files
from glasshouse.society._page import Certificate, Compared, Page
from glasshouse.statistics.estimate import Estimate

TONE = (
    "This is a stylised model: it says what would follow from the assumptions below, not what will happen, "
    "and it recommends no policy."
)


def write_page(path: Path, page: Page, *, all_in: str = "sweep.parquet") -> Path:
    """Write the report, whole or not, and return its path."""
    return files.write_text(path, render_page(page, all_in=all_in))


def render_page(page: Page, *, all_in: str = "sweep.parquet") -> str:
    """The report as HTML; everything that came from data or from the scenario is inert text."""
    return render_illustrated(page.title, f"{page.lead} {TONE}", parts(page), page.provenance, all_in=all_in)


def parts(page: Page) -> list[Part]:
    """Phase diagram, theory beside measurement, mechanism off, assumptions, certificates."""
    found = [
        Part("The phase diagram, and what was simulated", _reading(page), charts=page.charts),
        Part(
            "Theory and measurement",
            "Each line says where its numbers come from; 'agree' compares them within the interval and the "
            "stated numerical error.",
            evidence=(compared_table(page.compared),) if page.compared else (),
            points=() if page.compared else ("No closed form applies to this scenario.",),
        ),
        Part("The same market with the mechanism switched off", page.control, charts=page.control_charts),
        Part("What is assumed", TONE, points=page.assumptions),
        Part(
            "Certificates",
            "A result is called an equilibrium only if no searched unilateral deviation gains more than the "
            "tolerance. Points that miss it are drawn hollow, and no equilibrium is claimed for them.",
            evidence=(certificate_table(page.certificates),) if page.certificates else (),
            points=() if page.certificates else ("No equilibrium is claimed on this page.",),
        ),
    ]
    if page.notes:
        found.append(Part("What this page does not say", points=page.notes))
    return found


def compared_table(rows: Sequence[Compared]) -> TableEvidence:
    """Theory, measured, interval, agree?, source."""
    return TableEvidence(
        title="Theory beside measurement",
        columns=("quantity", "theory", "measured", "interval", "agree?", "measured how"),
        rows=tuple(
            (
                row.quantity,
                "none" if row.theory is None else short(row.theory),
                short(row.measured.value) if row.measured.defined else "undefined",
                interval_words(row.measured),
                {True: "yes", False: "no", None: "not compared"}[row.agree],
                row.source,
            )
            for row in rows
        ),
    )


def certificate_table(rows: Sequence[Certificate]) -> TableEvidence:
    """What, the largest gain found, the tolerance, whether it is met, and how deviations were searched."""
    return TableEvidence(
        title="Largest gain of any searched deviation",
        columns=("result", "largest gain", "tolerance", "met?", "search"),
        rows=tuple(
            (row.what, short(row.eps_nash), short(row.tolerance), "yes" if row.met else "NO", row.search)
            for row in rows
        ),
    )


def interval_words(estimate: Estimate) -> str:
    """The interval with its level and n, or why there is none."""
    if not estimate.defined:
        return estimate.method
    if estimate.low == estimate.high:
        return f"{estimate.method} (n = {estimate.n:,})"
    bounds = f"{short(estimate.low)} to {short(estimate.high)}"
    return f"{bounds} ({estimate.level:.0%}, n = {estimate.n:,}, {estimate.method})"


def _reading(page: Page) -> str:
    open_points = any(not all(points.solid) for chart in page.charts for points in chart.points)
    hollow = " Hollow points have no certificate." if open_points else ""
    return (
        "Lines are closed forms, dashed lines the mechanism switched off, points simulations with 95% "
        f"intervals, all on the same axes.{hollow}"
    )
