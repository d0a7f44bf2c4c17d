"""Gibbs sampling of a Bayesian logistic regression without intercept, on collapsed rows.

y ~ Bernoulli(sigmoid(x . alpha)),  alpha_f ~ Laplace(0, b)

omega_i ~ PG(1, x_i . alpha)                                  (Polson, Scott, Windle 2013)
1 / tau_f ~ InverseGaussian(1 / (b |alpha_f|), 1 / b^2)       (Park, Casella 2008)
alpha ~ N(P^-1 kappa, P^-1),  P = X' Omega X + diag(1 / tau),  kappa = X' (y - 1/2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.behaviour.sycophancy.polya_gamma import draw_pg1, inverse_gaussian

Floats = NDArray[np.float64]
Prior = Literal["laplace", "normal"]


@dataclass(frozen=True)
class Collapsed:
    """Distinct rows `x` [u, K] with how often they occur `count` [u] and were preferred `wins` [u].

    A pair with A and B swapped says the same, so x and -x are one row (the first non-zero entry is positive);
    rows of zeros say nothing about alpha and are left out, `n` counts the others.
    """

    x: Floats
    count: NDArray[np.int64]
    wins: NDArray[np.int64]

    @classmethod
    def of(cls, x: Floats, y: NDArray[np.int64]) -> Collapsed:
        """Collapse rows [N, K] and outcomes [N] in {0, 1}; the order of rows does not matter."""
        told = (x != 0).any(1)
        x, y = x[told], y[told]
        lead = x[np.arange(len(x)), (x != 0).argmax(1)] if len(x) else np.empty(0)
        flip = lead < 0
        distinct, inverse, count = np.unique(
            np.where(flip[:, None], -x, x), axis=0, return_inverse=True, return_counts=True
        )
        wins = np.bincount(inverse.ravel(), np.where(flip, 1 - y, y), minlength=len(count))
        return cls(np.ascontiguousarray(distinct), count, wins.astype(np.int64))

    @property
    def n(self) -> int:
        """Rows that say something."""
        return int(self.count.sum())

    @property
    def kappa(self) -> Floats:
        """X' (y - 1/2), [K]."""
        return self.x.T @ (self.wins - self.count / 2)


def sample(
    rows: Collapsed, *, b: float, prior: Prior, draws: int, warmup: int, stream: np.random.Generator
) -> Floats:
    """`draws` draws [S, K] of one chain after `warmup` sweeps, started away from the mode.

    A sweep costs one Polya-Gamma draw per row, O(u K^2) for the matrix and O(K^3) for its factor.
    """
    from scipy.linalg import cho_solve, solve_triangular

    k = rows.x.shape[1]
    kappa = rows.kappa
    repeated = bool((rows.count > 1).any())
    starts = np.concatenate([[0], rows.count.cumsum()[:-1]]) if repeated else None
    alpha = stream.normal(size=k) * b
    kept = np.empty((draws, k))
    for sweep in range(warmup + draws):
        linear = rows.x @ alpha
        if starts is None:
            omega = draw_pg1(linear, stream)
        else:  # the sum of `count` draws at the same x is all that enters
            omega = np.add.reduceat(draw_pg1(np.repeat(linear, rows.count), stream), starts)
        precision = (rows.x * omega[:, None]).T @ rows.x
        precision[np.diag_indices(k)] += _prior_precision(alpha, b, prior, stream)
        factor = np.linalg.cholesky(precision)
        noise = solve_triangular(factor, stream.standard_normal(k), lower=True, trans="T")
        alpha = cho_solve((factor, True), kappa) + noise
        if sweep >= warmup:
            kept[sweep - warmup] = alpha
    return kept


def _prior_precision(alpha: Floats, b: float, prior: Prior, stream: np.random.Generator) -> Floats:
    if prior == "normal":
        return np.full(alpha.shape, 1 / (b * b))
    # An alpha of exactly zero would ask for an infinite mean; it has probability zero and rounding floor.
    mean = 1 / (b * np.maximum(np.abs(alpha), 1e-12))
    return inverse_gaussian(mean, 1 / (b * b), stream)
