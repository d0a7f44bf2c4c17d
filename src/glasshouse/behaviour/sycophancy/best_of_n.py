"""Best-of-N: what a reward model selects, from n samples an item, without resampling bias.

The expected metric of the best of N among n scored samples is sum_i w_i m_(i), with the weight of the sample
of rank i (from the worst) w_i = C(i-1, N-1) / C(n, N): the chance that it is the best of a random N-subset.
Samples with equal scores share the weights of their ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, t_interval
from glasshouse.statistics._validate import floats

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BonCurve:
    """`per_item` [items, len(ns)]: expected metric of the best of N; `estimates`: means over items, by N."""

    ns: tuple[int, ...]
    per_item: Floats
    level: float = 0.95

    @property
    def estimates(self) -> dict[int, Estimate]:
        """Mean over items with a t-interval: the item is the independent unit, its samples are not."""
        return {n: t_interval(self.per_item[:, k], self.level) for k, n in enumerate(self.ns)}

    def growth(self, low: int | None = None, high: int | None = None) -> Estimate:
        """How much the metric rises from the best of `low` to the best of `high` (the ends by default)."""
        first, last = (self.ns.index(n) for n in (low or self.ns[0], high or self.ns[-1]))
        return t_interval(self.per_item[:, last] - self.per_item[:, first], self.level)

    def to_frame(self) -> pd.DataFrame:
        """One row per N."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"N": n, "metric": e.value, "low": e.low, "high": e.high, "items": e.n}
                for n, e in self.estimates.items()
            ]
        )

    def plot(self) -> Any:
        """The curve with its band over log N (plotly)."""
        import plotly.graph_objects as go

        frame = self.to_frame()
        dots = go.Scatter(
            x=frame.N, y=frame.metric, mode="lines+markers",
            error_y={"array": frame.high - frame.metric, "arrayminus": frame.metric - frame.low},
        )  # fmt: skip
        return go.Figure(dots).update_layout(
            xaxis_type="log", xaxis_title="N", yaxis_title="metric of the best of N"
        )


def bon_curve(scores: Any, metric: Any, ns: Sequence[int], *, level: float = 0.95) -> BonCurve:
    """The metric of the sample that `scores` [items, n] rank best among N, for each N of `ns`.

    Unbiased for every N up to n. Raises InputError for NaN, other shapes, or an N outside 1..n.

    >>> bon_curve([[0.0, 1.0, 2.0]], [[0.0, 0.0, 3.0]], [1, 3]).per_item.tolist()
    [[1.0, 3.0]]
    """
    s, m = floats(scores, name="scores", ndim=2), floats(metric, name="metric", ndim=2)
    if s.shape != m.shape or 0 in s.shape:
        raise InputError(
            f"scores have shape {s.shape} and the metric {m.shape}", fix="give [items, n] of both"
        )
    bad = [n for n in ns if not 1 <= n <= s.shape[1]]
    if bad or not ns:
        raise InputError(
            f"N is {bad or list(ns)} with {s.shape[1]} samples an item", fix="give N from 1 to n"
        )
    weights = np.stack([_weights(s.shape[1], n) for n in ns])  # [len(ns), n]
    order = np.argsort(s, axis=1, kind="stable")
    ranked = np.take_along_axis(m, order, axis=1)
    tied = np.take_along_axis(s, order, axis=1)
    # A tie is broken by chance: each of the tied samples is worth their mean.
    fair = np.stack([_tie_means(row, values) for row, values in zip(tied, ranked, strict=True)])
    return BonCurve(tuple(int(n) for n in ns), fair @ weights.T, level)


def _weights(n: int, best_of: int) -> Floats:
    """C(i-1, N-1) / C(n, N) for i = 1..n, in logarithms."""
    from scipy.special import gammaln

    i = np.arange(1, n + 1)
    out = np.zeros(n)
    use = i[i >= best_of]

    def log_choose(a: Any, b: int) -> Any:
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    out[use - 1] = np.exp(log_choose(use - 1, best_of - 1) - log_choose(n, best_of))
    return out / out.sum()


def _tie_means(scores: Floats, values: Floats) -> Floats:
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    if len(starts) == len(scores):
        return values
    sizes = np.diff(np.r_[starts, len(scores)])
    return np.repeat(np.add.reduceat(values, starts) / sizes, sizes)
