"""Anomaly detectors on arrays: fit on ordinary rows [N, D], score any rows; higher means more anomalous.

Scores of the rows a detector was fitted on are too low; hold rows out for a threshold or a null.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._validate import Floats, floats


class Detector(Protocol):
    """What every detector offers."""

    def fit(self, rows: Any) -> Detector:
        """Learn what is ordinary from rows [N, D] and return self."""
        ...

    def score(self, rows: Any) -> Floats:
        """Scores [M] of rows [M, D]."""
        ...


class _Gaussian:
    mean_: Floats

    def _centred(self, rows: Any) -> Floats:
        if not hasattr(self, "mean_"):
            raise InputError(f"{type(self).__name__} was not fitted", fix="call fit(rows) first")
        x = floats(rows, name="rows", ndim=2)
        if x.shape[1] != self.mean_.size:
            raise InputError(
                f"rows have {x.shape[1]} columns, the fit had {self.mean_.size}", fix="read the same sites"
            )
        return x - self.mean_


class Mahalanobis(_Gaussian):
    """Distance from the mean in units of the covariance (Mahalanobis 1936; Lee et al. 2018 for networks).

    `shrinkage` mixes the covariance with its mean variance times the identity: a share in [0, 1], or
    "auto" for that of Ledoit and Wolf (2004). Directions without any variance are refused unless shrunk.
    """

    def __init__(self, *, shrinkage: float | Literal["auto"] = "auto") -> None:
        self.shrinkage = shrinkage

    def fit(self, rows: Any) -> Mahalanobis:
        """Learn mean_ [D], covariance_ [D, D] and shrinkage_ from rows [N, D], N >= 2."""
        x = _training_rows(rows, least=2)
        self.mean_ = x.mean(0)
        self.shrinkage_ = self._share(x)
        centred = x - self.mean_
        covariance = centred.T @ centred / len(x)
        target = np.trace(covariance) / x.shape[1] * np.eye(x.shape[1])
        self.covariance_ = (1 - self.shrinkage_) * covariance + self.shrinkage_ * target
        try:
            self._factor = np.linalg.cholesky(self.covariance_)
        except np.linalg.LinAlgError:
            raise InputError(
                f"the covariance of {len(x)} rows in {x.shape[1]} columns is singular",
                fix="give more rows, drop constant columns, or set shrinkage above 0",
            ) from None
        return self

    def score(self, rows: Any) -> Floats:
        """Mahalanobis distance [M] of rows [M, D]."""
        centred = self._centred(rows)
        return np.asarray(np.linalg.norm(np.linalg.solve(self._factor, centred.T), axis=0))

    def _share(self, x: Floats) -> float:
        if self.shrinkage == "auto":
            from sklearn.covariance import ledoit_wolf_shrinkage

            return float(ledoit_wolf_shrinkage(x))
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"shrinkage is {self.shrinkage}", fix="give a share in [0, 1] or 'auto'")
        return float(self.shrinkage)


class DiagonalGaussian(_Gaussian):
    """Negative log-likelihood under independent normal columns, in nats.

    `floor` is the least variance, as a share of the mean variance over columns.
    """

    def __init__(self, *, floor: float = 1e-6) -> None:
        self.floor = floor

    def fit(self, rows: Any) -> DiagonalGaussian:
        """Learn mean_ and variance_ [D] from rows [N, D], N >= 2."""
        x = _training_rows(rows, least=2)
        variance = x.var(0)
        if variance.mean() == 0:
            raise InputError("all rows are equal", fix="give rows that differ")
        self.mean_, self.variance_ = x.mean(0), np.maximum(variance, self.floor * variance.mean())
        return self

    def score(self, rows: Any) -> Floats:
        """-log p [M] of rows [M, D]."""
        squares = self._centred(rows) ** 2 / self.variance_
        return np.asarray((squares + np.log(2 * np.pi * self.variance_)).sum(1) / 2)


class KNNDistance:
    """Mean Euclidean distance to the `k` nearest fitted rows (Ramaswamy et al. 2000; Sun et al. 2022)."""

    def __init__(self, *, k: int = 5) -> None:
        self.k = k

    def fit(self, rows: Any) -> KNNDistance:
        """Keep rows_ [N, D], N >= k."""
        if self.k < 1:
            raise InputError(f"k is {self.k}", fix="give k >= 1")
        self.rows_ = _training_rows(rows, least=self.k)
        return self

    def score(self, rows: Any) -> Floats:
        """Distances [M] of rows [M, D]; exact, by a tree in few columns and by brute force in many."""
        from sklearn.neighbors import NearestNeighbors

        if not hasattr(self, "rows_"):
            raise InputError("KNNDistance was not fitted", fix="call fit(rows) first")
        x = floats(rows, name="rows", ndim=2)
        if x.shape[1] != self.rows_.shape[1]:
            raise InputError(
                f"rows have {x.shape[1]} columns, the fit had {self.rows_.shape[1]}",
                fix="read the same sites",
            )
        if len(x) == 0:
            return np.zeros(0)
        distances, _ = NearestNeighbors(n_neighbors=self.k).fit(self.rows_).kneighbors(x)
        return np.asarray(distances.mean(1))


def _training_rows(rows: Any, *, least: int) -> Floats:
    x = floats(rows, name="rows", ndim=2)
    if len(x) < least or x.shape[1] == 0:
        raise InputError(
            f"rows have shape {x.shape}", fix=f"give at least {least} rows of one column or more"
        )
    return x
