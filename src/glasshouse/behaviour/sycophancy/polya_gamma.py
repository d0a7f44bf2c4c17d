"""Exact Polya-Gamma PG(1, c) draws, a whole array at a time (Polson, Scott, Windle 2013; Devroye 2009).

PG(1, c) = J*(1, z) / 4 with z = |c| / 2. Where z <= 1, a draw of J*(1, 0) is kept with probability
exp(-z^2 x / 2): most are kept, and J*(1, 0) itself has fixed proposals. Else Devroye's proposals for z.
Both are rejection samplers whose last test is the alternating series of the density, so both are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

T = 0.64
"""Where the left and the right expansion of the density meet (Devroye's choice)."""
_RIGHT_RATE = np.pi**2 / 8
SMALL = 1.0


def draw_pg1(c: Floats, stream: np.random.Generator) -> Floats:
    """One PG(1, c[i]) draw for every entry of `c` [N]; mean tanh(c / 2) / (2 c), 1/4 at 0."""
    z = np.abs(c) / 2
    small = z <= SMALL
    if small.all():
        return _tilted(z, stream) / 4
    out = np.empty_like(z)
    out[small] = _tilted(z[small], stream)
    out[~small] = _general(z[~small], stream)
    return out / 4


def _tilted(z: Floats, stream: np.random.Generator) -> Floats:
    """J*(1, z) from J*(1, 0), thinned by exp(-z^2 x / 2)."""
    out = np.empty_like(z)
    half, todo = z * z / 2, None
    while todo is None or todo.size:
        rate = half if todo is None else half[todo]
        x, kept = _untilted(rate.size, stream)
        kept &= stream.standard_exponential(rate.size) >= rate * x
        if todo is None:
            out[:] = x
            todo = np.flatnonzero(~kept)
        else:
            out[todo[kept]] = x[kept]
            todo = todo[~kept]
    return out


def _untilted(n: int, stream: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Proposals of J*(1, 0) [n] and which of them the series accepts."""
    from scipy.special import ndtri

    right = stream.random(n) < _RIGHT_SHARE
    x = T + stream.standard_exponential(n) / _RIGHT_RATE
    left = np.flatnonzero(~right)
    # On the left the density is that of 1 / N^2 for a standard normal N beyond 1 / sqrt(T).
    normal = ndtri(stream.random(left.size) * _BEYOND)
    x[left] = 1.0 / (normal * normal)
    return x, _series_accepts(x, stream)


def _general(z: Floats, stream: np.random.Generator) -> Floats:
    """J*(1, z) for z > 0 with Devroye's proposals."""
    out, todo = np.empty_like(z), np.arange(z.size)
    while todo.size:
        at = z[todo]
        rate = _RIGHT_RATE + at * at / 2
        right = stream.random(at.size) < _right_share(at, rate)
        x = T + stream.standard_exponential(at.size) / rate
        x[~right] = _inverse_gaussian_below(at[~right], stream)
        kept = _series_accepts(x, stream)
        out[todo[kept]] = x[kept]
        todo = todo[~kept]
    return out


def _right_share(z: Floats, rate: Floats) -> Floats:
    """Mass of the right proposal over both: p / (p + q) in the paper."""
    from scipy.special import log_ndtr

    root = np.sqrt(1 / T)
    p = np.log(np.pi / (2 * rate)) - rate * T
    q = np.logaddexp(log_ndtr(root * (T * z - 1)) - z, log_ndtr(-root * (T * z + 1)) + z) + np.log(2)
    return 1 / (1 + np.exp(q - p))


def _inverse_gaussian_below(z: Floats, stream: np.random.Generator) -> Floats:
    """Inverse Gaussian (mean 1 / z, shape 1) below T: the tilted tail for large means, else plain draws."""
    out, todo = np.empty_like(z), np.arange(z.size)
    while todo.size:
        at = z[todo]
        tail = at < 1 / T
        x = np.empty_like(at)
        kept = np.empty(at.size, bool)
        x[tail], kept[tail] = _from_tail(at[tail], stream)
        x[~tail] = inverse_gaussian(1 / at[~tail], 1.0, stream)
        kept[~tail] = x[~tail] < T
        out[todo[kept]] = x[kept]
        todo = todo[~kept]
    return out


def _from_tail(z: Floats, stream: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    from scipy.special import ndtri

    normal = ndtri(stream.random(z.size) * _BEYOND)
    x = 1.0 / (normal * normal)
    return x, stream.standard_exponential(z.size) >= z * z * x / 2


def inverse_gaussian(mean: Floats, shape: float, stream: np.random.Generator) -> Floats:
    """Inverse Gaussian draws (Michael, Schucany, Haas 1976) in a form that keeps digits for large means."""
    y = stream.standard_normal(mean.size)
    w = mean * y * y / (2 * shape)
    grown = 1 + w + np.sqrt(w * (w + 2))
    x = mean / grown
    return np.where(stream.random(mean.size) * (mean + x) <= mean, x, mean * grown)


def _series_accepts(x: Floats, stream: np.random.Generator) -> NDArray[np.bool_]:
    """Whether a uniform point below the first term a_0(x) lies below the density, by alternating sums.

    Only ratios a_n / a_0 are needed. The second term decides nearly always: the loop beyond it is for a
    few in a thousand.
    """
    u = stream.random(x.size)
    near = x <= T
    # a_1 / a_0 = 3 exp(-4 / x) left of T, 3 exp(-pi^2 x) right of it.
    exponent = np.where(near, -4.0 / x, -(np.pi**2) * x)
    partial = 1 - 3 * np.exp(exponent)
    accepted = u <= partial
    unsure, n = np.flatnonzero(~accepted), 1
    while unsure.size:
        n += 1
        power = n * (n + 1) / 2  # a_n / a_0 = (2 n + 1) r^(n (n + 1) / 2), r = exp(exponent)
        term = (2 * n + 1) * np.exp(exponent[unsure] * power)
        partial[unsure] += term if n % 2 == 0 else -term
        if n % 2 == 0:  # an upper bound: above it is rejected
            unsure = unsure[u[unsure] <= partial[unsure]]
        else:  # a lower bound: below it is accepted
            decided = u[unsure] <= partial[unsure]
            accepted[unsure[decided]] = True
            unsure = unsure[~decided]
    return accepted


def _constants() -> tuple[float, float]:
    from math import erfc, exp, pi, sqrt

    beyond = 0.5 * erfc(sqrt(1 / T) / sqrt(2))  # P(N < -1 / sqrt(T))
    left = 4 * beyond  # 2 * 2 * Phi(-1 / sqrt(T)): the mass of a_0 left of T at z = 0
    right = pi / (2 * _RIGHT_RATE) * exp(-_RIGHT_RATE * T)
    return beyond, right / (left + right)


_BEYOND, _RIGHT_SHARE = _constants()
