"""Choosing the perplexity below which a solution counts as copied: from runs with test accuracy, or without.

p belongs to one model and one kind of data (GSM8K -2.3, MATH -1.7 for the same Llama-3-8B); freeze it once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.pre_memorization.accuracy import dataset_accuracy
from glasshouse.attribution.pre_memorization.prediction import FEWEST, Runs, as_runs, identity_r2
from glasshouse.attribution.pre_memorization.trajectory import Array
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

GRID = tuple(round(-4.0 + 0.1 * i, 1) for i in range(46))
"""log(log p) from -4 (ppl 1.018) to 0.5 (ppl 5.2) in steps of 0.1."""
RESAMPLES = 500
WINDOW = 0.5
"""Width, in units of log(log p), over which the label-free rule asks PM to stay the same."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A threshold, how it was chosen, and what the others would have given.

    grid [G]; curve [G]: identity R^2 (rule 'labels'), or how much the predictions move per unit of the
    threshold (rule 'flat', smaller is better). interval: 2.5 % to 97.5 % of the thresholds chosen on
    resampled runs. `tuned_on`: the runs whose test accuracy chose it; empty for the label-free rule.
    """

    threshold: float
    rule: str
    grid: Array
    curve: Array
    interval: Estimate
    tuned_on: tuple[str, ...]

    @property
    def perplexity(self) -> float:
        """The perplexity p itself, exp(exp(threshold))."""
        return math.exp(math.exp(self.threshold))

    def to_frame(self) -> pd.DataFrame:
        """One line per grid point: threshold, perplexity, curve."""
        import pandas as pd

        ppl = np.exp(np.exp(self.grid))
        return pd.DataFrame({"threshold": self.grid, "perplexity": ppl, "curve": self.curve})

    def plot(self) -> Any:
        """The curve over the grid (plotly), the choice marked."""
        import plotly.graph_objects as go

        figure = go.Figure([go.Scatter(x=self.grid, y=self.curve, mode="lines+markers", name=self.rule)])
        figure.add_vline(x=self.threshold)
        figure.update_layout(
            title="Choosing the threshold of memorization", xaxis_title="log(log perplexity)",
            yaxis_title="identity R^2" if self.rule == "labels" else "change of PM per unit",
        )  # fmt: skip
        return figure


def calibrate_threshold(
    trajs: Runs, grid: Sequence[float] = GRID, *, labels: bool = True, seed: int = 0
) -> Calibration:
    """The threshold whose predictions lie closest to the identity line, over `grid` (log(log p), natural).

    With `labels=False` no test accuracy is looked at: chosen is the middle of the stretch of the grid over
    which predictions move least, among thresholds at which memorised rows lower them at all. Raises
    InputError for a grid that does not rise, a run without test accuracy, and, label-free, for runs in which
    nothing on the grid is memorised.
    """
    runs = as_runs(trajs)
    points = np.asarray(list(grid), float)
    if len(points) < 3 or not np.isfinite(points).all() or (np.diff(points) <= 0).any():
        raise InputError(f"the grid of {len(points)} thresholds does not rise", fix="give 3 or more, rising")
    if labels and any(one.test_correct is None for one in runs):
        bare = next(one.name for one in runs if one.test_correct is None)
        raise InputError("the run holds no test accuracy", where=bare, fix="use labels=False")
    table = np.stack([np.concatenate([dataset_accuracy(one, th) for one in runs]) for th in points])  # [G, P]
    run = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    measured = np.concatenate([one.test_accuracy for one in runs]) if labels else None  # type: ignore[misc]
    train = np.concatenate([one.accuracy[:, one.trained].mean(1) for one in runs])

    def curve(pick: Array) -> Array:
        if measured is not None:
            return np.array([identity_r2(measured[pick], row[pick]) for row in table])
        return _movement(points, table[:, pick], train[pick])

    best = curve(np.arange(table.shape[1]))
    choose = np.nanargmax if labels else np.nanargmin
    if np.isnan(best).all():
        what = "test accuracies do not vary" if labels else "no threshold on the grid sets any row apart"
        raise InputError(what, fix="give more checkpoints" if labels else "give a grid that reaches further")
    threshold = float(points[choose(best)])
    drawn = _resampled(curve, run, len(runs), points, choose, seed)
    if drawn:
        low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975)))
        method = f"percentile bootstrap over runs, {len(drawn)} resamples"
        interval = Estimate(
            threshold, min(low, threshold), max(high, threshold), 0.95, len(runs), method
        )  # fmt: skip
    else:
        method = f"bootstrap over runs: {len(runs)} runs show no spread"
        interval = Estimate(threshold, -math.inf, math.inf, 0.95, len(runs), method)
    tuned = tuple(one.name for one in runs) if labels else ()
    return Calibration(threshold, "labels" if labels else "flat", points, best, interval, tuned)


def _movement(points: Array, table: Array, train: Array) -> Array:
    """Mean |change of PM| per unit of threshold over a window around each grid point, [G].

    NaN at points where PM equals training accuracy throughout (nothing is memorised yet) or is 0 throughout
    (everything is): there it does not move for want of rows, not because the choice does not matter.
    """
    out = np.full(len(points), np.nan)
    for g, at in enumerate(points):
        near = np.flatnonzero(np.abs(points - at) <= WINDOW / 2 + 1e-9)
        bites = bool((train - table[g] > 0.02).any())
        alive = bool((table[near[-1]] > 0.02).any())
        if len(near) > 1 and bites and alive:
            out[g] = np.abs(table[near[-1]] - table[near[0]]).mean() / (points[near[-1]] - points[near[0]])
    return out


def _resampled(curve: Any, run: Array, n_runs: int, points: Array, choose: Any, seed: int) -> list[float]:
    if n_runs < FEWEST:
        return []
    generator, found = rng(seed, "threshold"), list[float]()
    places = [np.flatnonzero(run == r) for r in range(n_runs)]
    for _ in range(RESAMPLES):
        pick = np.concatenate([places[i] for i in generator.integers(n_runs, size=n_runs)])
        drawn = curve(pick)
        if not np.isnan(drawn).all():
            found.append(float(points[choose(drawn)]))
    return found
