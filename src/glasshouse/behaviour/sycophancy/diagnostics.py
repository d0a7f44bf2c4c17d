"""Do the chains agree, and how many independent draws are they worth? (Vehtari, Gelman et al. 2021)"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rhat(draws: Floats) -> Floats:
    """Rank-normalised split R-hat [K] of draws [chains, S, K]: the larger of bulk and folded (eq. 14)."""
    folded = np.abs(draws - np.median(draws, axis=(0, 1)))
    return np.maximum(
        _split_rhat(_normal_scores(_halves(draws))), _split_rhat(_normal_scores(_halves(folded)))
    )


def bulk_ess(draws: Floats) -> Floats:
    """Effective number of draws [K] for the middle of the posterior, rank-normalised (section 4.3)."""
    z = _normal_scores(_halves(draws))
    return np.array([_ess(z[..., k]) for k in range(z.shape[-1])])


def _halves(draws: Floats) -> Floats:
    """Every chain as two: [2 * chains, S // 2, K]."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, draws.shape[1] - half :]])


def _normal_scores(draws: Floats) -> Floats:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    chains, length, k = draws.shape
    ranks = rankdata(draws.reshape(-1, k), axis=0)
    return ndtri((ranks - 0.375) / (chains * length + 0.25)).reshape(chains, length, k)


def _split_rhat(z: Floats) -> Floats:
    length = z.shape[1]
    within = z.var(axis=1, ddof=1).mean(0)
    between = length * z.mean(1).var(axis=0, ddof=1)
    return np.sqrt(((length - 1) / length * within + between / length) / within)


def _ess(z: Floats) -> float:
    """Geyer's initial monotone sequence over chains [M, S]."""
    chains, length = z.shape
    covariance = _autocovariance(z)  # [M, S]
    within = float((covariance[:, 0] * length / (length - 1)).mean())
    total = within * (length - 1) / length + float(z.mean(1).var(ddof=1))
    rho = 1 - (within - covariance.mean(0) * length / (length - 1)) / total
    pairs = rho[0 : length - 1 : 2] + rho[1:length:2]
    positive = np.flatnonzero(pairs <= 0)
    kept = np.minimum.accumulate(pairs[: positive[0]] if positive.size else pairs)
    tau = max(2 * float(kept.sum()) - 1, 1 / np.log10(chains * length))
    return float(chains * length / tau)


def _autocovariance(z: Floats) -> Floats:
    centred = z - z.mean(1, keepdims=True)
    length = z.shape[1]
    size = 2 ** int(np.ceil(np.log2(2 * length)))
    spectrum = np.fft.rfft(centred, size, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, size, axis=1)[:, :length] / length
