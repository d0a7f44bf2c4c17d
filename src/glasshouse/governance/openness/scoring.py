"""How open a card says a model is: a mean with bounds, never a badge.

Each applicable component counts (level - 1) / 4. What is unknown may be anything, so it widens the bounds and
is left out of the point; what does not apply (no alignment stage) is left out of everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.governance.openness.corpus import taxonomy_cards
from glasshouse.governance.openness.licences import Effective, effective_weights_license
from glasshouse.governance.openness.taxonomy import COMPONENTS, PIPELINES, WEIGHTS, OpennessCard, kind_of
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

BOUNDS = "mean of known components; bounds: the unknown as closed, as open"


@dataclass(frozen=True)
class OpennessScore:
    """`overall` and `parts` (training, evaluation, deployment, code, data) in [0, 1], with bounds.

    `coverage` is known / applicable components. `weights` is what binds the weights along the base models.
    """

    name: str
    overall: Estimate
    parts: Mapping[str, Estimate]
    known: int
    applicable: int
    weights: Effective

    @property
    def coverage(self) -> float:
        """Known / applicable components; NaN where none applies."""
        return self.known / self.applicable if self.applicable else math.nan

    def more_open_than(self, other: OpennessScore) -> bool:
        """Whether it is, whatever the unknown components turn out to be."""
        return self.overall.low > other.overall.high

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name, "overall": self.overall.to_json(), "known": self.known,
            "applicable": self.applicable, "parts": {k: e.to_json() for k, e in self.parts.items()},
            "weights": {
                "effective_license": self.weights.license, "level": self.weights.level,
                "chain": list(self.weights.chain), "unknown_bases": list(self.weights.unknown),
            },
        }  # fmt: skip


def score(card: OpennessCard, *, cards: Mapping[str, OpennessCard] | None = None) -> OpennessScore:
    """The score of a card; `cards` are those of its base models by name.

    Weights count at most as open as the base models', and as unknown where a base is unknown. Raises
    CardError for base models in a circle.
    """
    weights = effective_weights_license(card, cards or {})
    cells = {name: _bounds(card, name, weights) for name in COMPONENTS}
    applicable = {name: pair for name, pair in cells.items() if pair is not None}
    parts = {part: _mean(applicable, part) for part in (*PIPELINES, "code", "data")}
    known = sum(low == high for low, high in applicable.values())
    return OpennessScore(card.subject.name, _mean(applicable, ""), parts, known, len(applicable), weights)


@dataclass(frozen=True)
class Comparison:
    """A card among published ones: the share of them with a lower score, with bounds, and the nearest."""

    score: OpennessScore
    percentile: Estimate
    nearest: tuple[tuple[str, float], ...]
    """(slug, mean distance over components known in both, 0 to 1), nearest first."""
    surely_above: tuple[str, ...]
    surely_below: tuple[str, ...]


def compare(
    card: OpennessCard, *, corpus: Mapping[str, OpennessCard] | None = None, k: int = 5,
    cards: Mapping[str, OpennessCard] | None = None,
) -> Comparison:  # fmt: skip
    """`card` among the cards of `corpus` (default: the 45 published rows).

    Ranks use the bounds: only what holds whatever the unknown turns out to be is called above or below.
    """
    others = corpus if corpus is not None else taxonomy_cards()
    if not others:
        raise InputError("the corpus holds no card", fix="give at least one")
    ours = score(card, cards=cards)
    scores = {slug: score(one) for slug, one in others.items()}
    points = [one.overall.value for one in scores.values() if one.overall.defined]
    share = [sum(p < edge for p in points) / len(points) for edge in (ours.overall.low, ours.overall.high)]
    value = sum(p < ours.overall.value for p in points) / len(points) if ours.overall.defined else math.nan
    percentile = Estimate(
        value, share[0], share[1], 0.95, len(points), "share of published scores below; bounds as the score's"
    )
    nearest = sorted(((slug, distance(card, one)) for slug, one in others.items()), key=lambda pair: pair[1])
    return Comparison(
        ours, percentile, tuple(pair for pair in nearest if not math.isnan(pair[1]))[:k],
        tuple(slug for slug, one in scores.items() if ours.more_open_than(one)),
        tuple(slug for slug, one in scores.items() if one.more_open_than(ours)),
    )  # fmt: skip


def distance(a: OpennessCard, b: OpennessCard) -> float:
    """Mean difference of levels in [0, 1] over the components known in both; NaN where there is none."""
    gaps = [
        abs(one.points - other.points) / 4
        for one, other in ((a.cell(name).value, b.cell(name).value) for name in COMPONENTS)
        if one is not None and other is not None
    ]
    return sum(gaps) / len(gaps) if gaps else math.nan


def matrix(cards: Iterable[OpennessCard]) -> list[dict[str, str]]:
    """One row per card: model, then each component's level, N/A or Unknown."""
    return [
        {"model": card.subject.name, **{name: cell_word(card, name) for name in COMPONENTS}} for card in cards
    ]


def matrix_frame(cards: Sequence[OpennessCard]) -> pd.DataFrame:
    """The matrix as a pandas frame indexed by model."""
    import pandas as pd

    return pd.DataFrame(matrix(cards)).set_index("model")


def cell_word(card: OpennessCard, component: str) -> str:
    """A component's level as the papers write it: C1 to D5, N/A, Unknown."""
    one = card.cell(component)
    if one.value is not None:
        return one.value.level
    return "N/A" if one.status == "not_applicable" else "Unknown"


def _bounds(card: OpennessCard, component: str, weights: Effective) -> tuple[float, float] | None:
    """(least, most) of a component in [0, 1]; None where it does not apply."""
    one = card.cell(component)
    if one.status == "not_applicable":
        return None
    if one.value is None:
        # Unknown weights on a known base are at most as open as the base.
        most = weights.level if component == WEIGHTS and weights.level is not None else 5
        return 0.0, (most - 1) / 4
    level = one.value.points
    if component == WEIGHTS and weights.level is not None:
        level = min(level, weights.level)
        if weights.unknown:
            return 0.0, (level - 1) / 4
    return (level - 1) / 4, (level - 1) / 4


def _mean(cells: Mapping[str, tuple[float, float]], part: str) -> Estimate:
    chosen = [
        pair for name, pair in cells.items()
        if part in ("", name.split(".")[0]) or part == kind_of(name)
    ]  # fmt: skip
    if not chosen:
        return Estimate.undefined("no component applies", 0)
    known = [low for low, high in chosen if low == high]
    low = sum(pair[0] for pair in chosen) / len(chosen)
    high = sum(pair[1] for pair in chosen) / len(chosen)
    point = sum(known) / len(known) if known else math.nan
    return Estimate(point, low, high, 0.95, len(chosen), BOUNDS)
