"""Does a model dispute labels of its own training rows where a model that is merely weak would not?

A wrong label cannot be told from chance by one row. What tells them apart is where the disputes lie. A weak
model disputes labels where it is unsure, and few where it is sure; wrong labels are everywhere. So rows are
sorted by how sure the model is *without looking at their labels*, and the disputes among the surer half are
counted. The null is signal detection: a model whose scores are right but for normal noise of equal variance,
with as many disputes over all rows, has a known share of them in its surer half (for 5% in all it is 0.1%,
for 10% 1%, for 20% 7%). Only ranks enter, so it does not matter whether confidence is calibrated. Below one
row in a hundred nothing is called a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, binomial_p_value, clopper_pearson

SUREST = 0.5
"""Share of the rows, by the model's sureness, in which disputes are counted."""
TOLERATED = 0.01
"""Share of disputed labels that no one calls a finding: the null is never below it."""
KNOWN = 0.5
"""A label counts as known when the model prefers it on this share of the rows that carry it."""
FEWEST_SURE = 30
"""Fewest rows in that half: three disputes in 30 exclude a rate of one in a hundred."""
DOUBTFUL = 1 / 3
"""Rows are named whose own label gets less than this against the preferred one: half as likely, or less."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Disputes:
    """What `disputes` found. Indices are into the rows given; `known` are the labels the model knows.

    `rate`: share of the surest rows whose label the model disputes. `expected`: the null rate. `order`: the
    rows to look at, worst first, with the `odds` (log-odds at the best temperature, preferred label against
    given one, nats). `agreement`: share of all judged rows whose label the model prefers.
    """

    rate: Estimate
    expected: float
    p_value: float
    order: NDArray[np.int64]
    odds: Floats
    preferred: NDArray[np.int64]
    agreement: Estimate
    known: tuple[int, ...]
    scale: float
    judged: int


def disputes(logprobs: Floats, given: NDArray[np.int64]) -> Disputes:
    """Disputes of `given` labels [n] by log-probabilities [n, C] (rows with nan are left out).

    Only rows are judged whose given and preferred labels the model knows: a model that has never learnt a
    label disputes it out of ignorance. Raises InputError where fewer than 30 rows are left to count in.
    """
    if logprobs.ndim != 2 or len(logprobs) != len(given) or logprobs.shape[1] < 2:
        raise InputError(f"log-probabilities {logprobs.shape} for {len(given)} labels", fix="give [n, C]")
    whole = np.isfinite(logprobs).all(1)
    preferred = np.where(whole, np.argmax(np.where(whole[:, None], logprobs, 0.0), axis=1), given)
    known = tuple(k for k in range(logprobs.shape[1]) if _recall(preferred, given, whole, k) >= KNOWN)
    at = np.flatnonzero(whole & np.isin(given, known) & np.isin(preferred, known))
    sure = int(np.ceil(SUREST * len(at)))
    if len(known) < 2 or sure < FEWEST_SURE:
        raise InputError(
            f"the model knows {len(known)} of the {logprobs.shape[1]} labels, which leaves {sure} rows "
            f"that it is sure of, and {FEWEST_SURE} are needed",
            fix="use a model that has learnt the labels, or more rows",
        )
    ordered = np.sort(logprobs[at], axis=1)
    margin = ordered[:, -1] - ordered[:, -2]  # looks at no label
    agrees = preferred[at] == given[at]
    scale = _best_scale(margin, agrees)
    disputed = clopper_pearson(int((~agrees).sum()), len(at))
    k = int((~agrees[np.argsort(-margin, kind="stable")[:sure]]).sum())
    expected = max(TOLERATED, weak_rate(disputed.high))
    odds = logprobs[at, preferred[at]] - logprobs[at, given[at]]
    odds = scale * odds if np.isfinite(scale) else odds
    doubtful = np.flatnonzero(~agrees & (expit(-odds) < DOUBTFUL))
    worst = doubtful[np.argsort(-odds[doubtful], kind="stable")]
    return Disputes(
        clopper_pearson(k, sure), expected, binomial_p_value(k, sure, expected), at[worst], odds[worst],
        preferred, clopper_pearson(int(agrees.sum()), len(at)), known, scale, len(at),
    )  # fmt: skip


def weak_rate(disputed: float, share: float = SUREST) -> float:
    """Disputes among the surest `share` of the rows of a merely weak model that disputes `disputed` of all.

    Its evidence for the right label is normal with mean mu and variance 1, so that `disputed` = Phi(-mu), and
    it is as sure as that evidence is large: rows with |evidence| > t are `share` of all.

    >>> round(weak_rate(0.2), 3)
    0.075
    """
    if disputed <= 0:
        return 0.0
    mu = max(0.0, -float(ndtri(disputed)))
    low, high = 0.0, mu + 10.0
    for _ in range(80):
        t = (low + high) / 2
        low, high = (t, high) if ndtr(mu - t) + ndtr(-mu - t) > share else (low, t)
    return float(ndtr(-mu - low)) / share


def _recall(
    preferred: NDArray[np.int64], given: NDArray[np.int64], whole: NDArray[np.bool_], k: int
) -> float:
    own = whole & (given == k)
    return float((preferred[own] == k).mean()) if own.any() else 0.0


def _best_scale(margin: Floats, agrees: NDArray[np.bool_]) -> float:
    """The b that maximises the likelihood of `agrees` under `P = sigmoid(b margin)`; inf if none disagree.

    One inverse temperature for all rows: the likelihood is concave in b, so its slope is bisected.
    """
    signed = np.where(agrees, margin, -margin)
    if not (signed < 0).any():
        return float("inf")

    def slope(b: float) -> float:
        return float((signed * expit(-b * signed)).sum())

    low, high = 0.0, 1.0
    if slope(low) <= 0:
        return 0.0
    while slope(high) > 0:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low
