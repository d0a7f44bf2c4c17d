"""How often something happens, corrected for the errors of the judge that said so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate


def corrected_prevalence(
    judged: Sequence[Any] | NDArray[Any],
    validation_judged: Sequence[Any] | NDArray[Any],
    validation_truth: Sequence[Any] | NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share corrected by (p_obs + spec - 1) / (sens + spec - 1), clipped to [0, 1] (Rogan, Gladen 1978).

    `judged` [n] are the judge's 0 and 1 on the sample of interest; `validation_judged` and `validation_truth`
    [m] its answers and the true ones on labelled items. Both samples are drawn again; a resample in which the
    judge is no better than chance says nothing, so it widens the interval to both ends. n counts `judged`.
    Undefined where the validation sample lacks a class or the judge is no better than chance on it.

    >>> found = corrected_prevalence([1] * 40 + [0] * 60, [1] * 9 + [0] * 11, [1] * 10 + [0] * 10)
    >>> round(found.value, 3)
    0.444
    """
    y = _binary(judged, "judged")
    j, t = _binary(validation_judged, "validation_judged"), _binary(validation_truth, "validation_truth")
    if len(j) != len(t):
        raise InputError(f"{len(j)} judgements for {len(t)} truths", fix="give one of each per item")
    n, m = len(y), len(j)
    cells = np.array([np.sum((t == a) & (j == b)) for a in (1, 0) for b in (1, 0)], dtype=np.float64)
    point = _corrected(np.array([y.mean()]), cells[None])[0]
    if np.isnan(point):
        return Estimate.undefined(
            "the validation sample lacks a class, or the judge is no better than chance", n, level
        )
    generator = rng(seed, "prevalence")
    observed = generator.binomial(n, y.mean(), size=resamples) / n
    values = _corrected(observed, generator.multinomial(m, cells / m, size=resamples).astype(np.float64))
    tail = (1 - level) / 2
    low = float(np.quantile(np.where(np.isnan(values), 0.0, values), tail))
    high = float(np.quantile(np.where(np.isnan(values), 1.0, values), 1 - tail))
    told = f"Rogan-Gladen, bootstrap over both samples, {resamples} resamples, {m} labelled items"
    return Estimate(float(point), low, high, level, n, told)


def _corrected(observed: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corrected shares [R] of observed ones and tables [R, 4]: hits, misses, false alarms, rejections."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = cells[:, 0] / (cells[:, 0] + cells[:, 1])
        specificity = cells[:, 3] / (cells[:, 2] + cells[:, 3])
        better = sensitivity + specificity - 1
        value = np.clip((observed + specificity - 1) / better, 0, 1)
    return np.where(better > 0, value, np.nan)


def _binary(values: Any, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} has shape {array.shape}", fix="give at least one 0 or 1")
    bad = np.flatnonzero(~np.isin(array, (0.0, 1.0)))
    if bad.size:
        raise InputError(
            f"{name} {int(bad[0])} is {array[bad[0]]}", fix="give 0 or 1; leave out what could not be read"
        )
    return array
