"""Linear datamodelling score: do sums of scores predict retraining on subsets? (arXiv:2303.14186)"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.bank import RetrainBank
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate


def lds_by_query(scores: NDArray[Any], bank: RetrainBank) -> NDArray[np.float64]:
    """Spearman over subsets of (sum of the subset's scores, mean measurement), `[Q]`; NaN where constant."""
    if scores.shape[1] != bank.masks.shape[1] or scores.shape[0] != bank.values.shape[2]:
        raise InputError(
            f"scores have shape {scores.shape}, the bank has {bank.values.shape[2]} queries "
            f"and {bank.masks.shape[1]} rows"
        )
    predicted = bank.masks.astype(np.float64) @ scores.astype(np.float64).T  # (m, Q)
    return _spearman_columns(predicted, bank.means)


def lds(table: ScoreTable, bank: RetrainBank, *, seed: int = 0) -> Estimate:
    """Mean over queries of `lds_by_query`, with a 95% bootstrap over queries.

    Queries whose measurement never changes have no rank correlation; they are left out of n.
    """
    return _mean(lds_by_query(table.dense(0.0), bank), seed)


def split_half_ceiling(bank: RetrainBank, *, seed: int = 0) -> Estimate:
    """Spearman between the measurements of two halves of the seeds: how well retraining repeats itself.

    With r the value, a perfect predictor of the mean over all seeds would reach about `sqrt(2 r / (1 + r))`,
    which is above r: with few seeds methods may well exceed it. Undefined with fewer than two seeds.
    """
    half = bank.values.shape[1] // 2
    if half == 0:
        return Estimate.undefined("the bank has one seed per subset")
    first, second = bank.values[:, :half].mean(1), bank.values[:, half : 2 * half].mean(1)
    return _mean(_spearman_columns(first, second), seed)


def _mean(values: NDArray[np.float64], seed: int) -> Estimate:
    from glasshouse.statistics import bootstrap

    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Estimate.undefined("no query's measurement changes", 0)
    return bootstrap(known, seed=seed)


def _spearman_columns(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    rx, ry = rankdata(x, axis=0), rankdata(y, axis=0)
    rx, ry = rx - rx.mean(0), ry - ry.mean(0)
    scale = np.sqrt((rx**2).sum(0) * (ry**2).sum(0))
    return np.where(scale > 0, (rx * ry).sum(0) / np.where(scale > 0, scale, 1), np.nan)
