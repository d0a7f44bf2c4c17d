"""Intervals for a share and for a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._validate import check_counts, check_level, floats
from glasshouse.statistics.estimate import Estimate


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Share of successes with the Wilson score interval (Wilson 1927, eq. in Brown, Cai, DasGupta 2001).

    Its coverage is near `level` on average over shares, not at least `level` at each; use
    `clopper_pearson` where a guarantee is needed. n = 0 is undefined. Raises InputError for counts that
    cannot be.

    >>> print(wilson(8, 10))
    0.800 [0.490, 0.943] (95%, n=10, wilson)
    """
    from scipy.special import ndtri

    k, n = check_counts(successes, n)
    level = check_level(level)
    if n == 0:
        return Estimate.undefined("no trials", 0, level)
    z = float(ndtri((1 + level) / 2))
    share = k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bounds are 0 and 1; rounding must not cut the point off.
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Estimate(share, low, high, level, n, "wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Share of successes with the exact interval (Clopper, Pearson 1934): coverage at least `level` always.

    n = 0 is undefined. Raises InputError for impossible counts.

    >>> print(clopper_pearson(0, 12))
    0.000 [0.000, 0.265] (95%, n=12, clopper-pearson)
    """
    k, n = check_counts(successes, n)
    level = check_level(level)
    if n == 0:
        return Estimate.undefined("no trials", 0, level)
    tail = (1 - level) / 2
    return Estimate(k / n, exact_low(k, n, tail), exact_high(k, n, tail), level, n, "clopper-pearson")


def one_sided_bound(
    successes: int, n: int, level: float = 0.95, side: Literal["lower", "upper"] = "lower"
) -> Estimate:
    """Share of successes with an exact bound on one side only; the other bound is 0 or 1.

    For "always" and "never" rows: 40 of 40 successes say the rate is at least 0.928 at level 0.95.

    >>> print(one_sided_bound(40, 40))
    1.000 [0.928, 1.000] (95%, n=40, clopper-pearson, lower bound)
    """
    k, n = check_counts(successes, n)
    level = check_level(level)
    if side not in ("lower", "upper"):
        raise InputError(f"side is {side!r}", fix="give 'lower' or 'upper'")
    if n == 0:
        return Estimate.undefined("no trials", 0, level)
    low = exact_low(k, n, 1 - level) if side == "lower" else 0.0
    high = exact_high(k, n, 1 - level) if side == "upper" else 1.0
    return Estimate(k / n, low, high, level, n, f"clopper-pearson, {side} bound")


def t_interval(values: Sequence[float] | Any, level: float = 0.95) -> Estimate:
    """Mean of independent values [N] with Student's t interval.

    No value: undefined. One value: the interval is the whole line, because one value says nothing of its
    spread. Raises InputError for NaN, infinity or more than one axis.

    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484] (95%, n=3, t)
    """
    from scipy.special import stdtrit

    x = floats(values, name="values", ndim=1)
    level = check_level(level)
    if x.size == 0:
        return Estimate.undefined("no values", 0, level)
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, -math.inf, math.inf, level, 1, "t: one value has no spread")
    half = float(stdtrit(x.size - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Estimate(mean, mean - half, mean + half, level, int(x.size), "t")


def exact_low(k: int, n: int, tail: float) -> float:
    """The share at which k or more successes of n have probability `tail` (0 when k = 0)."""
    from scipy.special import betaincinv

    return 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))


def exact_high(k: int, n: int, tail: float) -> float:
    """The share at which k or fewer successes of n have probability `tail` (1 when k = n)."""
    from scipy.special import betaincinv

    return 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
