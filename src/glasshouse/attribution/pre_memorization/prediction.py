"""Does pre-memorization accuracy predict test accuracy? On the identity line, with no fitted slope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.pre_memorization.accuracy import dataset_accuracy, notes
from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.attribution.pre_memorization.calibration import Calibration

Runs = Trajectory | Sequence[Trajectory] | Mapping[str, Trajectory]
RESAMPLES = 2000
FEWEST = 4
"""Runs below which resampling them says nothing of their spread."""


def as_runs(trajs: Runs) -> list[Trajectory]:
    """One trajectory, a sequence, or a mapping, as a list. Raises InputError for none, or a repeated name."""
    if isinstance(trajs, Trajectory):
        return [trajs]
    found = list(trajs.values() if isinstance(trajs, Mapping) else trajs)
    if not found:
        raise InputError("there are no trajectories", fix="give at least one run")
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"two runs are called {twice[0]!r}", fix="name every run: runs are what is resampled"
        )
    return found


def identity_r2(measured: Array, predicted: Array) -> float:
    """1 - SS(measured - predicted) / SS(measured - its mean); NaN where all measured values are equal."""
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - predicted) ** 2).sum()) / spread if spread > 0 else math.nan


def mae(measured: Array, predicted: Array) -> float:
    """Mean absolute error."""
    return float(np.abs(measured - predicted).mean())


def squared_correlation(measured: Array, predicted: Array) -> float:
    """Pearson's r squared: blind to bias and slope, shown beside the identity's R^2; NaN without spread."""
    if np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return math.nan
    return float(np.corrcoef(measured, predicted)[0, 1] ** 2)


MEASURES = {"r2": identity_r2, "mae": mae, "correlation2": squared_correlation}


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted and measured test accuracy of every checkpoint, and how well they agree.

    run, step, predicted, measured, train: one entry a checkpoint. `r2`, `mae` and `correlation2` resample
    whole runs, because checkpoints of one run move together. `control` holds the same three for plain
    training accuracy. `sentences` is what a reader must know.
    """

    run: tuple[str, ...]
    step: Array
    predicted: Array
    measured: Array
    train: Array
    threshold: float
    r2: Estimate
    mae: Estimate
    correlation2: Estimate
    control: Mapping[str, Estimate]
    sentences: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One line per checkpoint: run, step, predicted, measured, train."""
        import pandas as pd

        return pd.DataFrame(
            {"run": self.run, "step": self.step, "predicted": self.predicted, "measured": self.measured,
             "train": self.train}
        )  # fmt: skip

    def plot(self) -> Any:
        """Measured against predicted (plotly), the identity line, and training accuracy as hollow marks."""
        import plotly.graph_objects as go

        top = float(max(self.predicted.max(), self.measured.max(), self.train.max()))
        figure = go.Figure(
            [
                go.Scatter(x=self.predicted, y=self.measured, mode="markers", name="before memorization",
                           text=list(self.run)),
                go.Scatter(x=self.train, y=self.measured, mode="markers", name="training accuracy",
                           marker={"symbol": "circle-open"}),
                go.Scatter(x=[0, top], y=[0, top], mode="lines", name="identity"),
            ]
        )  # fmt: skip
        figure.update_layout(
            title=f"Test accuracy against its prediction: R^2 {self.r2.value:.3f} on the identity",
            xaxis_title="predicted accuracy", yaxis_title="test accuracy",
        )  # fmt: skip
        return figure


def predict_test(trajs: Runs, threshold: float | Calibration, *, seed: int = 0) -> Prediction:
    """How well PM predicts the test accuracy of every checkpoint of the runs.

    `threshold` may be a `Calibration`: runs that it was tuned on are then named in `sentences`. Raises
    InputError for a run without test accuracy.
    """
    runs = as_runs(trajs)
    number, tuned_on = _threshold(threshold)
    bare = [one.name for one in runs if one.test_correct is None]
    if bare:
        raise InputError("the run holds no test accuracy", where=bare[0], fix="record it with test rows")
    run = [one.name for one in runs for _ in range(len(one))]
    predicted = np.concatenate([dataset_accuracy(one, number) for one in runs])
    train = np.concatenate([one.accuracy[:, one.trained].mean(1) for one in runs])
    measured = np.concatenate([one.test_accuracy for one in runs])  # type: ignore[misc]
    found = {name: over_runs(name, measured, predicted, run, seed=seed) for name in MEASURES}
    control = {name: over_runs(name, measured, train, run, seed=seed) for name in MEASURES}
    said = [f"{one.name}: {text}" for one in runs for text in notes(one, number, tuned_on=tuned_on).sentences]
    steps = np.concatenate([one.steps for one in runs])
    return Prediction(
        tuple(run), steps, predicted, measured, train, number, control=control, sentences=tuple(said), **found
    )


def predicted_accuracy(traj: Trajectory, threshold: float, *, at: int = -1, seed: int = 0) -> Estimate:
    """The predicted test accuracy at one checkpoint, with a bootstrap interval over the training rows.

    The interval is the spread of the rows alone: how far the identity line is off is what `predict_test` and
    a calibration on other runs say.
    """
    from glasshouse.attribution.pre_memorization.accuracy import pre_memorization
    from glasshouse.statistics import bootstrap

    spread = bootstrap(pre_memorization(traj, threshold)[at, traj.trained], seed=seed)
    value = float(dataset_accuracy(traj, threshold)[at])
    shift = value - spread.value
    return Estimate(
        value, spread.low + shift, spread.high + shift, spread.level, spread.n, f"{spread.method} over rows"
    )


def over_runs(
    measure: str, measured: Array, predicted: Array, run: Sequence[str], *, seed: int = 0
) -> Estimate:
    """'r2', 'mae' or 'correlation2' with a 95 % percentile bootstrap over whole runs; n counts runs.

    Fewer than four runs: the interval is the whole line. Resamples on which the measure does not exist (one
    run with one checkpoint drawn throughout) are drawn again.
    """
    function = MEASURES[measure]
    value = function(measured, predicted)
    names = np.array(run)
    places = [np.flatnonzero(names == name) for name in dict.fromkeys(run)]
    if math.isnan(value):
        return Estimate.undefined("the values do not vary", len(places))
    if len(places) < FEWEST:
        method = f"bootstrap over runs: {len(places)} runs show no spread"
        return Estimate(value, -math.inf, math.inf, 0.95, len(places), method)
    generator, draws = rng(seed, "runs", measure), list[float]()
    while len(draws) < RESAMPLES:
        pick = np.concatenate([places[i] for i in generator.integers(len(places), size=len(places))])
        drawn = function(measured[pick], predicted[pick])
        if not math.isnan(drawn):
            draws.append(drawn)
    low, high = (float(q) for q in np.quantile(draws, (0.025, 0.975)))
    return Estimate(
        value, min(low, value), max(high, value), 0.95, len(places),
        f"percentile bootstrap over runs, {RESAMPLES} resamples",
    )  # fmt: skip


def _threshold(given: float | Calibration) -> tuple[float, tuple[str, ...]]:
    if isinstance(given, int | float):
        return float(given), ()
    return given.threshold, given.tuned_on
