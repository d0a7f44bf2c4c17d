"""How far raters agree: Cohen, Fleiss, Krippendorff, Gwet, plain agreement, each with its interval.

Items are drawn again (2,000 times), not single answers. The draws are made on the counts of distinct items,
which has the distribution of drawing items and costs one matrix product. What cannot be told apart from
chance because nobody ever varied is undefined, never 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Weights = Literal["nominal", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
NO_VARIATION = "no variation"
BLOCK = 200
"""Resamples whose tables of categories are held at once."""


def cohen_kappa(
    a: Sequence[Any] | NDArray[Any],
    b: Sequence[Any] | NDArray[Any],
    *,
    weights: Weights = "nominal",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Agreement of two raters beyond chance (Cohen 1960; weighted: Cohen 1968), at most 1.

    `a`, `b` [n] are labels; with linear or quadratic weights their sorted order is the scale. Raises
    InputError for missing labels: drop those items, or take `krippendorff_alpha`.

    >>> round(cohen_kappa([0, 0, 1, 1], [0, 0, 1, 0]).value, 3)
    0.5
    """
    if weights not in ("nominal", "linear", "quadratic"):
        raise InputError(f"weights is {weights!r}", fix="give 'nominal', 'linear' or 'quadratic'")
    table, names = _codes([a, b])
    k = len(names)
    steps = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    cost = {"nominal": (steps > 0).astype(np.float64), "linear": steps, "quadratic": steps**2}[weights]
    joint = np.bincount(table[:, 0] * k + table[:, 1], minlength=k * k).astype(np.float64)  # (K * K,)

    def kappa(counts: Floats) -> Floats:
        cells = counts.reshape(-1, k, k)
        n = counts.sum(1)
        chance = np.einsum("ri,ij,rj->r", cells.sum(2), cost, cells.sum(1)) / n
        observed = np.einsum("rij,ij->r", cells, cost)
        return 1 - _divide(observed, chance)

    return _resampled(kappa, joint, len(table), "kappa", level, resamples, seed)


def percent_agreement(
    ratings: Sequence[Sequence[Any]] | NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share of agreeing pairs of raters, averaged over items [n, raters]; in [0, 1].

    >>> percent_agreement([[0, 0], [1, 1], [0, 1]]).value
    0.6666666666666666
    """
    counts, weight, n = _patterns(ratings, complete=True)
    share = _pair_agreement(counts)
    return _resampled(
        lambda drawn: drawn @ share / drawn.sum(1), weight, n, "agreement", level, resamples, seed
    )


def fleiss_kappa(
    ratings: Sequence[Sequence[Any]] | NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Agreement of several raters beyond chance (Fleiss 1971); `ratings` [n, raters], none missing."""
    counts, weight, n = _patterns(ratings, complete=True)
    share = _pair_agreement(counts)
    raters = counts.sum(1)[0]

    def kappa(drawn: Floats) -> Floats:
        total = drawn.sum(1)
        category = drawn @ counts / (total * raters)[:, None]  # (R, K)
        chance = (category**2).sum(1)
        return _divide(drawn @ share / total - chance, 1 - chance)

    return _resampled(kappa, weight, n, "kappa", level, resamples, seed)


def gwet_ac1(
    ratings: Sequence[Sequence[Any]] | NDArray[Any],
    *,
    categories: Sequence[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """AC1 (Gwet 2008): chance agreement that does not collapse when one category dominates.

    `ratings` [n, raters] of labels, none missing. `categories` names all possible labels when some may never
    have been used; with a single category AC1 is undefined.
    """
    counts, weight, n = _patterns(ratings, complete=True, categories=categories)
    share = _pair_agreement(counts)
    k, raters = counts.shape[1], counts.sum(1)[0]
    if k < 2:
        return Estimate.undefined(NO_VARIATION, n, level)

    def ac1(drawn: Floats) -> Floats:
        total = drawn.sum(1)
        category = drawn @ counts / (total * raters)[:, None]
        chance = (category * (1 - category)).sum(1) / (k - 1)
        return _divide(drawn @ share / total - chance, 1 - chance)

    return _resampled(ac1, weight, n, "AC1", level, resamples, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Any]] | NDArray[Any],
    *,
    measure: Level = "nominal",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Agreement of any number of raters with missing answers (Krippendorff 2011): 1 - observed/expected.

    `ratings` [n, raters]; NaN and None are missing; items with fewer than two answers say nothing and do not
    count in n. `measure` is nominal, ordinal (labels in sorted order) or interval (labels are numbers).
    """
    if measure not in ("nominal", "ordinal", "interval"):
        raise InputError(f"measure is {measure!r}", fix="give 'nominal', 'ordinal' or 'interval'")
    counts, weight, n, names = _pairable(ratings)
    if not n:
        return Estimate.undefined("no item has two answers", 0, level)
    k = len(names)
    answers = counts.sum(1)
    # Coincidences of each pattern: pairs of answers within an item, each item weighing its answers.
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, np.arange(k), np.arange(k)] -= counts
    coincidence = (pairs / (answers - 1)[:, None, None]).reshape(len(counts), k * k)

    def alpha(drawn: Floats) -> Floats:
        cells = (drawn @ coincidence).reshape(-1, k, k)
        margin = cells.sum(2)
        total = margin.sum(1)
        distance = _distances(measure, names, margin)  # (R or 1, K, K)
        observed = (cells * distance).sum((1, 2))
        expected = np.einsum("ri,rij,rj->r", margin, np.broadcast_to(distance, cells.shape), margin)
        return 1 - _divide(observed * (total - 1), expected)

    return _resampled(alpha, weight, n, "alpha", level, resamples, seed)


def _distances(measure: Level, names: list[Any], margin: Floats) -> Floats:
    """Squared distances between categories, [1 or R, K, K] (ordinal: by how often each was used)."""
    k = len(names)
    if measure == "nominal":
        return (1 - np.eye(k))[None]
    if measure == "interval":
        scale = np.array([float(name) for name in names])
        return (np.subtract.outer(scale, scale) ** 2)[None]
    upto = np.cumsum(margin, axis=1)
    middle = upto - margin / 2  # the sum from g to h less half of both ends
    return np.asarray((middle[:, :, None] - middle[:, None, :]) ** 2)


def _pair_agreement(counts: Floats) -> Floats:
    """Share of agreeing pairs of raters in each pattern, [P]."""
    raters = counts.sum(1)
    return np.asarray((counts * (counts - 1)).sum(1) / (raters * (raters - 1)))


def _patterns(
    ratings: Any, *, complete: bool, categories: Sequence[Any] | None = None
) -> tuple[Floats, Floats, int]:
    """Distinct items as counts per category [P, K], how often each occurs [P], and n."""
    columns = _columns(ratings)
    if len(columns) < 2:
        raise InputError("only one rater was given", fix="give [n_items, n_raters] with at least two raters")
    table, names = _codes(columns, categories)
    every = _counts(table, len(names))
    distinct, weight = np.unique(every, axis=0, return_counts=True)
    return distinct, weight.astype(np.float64), len(every)


def _pairable(ratings: Any) -> tuple[Floats, Floats, int, list[Any]]:
    """As `_patterns`, items with at least two answers only, and the categories."""
    columns = _columns(ratings)
    present = [[not _missing(v) for v in column] for column in columns]
    names = _sorted({_plain(v) for column in columns for v in column if not _missing(v)})
    place = {name: i for i, name in enumerate(names)}
    table = np.array(
        [[place[_plain(v)] if ok else -1 for v, ok in zip(c, p, strict=True)]
         for c, p in zip(columns, present, strict=True)],
        dtype=np.int64,
    ).T  # fmt: skip
    every = _counts(table, len(names))
    every = every[every.sum(1) >= 2]
    if not len(every):
        return every, np.zeros(0), 0, names
    distinct, weight = np.unique(every, axis=0, return_counts=True)
    return distinct, weight.astype(np.float64), len(every), names


def _counts(table: Labels, k: int) -> Floats:
    """Answers per item and category, [n, K]; -1 is missing."""
    return np.stack([(table == i).sum(1) for i in range(k)], axis=1).astype(np.float64)


def _columns(ratings: Any) -> list[list[Any]]:
    """[n, raters] as one list per rater."""
    rows = [list(row) for row in ratings]
    widths = {len(row) for row in rows}
    if not rows or len(widths) != 1:
        raise InputError(
            f"ratings with {len(rows)} items and rows of {sorted(widths)} answers",
            fix="give [n_items, n_raters], NaN or None where krippendorff_alpha may miss one",
        )
    return [list(column) for column in zip(*rows, strict=True)]


def _codes(columns: Sequence[Any], categories: Sequence[Any] | None = None) -> tuple[Labels, list[Hashable]]:
    """Labels of each rater as indices into the sorted categories, [n, raters]."""
    lists = [[_plain(v) for v in column] for column in columns]
    if len({len(values) for values in lists}) != 1:
        raise InputError(f"raters gave {[len(v) for v in lists]} labels", fix="give one label per item each")
    if not lists[0]:
        raise InputError("no item was given", fix="give at least one item")
    for rater, values in enumerate(lists):
        for item, value in enumerate(values):
            if _missing(value):
                raise InputError(
                    f"rater {rater} has no label for item {item}",
                    fix="drop items with missing labels, or take krippendorff_alpha",
                )
    names = _sorted({v for values in lists for v in values} | {_plain(c) for c in categories or ()})
    place = {name: i for i, name in enumerate(names)}
    return np.array([[place[v] for v in values] for values in lists], dtype=np.int64).T, names


def _sorted(names: set[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:
        raise InputError("labels of different types", fix="give only numbers or only strings") from None


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return float(value) if isinstance(value, bool | int | float) else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _divide(top: Floats, bottom: Floats) -> Floats:
    """NaN where the bottom is 0 up to rounding: there was no variation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(bottom) > 1e-12, top / bottom, np.nan)


def _resampled(
    statistic: Callable[[Floats], Floats],
    weight: Floats,
    n: int,
    name: str,
    level: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """The statistic of counts [P] of distinct items, with its percentile interval over redrawn items."""
    point = float(statistic(weight[None])[0])
    if math.isnan(point):
        return Estimate.undefined(NO_VARIATION, n, level)
    if n == 1:
        return Estimate(point, -math.inf, math.inf, level, 1, f"{name}: one item has no spread")
    kept = np.flatnonzero(weight)
    drawn = np.zeros((resamples, len(weight)))
    drawn[:, kept] = rng(seed, "agreement").multinomial(n, weight[kept] / n, size=resamples)
    values = np.concatenate([statistic(part) for part in np.array_split(drawn, math.ceil(resamples / BLOCK))])
    defined = values[~np.isnan(values)]
    told = f"{name}, percentile bootstrap over items, {resamples} resamples"
    if len(defined) < resamples:
        told += f", {resamples - len(defined)} without variation"
    if not len(defined):
        return Estimate(point, -math.inf, math.inf, level, n, told)
    low, high = (float(q) for q in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return Estimate(point, low, high, level, n, told)
