"""Users: features, labels and masses, checked once at the border."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError

Floats = NDArray[np.float64]
SPREAD = 100.0


@dataclass(frozen=True)
class Users:
    """`X` float64 [n, d], `y` int [n] in 0 .. K-1, `mass` float64 [n], sum 1; identical rows are one."""

    X: Floats
    y: NDArray[np.int64]
    mass: Floats
    K: int
    given: int
    """How many rows the caller gave."""

    @classmethod
    def of(cls, X: Any, y: Any, *, mass: Any = None) -> Users:
        """Users from what a caller gave; identical rows (features and label) are weighed, not repeated.

        Raises InputError for lengths that differ, NaN or infinite rows (with their numbers), labels that are
        not 0 .. K-1, or a single class. Warns about more features than users and about unscaled features.
        """
        features, labels = _features(X), _labels(y)
        if len(features) != len(labels):
            raise InputError(f"X has {len(features)} rows and y {len(labels)}", fix="give one label per row")
        weights = _mass(mass, len(labels))
        if features.shape[1] > len(features):
            warnings.warn(
                f"{features.shape[1]} features for {len(features)} users: the Bayes loss on them is "
                "optimistic; pass a held-out split",
                stacklevel=3,
            )
        _warn_scale(features)
        rows, index = np.unique(np.column_stack([features, labels]), axis=0, return_inverse=True)
        merged = np.bincount(index.ravel(), weights=weights, minlength=len(rows))
        return cls(
            rows[:, :-1].copy(), rows[:, -1].astype(np.int64), merged, int(labels.max()) + 1, len(labels)
        )


def _features(X: Any) -> Floats:
    array = np.asarray(X.detach().cpu() if hasattr(X, "detach") else X)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"X has shape {array.shape} and type {array.dtype}", fix="give numbers of shape (users, features)"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise InputError(
            f"{len(bad)} rows of X hold NaN or infinite values: {_some(bad)}", fix="drop or repair these rows"
        )
    return array.astype(np.float64)


def _labels(y: Any) -> NDArray[np.int64]:
    array = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    whole = array.ndim == 1 and array.size and array.dtype.kind in "fiub"
    if not whole or not np.array_equal(array, np.floor(array)):
        raise InputError(
            f"y has shape {array.shape} and type {array.dtype}", fix="give one whole label per row"
        )
    labels = array.astype(np.int64)
    found, counts = np.unique(labels, return_counts=True)
    if len(found) < 2 or not np.array_equal(found, np.arange(len(found))):
        told = ", ".join(f"{label}: {count}" for label, count in list(zip(found, counts, strict=True))[:10])
        raise InputError(f"the labels are {told}", fix="give labels 0, 1, ... K-1, each at least once")
    return labels


def _mass(mass: Any, n: int) -> Floats:
    if mass is None:
        return np.full(n, 1 / n)
    weights = np.asarray(mass, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights <= 0).any():
        raise InputError("the masses are not one positive number per user", fix=f"give {n} of them")
    return weights / weights.sum()


def _warn_scale(features: Floats) -> None:
    spread = _spread(features)
    spread = spread[spread > 0]
    if len(spread) > 1 and spread.max() > SPREAD * spread.min():
        warnings.warn(
            f"the features' standard deviations span a factor {spread.max() / spread.min():.0f}; gradient "
            "search goes slowly along the small ones: use standardise(X)",
            stacklevel=4,
        )


def standardise(X: Any) -> Floats:
    """Each column with mean 0 and standard deviation 1; constant columns stay as they are."""
    features = _features(X)
    mean, spread = features.mean(0), _spread(features)
    constant = spread == 0
    return np.where(constant, features, (features - mean) / np.where(constant, 1.0, spread))


def _spread(features: Floats) -> Floats:
    """Standard deviation of each column; exactly 0 where it is constant up to rounding."""
    spread = features.std(0)
    return np.where(spread <= 1e-12 * np.abs(features).max(0), 0.0, spread)


def with_bias(X: Any) -> Floats:
    """`X` [n, d] with a column of ones appended; [n, 0] gives the column alone."""
    features = np.asarray(X, dtype=np.float64)
    return np.column_stack([features, np.ones(len(features))])


def _some(rows: Sequence[int] | Any) -> str:
    first = ", ".join(str(int(r)) for r in rows[:8])
    return first + (", ..." if len(rows) > 8 else "")
