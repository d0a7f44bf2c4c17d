"""Bootstrap intervals: plain, paired, clustered; percentile and BCa (Efron 1987).

Means are resampled as one array operation; any other statistic is called once per resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics._validate import Floats, check_level, floats
from glasshouse.statistics.estimate import Estimate

Statistic = Callable[[Floats], float] | Literal["mean"]
Method = Literal["percentile", "bca"]
_BLOCK = 4_000_000
"""Largest number of drawn indices held at once (32 MB)."""


def bootstrap(
    values: Any,
    statistic: Statistic = "mean",
    *,
    clusters: Sequence[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Method = "percentile",
) -> Estimate:
    """`statistic` of `values` [N] or [N, ...] with a bootstrap interval over the first axis.

    `statistic` is "mean" (of everything) or a function of an array [M, ...] that returns one number.
    `clusters` [N] names the independent unit of each value; whole clusters are then drawn, M may differ
    from N, and n of the estimate counts clusters.
    `method` "percentile" undercovers below about 20 units ("bca" a little less); seeds are few, so take
    `t_interval` there. Degenerate values give a degenerate interval; one unit gives the whole line.
    Raises InputError for NaN in the values, or a statistic that is NaN on the values or on a resample.

    >>> estimate = bootstrap([1.0, 2.0, 3.0, 4.0])
    >>> estimate.value, estimate.n
    (2.5, 4)
    """
    x = floats(values, name="values")
    level = check_level(level)
    if x.ndim == 0:
        raise InputError("values is a single number", fix="give an array with one entry per unit")
    if resamples < 1 or method not in ("percentile", "bca"):
        raise InputError(
            f"resamples is {resamples}, method {method!r}",
            fix="give resamples >= 1 and 'percentile' or 'bca'",
        )
    units = _Units.of(x, clusters)
    label = f"{method} bootstrap" + (", clustered" if clusters is not None else "")
    if units.count == 0:
        return Estimate.undefined("no values", 0, level)
    point = units.point(statistic)
    if units.count == 1:
        return Estimate(point, -math.inf, math.inf, level, 1, f"{label}: one unit has no spread")
    draws = np.sort(units.draws(statistic, resamples, rng(seed, "bootstrap")))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(tails, point, draws, units.leave_one_out(statistic))
    low, high = (float(b) for b in np.quantile(draws, tails))
    return Estimate(point, low, high, level, units.count, f"{label}, {resamples} resamples")


def bootstrap_paired(
    a: Any,
    b: Any,
    *,
    clusters: Sequence[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Method = "percentile",
) -> Estimate:
    """Mean of a - b over pairs [N] (same prompt, same seed), with a bootstrap interval over the pairs.

    >>> bootstrap_paired([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]).value
    2.0
    """
    x, y = floats(a, name="a"), floats(b, name="b")
    if x.shape != y.shape:
        raise InputError(f"a has shape {x.shape} and b {y.shape}", fix="give one value of each per pair")
    found = bootstrap(
        x - y, clusters=clusters, level=level, resamples=resamples, seed=seed, method=method
    )  # fmt: skip
    if not found.defined:
        return found
    return Estimate(found.value, found.low, found.high, level, found.n, f"paired {found.method}")


@dataclass(frozen=True)
class _Units:
    """Values grouped into the units that are drawn: `rows[i]` are the row numbers of unit i."""

    x: Floats
    rows: list[Any] | None  # None: each row is its own unit
    count: int

    @classmethod
    def of(cls, x: Floats, clusters: Sequence[Any] | None) -> _Units:
        if clusters is None:
            return cls(x, None, len(x))
        if len(clusters) != len(x):
            raise InputError(
                f"{len(clusters)} cluster names for {len(x)} values", fix="name the cluster of each value"
            )
        names: dict[Any, list[int]] = {}
        for row, name in enumerate(clusters):
            names.setdefault(name.item() if hasattr(name, "item") else name, []).append(row)
        return cls(x, [np.array(r) for r in names.values()], len(names))

    def point(self, statistic: Statistic) -> float:
        return float(self.x.mean()) if _is_mean(statistic) else _finite(statistic(self.x), "the values")  # type: ignore[operator]

    def draws(self, statistic: Statistic, resamples: int, generator: np.random.Generator) -> Floats:
        """The statistic of each resample, [resamples]."""
        out = np.empty(resamples)
        block = max(1, _BLOCK // self.count)
        for start in range(0, resamples, block):
            size = min(block, resamples - start)
            picks = generator.integers(self.count, size=(size, self.count))  # (block, units)
            if _is_mean(statistic):
                sums, sizes = self._sums()
                out[start : start + size] = sums[picks].sum(1) / sizes[picks].sum(1)
            else:
                for i, pick in enumerate(picks):
                    out[start + i] = _finite(statistic(self._take(pick)), "a resample")  # type: ignore[operator]
        return out

    def leave_one_out(self, statistic: Statistic) -> Floats:
        """The statistic without unit i, [units] (the jackknife values of BCa's acceleration)."""
        if _is_mean(statistic):
            sums, sizes = self._sums()
            return np.asarray((sums.sum() - sums) / (sizes.sum() - sizes))
        every = np.arange(self.count)
        kept = (self._take(np.delete(every, i)) for i in every)
        return np.array([_finite(statistic(rows), "the values less one unit") for rows in kept])  # type: ignore[operator]

    def _sums(self) -> tuple[Floats, Floats]:
        """Sum and number of the entries of each unit."""
        flat = self.x.reshape(len(self.x), -1)
        sums, width = flat.sum(1), float(flat.shape[1])
        if self.rows is None:
            return sums, np.full(self.count, width)
        return np.array([sums[r].sum() for r in self.rows]), np.array([width * len(r) for r in self.rows])

    def _take(self, picks: Any) -> Floats:
        if self.rows is None:
            return self.x[picks]
        return self.x[np.concatenate([self.rows[i] for i in picks])]


def _is_mean(statistic: Statistic) -> bool:
    if isinstance(statistic, str) and statistic != "mean":
        raise InputError(f"statistic is {statistic!r}", fix="give 'mean' or a function of an array")
    return statistic == "mean" or statistic is np.mean


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise InputError(
            f"the statistic is {value} on {where}", fix="give one that is defined on every resample"
        )
    return float(value)


def _bca_tails(tails: Floats, point: float, draws: Floats, jackknife: Floats) -> Floats:
    """The percentiles at which BCa reads the draws: bias z0, acceleration a (Efron 1987, eq. 6.6)."""
    from scipy.special import ndtr, ndtri

    below = ((draws < point).sum() + (draws == point).sum() / 2) / len(draws)  # ties count half
    z0 = float(ndtri(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws))))
    deviation = jackknife.mean() - jackknife
    spread = float((deviation**2).sum())
    a = 0.0 if spread == 0 else float((deviation**3).sum()) / (6 * spread**1.5)
    z = z0 + ndtri(tails)
    return np.asarray(ndtr(z0 + z / (1 - a * z)))
