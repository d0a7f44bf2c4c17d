"""P-values, their correction, equivalence, and how small an effect a sample could show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._intervals import t_interval
from glasshouse.statistics._validate import check_counts, check_level, floats
from glasshouse.statistics.estimate import Estimate


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests (Holm 1979), in the order given; at most 1.

    Rejecting those below alpha keeps the chance of any false rejection at alpha, whatever the dependence.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = floats(list(p), name="p", ndim=1)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise InputError("a p-value lies outside [0, 1]", fix="give probabilities")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0) if values.size else steps
    out = np.empty_like(values)
    out[order] = adjusted
    return [float(v) for v in out]


def tost(values: Any, margin: float, level: float = 0.95) -> tuple[Estimate, float]:
    """Is the mean of `values` [N] within +-margin of zero? Two one-sided t tests (Schuirmann 1987).

    Returns the mean with its interval of level 2 * level - 1 (90 % for 0.95) and the p-value of
    "the mean is at least `margin` away from zero": p <= 1 - level exactly when the interval lies within
    the margin. For a paired comparison give the differences. One value: p = 1.
    """
    from scipy.special import stdtr

    level = check_level(level)
    if not (margin > 0 and math.isfinite(margin)):
        raise InputError(f"margin is {margin}", fix="give a positive number in the unit of the values")
    if level <= 0.5:
        raise InputError(f"level is {level}", fix="give a level above 0.5")
    x = floats(values, name="values", ndim=1)
    estimate = t_interval(x, 2 * level - 1)
    if x.size == 0:
        return estimate, math.nan
    found = Estimate(
        estimate.value, estimate.low, estimate.high, estimate.level, estimate.n, "t, two one-sided"
    )
    if x.size == 1:
        return found, 1.0
    error = float(x.std(ddof=1)) / math.sqrt(x.size)
    room = margin - abs(estimate.value)  # the nearer side of the margin decides
    if error == 0:
        return found, 0.0 if room > 0 else 1.0
    return found, float(stdtr(x.size - 1, -room / error))


def minimum_detectable_effect(
    n: int, *, sd: float | None = None, p: float | None = None, level: float = 0.95, power: float = 0.8
) -> float:
    """The smallest effect that `n` units would show with probability `power`; give `sd` or `p`.

    sd: a mean (or a mean paired difference) away from zero in a two-sided t test, in the unit of sd.
    p: a rise of a rate above `p` in the one-sided exact binomial test; inf when even a rate of 1 is too rare.

    >>> round(minimum_detectable_effect(16, sd=1.0), 3)
    0.749
    """
    level, power = check_level(level), check_level(power)
    if (sd is None) == (p is None):
        raise InputError("both or neither of sd and p are given", fix="give exactly one")
    _, n = check_counts(0, n)
    if sd is not None:
        return _mde_mean(n, sd, 1 - level, power)
    assert p is not None
    return _mde_rate(n, p, 1 - level, power)


def binomial_p_value(
    k: int, n: int, p0: float, side: Literal["greater", "less", "two-sided"] = "greater"
) -> float:
    """Probability, at rate `p0`, of a count at least as extreme as k of n (exact binomial test).

    >>> binomial_p_value(3, 3, 0.5)
    0.125
    """
    k, n = check_counts(k, n)
    if not 0 <= p0 <= 1:
        raise InputError(f"p0 is {p0}", fix="give a probability")
    if side not in ("greater", "less", "two-sided"):
        raise InputError(f"side is {side!r}", fix="give 'greater', 'less' or 'two-sided'")
    if n == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(k, n, p0, alternative=side).pvalue)


def permutation_p_value(observed: float, null_values: Any) -> float:
    """(1 + number of null values >= observed) / (1 + number of null values): never 0 (Phipson, Smyth 2010).

    >>> permutation_p_value(5.0, [1.0, 2.0, 6.0])
    0.5
    """
    null = floats(null_values, name="null_values", ndim=1)
    value = float(floats(observed, name="observed", ndim=0))
    return float((1 + (null >= value).sum()) / (1 + null.size))


def _mde_mean(n: int, sd: float, alpha: float, power: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import stdtrit
    from scipy.stats import nct

    if not (sd >= 0 and math.isfinite(sd)):
        raise InputError(f"sd is {sd}", fix="give a standard deviation >= 0")
    if n < 2:
        return math.inf
    if power <= alpha:
        return 0.0
    critical = float(stdtrit(n - 1, 1 - alpha / 2))

    def missing(shift: float) -> float:
        """Power at a mean of `shift` standard errors, less the power asked for."""
        return float(nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift)) - power

    high = critical + 5.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high)) * sd / math.sqrt(n)


def _mde_rate(n: int, p: float, alpha: float, power: float) -> float:
    from scipy.special import bdtrc, betaincinv

    if not 0 <= p < 1:
        raise InputError(f"p is {p}", fix="give a rate below 1")
    counts = np.arange(n + 1)
    tails = np.where(counts == 0, 1.0, bdtrc(np.maximum(counts - 1, 0), n, p))  # P(count >= k) at rate p
    rejected = counts[tails <= alpha]
    if rejected.size == 0:
        return math.inf
    k = int(rejected[0])
    # P(count >= k) at rate q is the regularised incomplete beta I_q(k, n - k + 1): invert it.
    return max(0.0, float(betaincinv(k, n - k + 1, power)) - p)
