"""The computed parts of an openness report: a bar per component, bounds, licences, neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glasshouse.governance._errors import CardError
from glasshouse.governance.openness.corpus import about
from glasshouse.governance.openness.licences import license_points
from glasshouse.governance.openness.scoring import OpennessScore, cell_word, compare
from glasshouse.governance.openness.taxonomy import COMPONENTS, PERMISSIONS, OpennessCard

if TYPE_CHECKING:
    from glasshouse.evidence.report import Section
    from glasshouse.statistics.estimate import Estimate


def sections(card: OpennessCard) -> Iterator[Section]:
    """The component bars, the score with its bounds, what the licences permit, the nearest models."""
    from glasshouse.evidence.findings import Bar, BarsEvidence, TableEvidence
    from glasshouse.evidence.report import Section

    try:
        found = compare(card)
    except CardError:
        return  # base models in a circle: the validator says so
    bars = tuple(
        Bar(label=f"{name}: {cell_word(card, name)}", value=(value.points - 1) / 4)
        for name in COMPONENTS
        if (value := card.cell(name).value) is not None
    )
    if bars:
        legend = "0 is closed, 1 is free of restrictions. Open weights alone are not an open model."
        yield Section(
            "Component by component", legend, (BarsEvidence(title="Openness of known components", bars=bars),)
        )
    yield Section("Score", _score_words(found.score), (_score_table(found.score),))
    licences = tuple(_licence_rows(card))
    if licences:
        columns = ("component", "licence", *PERMISSIONS, "published rows give", "strict reading")
        text = "An engineering reading of licences, not legal advice."
        yield Section(
            "What the licences permit",
            text,
            (TableEvidence(title="Permissions", columns=columns, rows=licences),),
        )
    rows = tuple((slug, f"{gap:.2f}") for slug, gap in found.nearest)
    if rows:
        table = TableEvidence(
            title="Nearest published models", columns=("model", "mean difference of levels"), rows=rows
        )
        source = about("taxonomy-45")
        text = (
            f"Among 45 models as judged on {source['date']} ({source['source']}): "
            f"{_share(found.percentile)} score lower."
        )
        yield Section("Beside published models", text, (table,))


def _score_words(score: OpennessScore) -> str:
    overall = score.overall
    point = f"{overall.value:.2f}" if overall.defined else "nothing is known"
    words = (
        f"Openness {point}, and between {overall.low:.2f} and {overall.high:.2f} whatever the unknown "
        f"components are; {score.known} of {score.applicable} applicable components are known."
    )
    if score.weights.license:
        words += f" The weights are bound by {score.weights.license}."
    if score.weights.unknown:
        words += f" Of {', '.join(score.weights.unknown)} nothing is known, so the weights count as unknown."
    return words


def _score_table(score: OpennessScore):  # type: ignore[no-untyped-def]
    from glasshouse.evidence.findings import TableEvidence

    rows = [("overall", score.overall), *score.parts.items()]
    told = tuple(
        (
            name,
            f"{e.value:.2f}" if e.defined else "–",
            f"{e.low:.2f} to {e.high:.2f}" if e.n else "–",
            str(e.n),
        )
        for name, e in rows
    )
    return TableEvidence(
        title="Scores", columns=("part", "known components", "bounds", "applicable"), rows=told
    )


def _licence_rows(card: OpennessCard) -> Iterator[tuple[str, ...]]:
    for name in COMPONENTS:
        value = card.cell(name).value
        if value is None or value.license is None:
            continue
        try:
            points = license_points(value.license)
        except CardError:
            continue
        kind = value.level[0]
        marks = ("?" if flag is None else "yes" if flag else "no" for flag in points.flags().values())
        words = "code" if kind == "C" else "data"
        yield (
            name,
            points.expression,
            *marks,
            points.level_reference(words) or "–",
            points.level_derived(words) or "–",
        )


def _share(estimate: Estimate) -> str:
    value = f"{estimate.value:.0%}" if estimate.defined else "an unknown share"
    return f"{value} ({estimate.low:.0%} to {estimate.high:.0%})"
