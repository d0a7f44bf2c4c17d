"""Closed forms: equilibria when providers may choose any function and predict 0 or 1, one x at a time.

At one x a share alpha of users has the minority label. Among m providers k predict the minority label; users
choose provider j with probability proportional to exp(-loss_j / c), so a user meets a wrong provider q =
exp(-1/c) times as often as a right one. c = 0 is the limit of users who never err, ties broken evenly.
Source: arXiv 2306.14670, Theorem 1 and its proof; the noisy and unequal forms are derived here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._validate import floats

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
MOST_VECTORS = 200_000
SLACK = 1e-12
"""A gain below this is rounding."""


def shares(alpha: Any, m: int, c: float, k: int) -> tuple[Floats, Floats]:
    """Market shares of a majority and of a minority provider when k of m predict the minority label.

    NaN for the side on which nobody stands.
    """
    a, q = _alphas(alpha), _wrong(m, c)
    major, minor = _meets(m, q, k)
    ones = np.ones_like(a)
    at_major = (1 - a) * major[0] + a * minor[1] if k < m else math.nan * ones
    at_minor = (1 - a) * major[1] + a * minor[0] if k > 0 else math.nan * ones
    return at_major, at_minor


def social_loss(alpha: Any, m: int, c: float, k: int) -> Floats:
    """Mean loss of users at their chosen provider when k of m predict the minority label."""
    a, q = _alphas(alpha), _wrong(m, c)
    major, minor = _meets(m, q, k)
    return (1 - a) * k * major[1] + a * (m - k) * minor[1]


def is_equilibrium(alpha: Any, m: int, c: float, k: int) -> NDArray[np.bool_]:
    """Whether no provider gains by switching its label, for each alpha."""
    stays = np.ones_like(_alphas(alpha), dtype=bool)
    if k < m:
        stays &= shares(alpha, m, c, k + 1)[1] <= shares(alpha, m, c, k)[0] + SLACK
    if k > 0:
        stays &= shares(alpha, m, c, k - 1)[0] <= shares(alpha, m, c, k)[1] + SLACK
    return stays


def closed_form(alpha: Any, m: int, c: float) -> pd.DataFrame:
    """Every pure equilibrium: a row per alpha and k with SL, share_majority, share_minority and regime.

    alpha is the share of the minority label, in [0, 0.5]. `regime` is 'one prediction' where k = 0 is the
    only equilibrium, 'both offered' where every equilibrium offers both labels, else 'several'. c = 0 is
    Theorem 1: SL = alpha below 1/m, 0 above. Raises InputError for an alpha outside [0, 0.5], m < 2 or c < 0.

    >>> closed_form([0.2, 0.4], m=3, c=0.3)[["k", "regime"]].values.tolist()
    [[0, 'one prediction'], [1, 'both offered']]
    """
    import pandas as pd

    a = _alphas(alpha)
    found = np.array([is_equilibrium(a, m, c, k) for k in range(m + 1)])  # (m + 1, alphas)
    rows = []
    for i, one in enumerate(a):
        ks = np.flatnonzero(found[:, i])
        regime = (
            "several" if len(ks) > 1 and ks[0] == 0 else "one prediction" if ks[0] == 0 else "both offered"
        )
        for k in map(int, ks):
            at = shares(one, m, c, k)
            rows.append({
                "alpha": float(one), "k": k, "SL": float(social_loss(one, m, c, k)[0]),
                "share_majority": float(at[0][0]), "share_minority": float(at[1][0]), "regime": regime,
            })  # fmt: skip
    return pd.DataFrame(rows)


def threshold(m: int, c: float) -> float:
    """alpha*: all providers predicting alike is an equilibrium exactly up to this minority share.

    Root of (1-alpha) q / (m-1+q) + alpha / ((m-1) q + 1) = 1/m, which is linear in alpha; 1/m at c = 0.

    >>> round(threshold(3, 0.3), 5), threshold(4, 0.0)
    (0.34482, 0.25)
    """
    q = _wrong(m, c)
    wrong, right = q / (m - 1 + q), 1 / ((m - 1) * q + 1)
    return (1 / m - wrong) / (right - wrong)


def phase_diagram(alpha: Any, m: Sequence[int], c: float) -> pd.DataFrame:
    """Regimes on a grid: a row per m and alpha with alpha_star, regime, SL_low and SL_high over equilibria.

    The closed form on the axes of a sweep, so that theory and measurement can be drawn together.
    """
    import pandas as pd

    parts = []
    for count in m:
        every = closed_form(alpha, count, c).groupby("alpha", sort=False)
        part = every.agg(
            SL_low=("SL", "min"), SL_high=("SL", "max"), regime=("regime", "first")
        ).reset_index()
        parts.append(part.assign(m=count, alpha_star=threshold(count, c)))
    return pd.concat(parts, ignore_index=True)


def expected_social_loss(alpha: Any, m: int, c: float, *, weights: Any = None) -> tuple[float, float]:
    """Least and largest E_x[SL] over equilibria when x has minority share alpha(x), any function allowed.

    `weights` [N] are the masses of the x's (default: equal); Theorem 1 for c = 0.
    """
    a = _alphas(alpha)
    mass = np.full(len(a), 1 / len(a)) if weights is None else floats(weights, name="weights", ndim=1)
    low, high = np.full(len(a), math.inf), np.full(len(a), -math.inf)
    for k in range(m + 1):
        stands, loss = is_equilibrium(a, m, c, k), social_loss(a, m, c, k)
        low = np.where(stands, np.minimum(low, loss), low)
        high = np.where(stands, np.maximum(high, loss), high)
    return float(low @ mass / mass.sum()), float(high @ mass / mass.sum())


def closed_form_unequal(alpha: Any, w: Sequence[float]) -> pd.DataFrame:
    """Two providers of unequal reputation, users who never err: columns alpha, regime, p, SL.

    Up to alpha = w_2 (the smaller reputation, w normalised) both predict the majority and SL = alpha. Above
    it there is no pure equilibrium; in the only mixed one the larger provider predicts the minority label
    with probability p = (alpha - w_2) / (1 - 2 w_2), the smaller with 1 - p, and SL = p (1 - p).
    Raises InputError unless there are two positive reputations.
    """
    import pandas as pd

    a = _alphas(alpha)
    raw = floats(list(w), name="w", ndim=1)
    if raw.shape != (2,) or (raw <= 0).any():
        raise InputError(f"the reputations are {list(w)}", fix="give two positive numbers")
    small = float(raw.min() / raw.sum())
    mixed = (a > small) & (small < 0.5)
    p = np.where(mixed, (a - small) / max(1 - 2 * small, SLACK), np.nan)
    return pd.DataFrame({
        "alpha": a, "regime": np.where(mixed, "mixed", "one prediction"), "p": p,
        "SL": np.where(mixed, p * (1 - p), a),
    })  # fmt: skip


@dataclass(frozen=True)
class LabelEquilibrium:
    """`counts[y]` providers predict label y; `shares[y]` is what one of them earns (NaN where nobody is)."""

    counts: tuple[int, ...]
    SL: float
    shares: tuple[float, ...]


def multiclass_equilibria(p: Sequence[float], m: int, c: float = 0.0) -> list[LabelEquilibrium]:
    """All pure equilibria with label masses `p` (K of them, summing to 1), by enumerating count vectors.

    At c = 0 a provider at y earns p_y / k_y plus an even part of the unserved mass, and SL is that mass.
    Raises InputError for masses that do not sum to 1 or more than 200,000 count vectors.

    >>> [e.counts for e in multiclass_equilibria([0.6, 0.3, 0.1], m=3)]
    [(2, 1, 0)]
    """
    mass = floats(list(p), name="p", ndim=1)
    if len(mass) < 2 or (mass < 0).any() or abs(mass.sum() - 1) > 1e-6:
        raise InputError(f"the label masses are {list(p)}", fix="give two or more that sum to 1")
    q, size = _wrong(m, c), len(mass)
    if math.comb(m + size - 1, size - 1) > MOST_VECTORS:
        raise InputError(f"{m} providers and {size} labels are too many to enumerate", fix="give fewer")
    found = []
    for bars in itertools.combinations(range(m + size - 1), size - 1):
        edges = (-1, *bars, m + size - 1)
        counts = np.diff(edges) - 1  # stars and bars
        earned = _earned(mass, counts, m, q)
        if _nobody_moves(mass, counts, earned, m, q):
            loss = float(sum(mass[y] * (1 - _right(counts[y], m, q)) for y in range(size)))
            told = tuple(float(e) if n else math.nan for e, n in zip(earned, counts, strict=True))
            found.append(LabelEquilibrium(tuple(int(n) for n in counts), loss, told))
    return found


def _earned(mass: Floats, counts: Any, m: int, q: float) -> Floats:
    """What a provider earns at each label, given how many stand at each (itself included)."""
    wrong = np.array([_each(n, m, q)[1] for n in counts]) * mass  # from users of each label, when wrong
    right = np.array([_each(n, m, q)[0] for n in counts]) * mass
    return np.asarray(wrong.sum() - wrong + right)


def _nobody_moves(mass: Floats, counts: Any, earned: Floats, m: int, q: float) -> bool:
    for here in np.flatnonzero(counts):
        for there in range(len(mass)):
            if there != here:
                moved = counts.copy()
                moved[here] -= 1
                moved[there] += 1
                if _earned(mass, moved, m, q)[there] > earned[here] + SLACK:
                    return False
    return True


def _each(right: int, m: int, q: float) -> tuple[float, float]:
    """Chance that a user chooses one given right provider, one given wrong one; `right` of m are right."""
    if right == 0:
        return 0.0, 1 / m  # all wrong alike
    total = right + (m - right) * q
    return 1 / total, q / total


def _right(right: int, m: int, q: float) -> float:
    """Probability that a user is served correctly."""
    return right * _each(right, m, q)[0]


def _meets(m: int, q: float, k: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(right, wrong) chances of one provider with majority users, and with minority users."""
    return _each(m - k, m, q), _each(k, m, q)


def _wrong(m: int, c: float) -> float:
    """Q = exp(-1/c)."""
    if m < 2:
        raise InputError(f"{m} providers do not compete", fix="give m >= 2; one provider is the Bayes risk")
    if not (c >= 0 and math.isfinite(c)):
        raise InputError(f"the noise c is {c}", fix="give a number >= 0")
    return math.exp(-1 / c) if c > 0 else 0.0


def _alphas(alpha: Any) -> Floats:
    a = np.atleast_1d(floats(alpha, name="alpha"))
    if a.ndim != 1 or (a < 0).any() or (a > 0.5).any():
        raise InputError("alpha is the share of the minority label", fix="give numbers in [0, 0.5]")
    return a
