"""What content costs: quality^c, or a convex curve through given points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.scenario import ContentMarket

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Cost of quality (the length of content), its derivative, and the inverse of each, on arrays."""

    value: Callable[[Any], Floats]
    slope: Callable[[Any], Floats]
    quality: Callable[[Any], Floats]
    """The quality that a cost buys."""
    quality_at_slope: Callable[[Any], Floats]
    """The largest quality whose marginal cost is at most this."""


def cost_of(market: ContentMarket) -> Cost:
    """The market's cost: a power law, or its cost curve."""
    if market.cost_curve is not None:
        return _curve(market.cost_curve)
    c = market.c
    return Cost(
        value=lambda q: np.asarray(q, dtype=np.float64) ** c,
        slope=lambda q: c * np.asarray(q, dtype=np.float64) ** (c - 1),
        quality=lambda cost: np.asarray(cost, dtype=np.float64) ** (1 / c),
        quality_at_slope=lambda slope: (np.asarray(slope, dtype=np.float64) / c) ** (1 / (c - 1))
        if c > 1 else np.where(np.asarray(slope) < 1, 0.0, np.inf),
    )  # fmt: skip


def tabulate(
    cost: Callable[[float], float], *, most: float, points: int = 40
) -> tuple[tuple[float, float], ...]:
    """`cost_curve` of a function: its values on an even grid from 0 to `most`."""
    grid = np.linspace(0.0, most, points)
    return tuple((float(q), float(cost(float(q)))) for q in grid)


def check_points(points: Sequence[tuple[float, float]]) -> None:
    """Raises ValueError unless the points start at (0, 0), increase, and are convex."""
    table = np.array(points, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 3 or not np.isfinite(table).all():
        raise ValueError("cost_curve needs at least three points (quality, cost)")
    if (table[0] != 0).any():
        raise ValueError("cost_curve must start at quality 0 and cost 0")
    steps = np.diff(table, axis=0)
    if (steps <= 0).any():
        raise ValueError(f"cost_curve does not increase at point {int(np.argmax((steps <= 0).any(1))) + 2}")
    slopes = steps[:, 1] / steps[:, 0]
    if (np.diff(slopes) < -1e-12).any():
        raise ValueError(f"cost_curve is not convex at point {int(np.argmax(np.diff(slopes) < -1e-12)) + 2}")


def _curve(points: Sequence[tuple[float, float]]) -> Cost:
    """Linear between the points, continued with the last slope."""
    table = np.array(points, dtype=np.float64)
    q, cost = table[:, 0], table[:, 1]
    slopes = np.diff(cost) / np.diff(q)

    def value(x: Any) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return np.where(x <= q[-1], np.interp(x, q, cost), cost[-1] + slopes[-1] * (x - q[-1]))

    def slope(x: Any) -> Floats:
        at = np.searchsorted(q, np.asarray(x, dtype=np.float64), side="right") - 1
        return slopes[np.clip(at, 0, len(slopes) - 1)]

    def quality(paid: Any) -> Floats:
        paid = np.asarray(paid, dtype=np.float64)
        return np.where(paid <= cost[-1], np.interp(paid, cost, q), q[-1] + (paid - cost[-1]) / slopes[-1])

    def at_slope(s: Any) -> Floats:
        return q[np.searchsorted(slopes, np.asarray(s, dtype=np.float64), side="right")]

    return Cost(value, slope, quality, at_slope)
