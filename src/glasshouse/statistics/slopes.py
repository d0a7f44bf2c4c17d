"""Exponents: the slope of a power law in a window, local slopes, where a slope breaks, theory against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._validate import Floats, check_level, floats
from glasshouse.statistics.estimate import Estimate


def log_slope(
    x: Any,
    y: Any,
    *,
    error: Any | None = None,
    window: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Estimate:
    """The exponent b of y ~ x^b: least squares of log y on log x, both [N] and positive, with its interval.

    `error` [N] holds standard errors of y; rows are then weighted by (y / error)^2 and the interval is
    Student's, scaled by the scatter about the line where that is larger than the errors say. `window` keeps
    low <= x <= high. For a deterministic curve the interval is the regression error: how far the curve is
    from a straight line. n counts the rows used; fewer than three are undefined.
    Raises InputError for values that have no logarithm.

    >>> round(log_slope([1, 2, 4, 8], [3, 6, 12, 24]).value, 6)
    1.0
    """
    from scipy.special import stdtrit

    xs, ys, weights = _logs(x, y, error)
    level = check_level(level)
    if window is not None:
        inside = (xs >= math.log(window[0]) - 1e-12) & (xs <= math.log(window[1]) + 1e-12)
        xs, ys, weights = xs[inside], ys[inside], weights[inside]
    if len(xs) < 3 or np.ptp(xs) == 0:
        return Estimate.undefined("fewer than three points", len(xs), level)
    slope, _, rss, spread = _line(xs, ys, weights)
    scatter = rss / (len(xs) - 2)
    scale = scatter if error is None else max(1.0, scatter)
    half = float(stdtrit(len(xs) - 2, (1 + level) / 2)) * math.sqrt(scale / spread)
    kind = "log-log least squares" if error is None else "weighted log-log least squares"
    return Estimate(slope, slope - half, slope + half, level, len(xs), kind)


def local_slopes(x: Any, y: Any) -> Floats:
    """Exponent d log y / d log x at each of N points [N] by second-order differences; x must increase."""
    xs, ys, _ = _logs(x, y, None)
    if len(xs) < 3 or (np.diff(xs) <= 0).any():
        raise InputError("local slopes need three increasing values of x")
    return np.asarray(np.gradient(ys, xs, edge_order=2))


@dataclass(frozen=True)
class PowerBreaks:
    """A continuous piecewise power law: `slopes` [k + 1] between `breaks` [k] (values of x).

    `low` and `high` [k] bound each break: every break of a fit whose residuals are within what an F test at
    the level allows of the best. Points on the grid of x only.
    """

    breaks: Floats
    low: Floats
    high: Floats
    slopes: Floats
    rss: float
    level: float


def power_breaks(x: Any, y: Any, *, breaks: int = 1, level: float = 0.95) -> PowerBreaks:
    """Where the exponent of y in x changes: the best 1 or 2 breaks, by search over the interior points of x.

    Raises InputError for fewer than 2 * (breaks + 1) + 2 points.
    """
    from scipy.special import fdtri

    xs, ys, _ = _logs(x, y, None)
    if breaks not in (1, 2):
        raise InputError(f"breaks is {breaks}", fix="ask for 1 or 2")
    if len(xs) < 2 * (breaks + 1) + 2:
        raise InputError(f"{len(xs)} points cannot show {breaks} breaks", fix="give a longer curve")
    order = np.argsort(xs)
    xs, ys = xs[order], ys[order]
    inner = [at for at in combinations(range(1, len(xs) - 1), breaks) if min(np.diff([0, *at, len(xs)])) >= 2]
    fits = [_hinges(xs, ys, xs[list(at)]) for at in inner]
    residuals = np.array([rss for _, rss in fits])
    best = int(residuals.argmin())
    freedom = len(xs) - 2 - 2 * breaks
    quantile = float(fdtri(2 * breaks, freedom, check_level(level)))
    allowed = residuals[best] * (1 + 2 * breaks / freedom * quantile)
    near = np.array([xs[list(at)] for at, rss in zip(inner, residuals, strict=True) if rss <= allowed])
    coefficients = fits[best][0]  # intercept, first slope, changes of slope
    return PowerBreaks(
        np.exp(xs[list(inner[best])]), np.exp(near.min(0)), np.exp(near.max(0)),
        np.cumsum(coefficients[1:]), float(residuals[best]), level,
    )  # fmt: skip


def agree(theory: float, estimate: Estimate, *, rtol: float = 0.0) -> bool:
    """Whether `theory` lies within the interval, or within `rtol` (relative) of the point."""
    if not estimate.defined or math.isnan(theory):
        return False
    return not estimate.excludes(theory) or abs(estimate.value - theory) <= rtol * abs(theory)


def _logs(x: Any, y: Any, error: Any | None) -> tuple[Floats, Floats, Floats]:
    xs, ys = floats(x, name="x", ndim=1), floats(y, name="y", ndim=1)
    if len(xs) != len(ys):
        raise InputError(f"x has {len(xs)} values and y {len(ys)}", fix="give one of each per point")
    for name, values in (("x", xs), ("y", ys)):
        if (values <= 0).any():
            first = int(np.argmax(values <= 0))
            raise InputError(f"{name}[{first}] is {values[first]:g}: an exponent needs positive values")
    weights = np.ones(len(xs))
    if error is not None:
        errors = floats(error, name="error", ndim=1)
        if len(errors) != len(ys) or (errors <= 0).any():
            raise InputError("error needs one positive value per point")
        weights = (ys / errors) ** 2  # the variance of log y is (error / y)^2
    return np.log(xs), np.log(ys), weights


def _line(x: Floats, y: Floats, weights: Floats) -> tuple[float, float, float, float]:
    """Slope, intercept, weighted residual sum of squares, weighted spread of x."""
    total = float(weights.sum())
    mx, my = float(weights @ x) / total, float(weights @ y) / total
    spread = float(weights @ (x - mx) ** 2)
    slope = float(weights @ ((x - mx) * (y - my))) / spread
    rss = float(weights @ (y - my - slope * (x - mx)) ** 2)
    return slope, my - slope * mx, rss, spread


def _hinges(x: Floats, y: Floats, at: Floats) -> tuple[Floats, float]:
    """Coefficients and residual sum of a continuous broken line with knots `at`."""
    columns = [np.ones_like(x), x, *(np.maximum(x - knot, 0.0) for knot in at)]
    design = np.stack(columns, axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    return coefficients, float(((design @ coefficients - y) ** 2).sum())
