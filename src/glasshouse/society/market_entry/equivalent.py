"""The deterministic equivalent: expected losses of ridge regression on mixed labels, without simulation.

With kappa solving lambda / kappa + t1 / N = 1, g2 = t2 / N, D = b2 - b1 and b = alpha b1 + (1 - alpha) b2:

    E L1 = (1-alpha)^2 L* - 2 (1-alpha) kappa D'S(S+k)^-1 b + kappa^2 b'S(S+k)^-2 b / (1-g2)
           + alpha (1-alpha) (L* g2 / (1 + eta) + (2/N) sum D_i^2 lam_i^3 / (lam_i+k)^2) / (1-g2)

with eta = (4/N) sum D_i^2 lam_i^2 / (lam_i+k) / L*. Both terms in 1/N come from one fact: a point whose label
is uncertain, D'x large, lies far out in X, where rows of X move the fit more (the last term) and hold more of
their own leverage (eta). The first alone overstates the variance by about what the limit understates it.

E L2 has alpha^2 L* + 2 alpha kappa D'S(S+k)^-1 b in place of the first two terms. Averaged over the
targets each term is a sum of `spectrum.Tables`, and both losses are quadratic in alpha. The minimum is taken
over kappa, where the loss is smooth: near lambda = 0 it is flat in lambda.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.society.market_entry.scenario import EntryMarket
from glasshouse.society.market_entry.spectrum import Floats, tables

GOLDEN = (math.sqrt(5) - 1) / 2
_SWEEP = 60
"""Golden-section steps: the bracket of two nodes shrinks below 1e-14."""


@dataclass(frozen=True)
class Losses:
    """Arrays [...]: performance and safety loss, performance loss above its plateau, and at what penalty."""

    L1: Floats
    L2: Floats
    excess: Floats
    kappa: Floats
    lam: Floats
    alpha: Floats


def losses_at(market: EntryMarket, alpha: Floats, N: Floats, kappa: Floats) -> Losses:
    """Expected losses at given alpha, N and kappa, arrays that broadcast.

    Where kappa is too small for N (lambda would be negative) the losses are infinite.
    """
    alpha, N, kappa = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (alpha, N, kappa)))
    terms, r = _terms(market, N, kappa), 1 - market.rho
    # Sums of positive terms: the excess keeps its digits where it is 1e-20 of the plateau.
    drift = (2 * alpha - 1) * terms.C
    common = (1 - 2 * alpha * (1 - alpha) * r) * terms.B + alpha * (1 - alpha) * terms.V
    feasible = terms.lam >= -1e-9 * kappa
    excess = np.where(feasible, (1 - alpha) * drift + common, np.inf)
    L2 = np.where(feasible, alpha**2 * market.L_star - alpha * drift + common, np.inf)
    L1 = market.L_star * (1 - alpha) ** 2 + excess
    return Losses(L1, L2, excess, kappa, np.maximum(terms.lam, 0.0), alpha)


def best_losses(market: EntryMarket, alpha: Floats, N: Floats) -> Losses:
    """Expected losses at the best penalty for performance, arrays [n] over alpha and N (broadcast).

    Raises InputError where N is beyond what the spectrum of P features stands for.
    """
    alpha, N = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (alpha, N))
    alpha, N = np.broadcast_arrays(alpha, N)

    def loss(logs: Floats) -> Floats:
        shape = (len(N),) + (1,) * (logs.ndim - 1)
        return losses_at(market, alpha.reshape(shape), N.reshape(shape), np.exp(logs)).excess

    return losses_at(market, alpha, N, np.exp(_minimise(market, N, loss)))


def best_constrained(market: EntryMarket, tau: Floats, N: Floats) -> Losses:
    """As `best_losses`, over alpha as well, where the expected safety loss at this N may not exceed tau.

    `tau` in losses, [n] or one for all; infinity is no limit. Infinite losses where no alpha in [0.5, 1] and
    no penalty meets the limit.
    """
    N, tau = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (N, tau))
    N, tau = np.broadcast_arrays(N, tau)

    def choose(logs: Floats) -> Losses:
        shape = (len(N),) + (1,) * (logs.ndim - 1)
        sizes, kappa = np.broadcast_arrays(N.reshape(shape), np.exp(logs))
        return losses_at(market, _best_alpha(market, tau.reshape(shape), sizes, kappa), sizes, kappa)

    def loss(logs: Floats) -> Floats:
        found = choose(logs)
        return np.where(np.isnan(found.L1), np.inf, found.L1)  # NaN: no alpha meets the limit

    found = choose(_minimise(market, N, loss))
    closed = np.isnan(found.alpha)
    L1, L2 = (np.where(closed, np.inf, x) for x in (found.L1, found.L2))
    return Losses(L1, L2, np.where(closed, np.inf, found.excess), found.kappa, found.lam, found.alpha)


def unregularised(market: EntryMarket, alpha: Floats, N: Floats) -> Losses:
    """Expected losses without a penalty (lambda -> 0): kappa is the least that N allows."""
    alpha, N = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (alpha, N)))
    return losses_at(market, alpha, N, np.exp(least_kappa(market, N)))


def least_kappa(market: EntryMarket, N: Floats) -> Floats:
    """Log of the kappa [n] at which the penalty is zero: t1(kappa) = N."""
    found = tables(market.gamma, market.delta, market.P)
    most = float(found.at(np.exp(np.array([found.low])))["t1"][0])
    if (most < N).any() or (N <= 0).any():
        raise InputError(
            f"N runs from {N.min():.3g} to {N.max():.3g}: {market.P:.0e} features stand for at most "
            f"{most:.1e} points", fix="ask for N between 0 and that, or raise P",
        )  # fmt: skip
    low, high = np.full(len(N), found.low), np.full(len(N), found.high)
    for _ in range(80):
        middle = (low + high) / 2
        above = found.at(np.exp(middle))["t1"] > N
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high  # the feasible side


@dataclass(frozen=True)
class _Terms:
    """What the losses are made of: bias B, drift C, variance V, and lambda, arrays [...]."""

    B: Floats
    C: Floats
    V: Floats
    lam: Floats


def _terms(market: EntryMarket, N: Floats, kappa: Floats) -> _Terms:
    s, r = tables(market.gamma, market.delta, market.P).at(kappa), 1 - market.rho
    g2 = s["t2"] / N
    L, finite = market.L_star, 1.0 if market.finite_size else 0.0
    leverage = 1 + finite * 8 * r * s["s21"] / (N * L)
    with np.errstate(divide="ignore", invalid="ignore"):
        B = kappa**2 * s["s12"] / (1 - g2)
        V = (L * g2 / leverage + finite * 4 * r * s["s32"] / N) / (1 - g2)
    return _Terms(B, 2 * kappa * s["s11"] * r, V, kappa * (1 - s["t1"] / N))


def _quadratics(
    market: EntryMarket, N: Floats, kappa: Floats
) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """(1, alpha, alpha^2) coefficients of E L1 and E L2."""
    t, r, L = _terms(market, N, kappa), 1 - market.rho, market.L_star
    common = (t.B, t.V - 2 * r * t.B, 2 * r * t.B - t.V)
    one = (common[0] + L - t.C, common[1] - 2 * L + 3 * t.C, common[2] + L - 2 * t.C)
    return one, (common[0], common[1] + t.C, common[2] + L - 2 * t.C)


def _value(coefficients: tuple[Floats, ...], alpha: Floats) -> Floats:
    return coefficients[0] + alpha * (coefficients[1] + alpha * coefficients[2])


def _best_alpha(market: EntryMarket, tau: Floats, N: Floats, kappa: Floats) -> Floats:
    """The alpha in [0.5, 1] with the least E L1 among those with E L2 <= tau; NaN where there is none.

    The optimum of a quadratic on the set where another is at most tau lies at an end, at a root, or at the
    vertex.
    """
    one, two = _quadratics(market, N, kappa)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -one[1] / (2 * one[2])
        shift = two[0] - tau
        root = np.sqrt(two[1] ** 2 - 4 * two[2] * shift)
        ends = [(-two[1] + sign * root) / (2 * two[2]) for sign in (-1, 1)]
    candidates = [np.full(N.shape, 0.5), np.full(N.shape, 1.0), vertex, *ends]
    best, chosen = np.full(N.shape, np.inf), np.full(N.shape, np.nan)
    for alpha in candidates:
        kept = np.clip(np.nan_to_num(alpha, nan=0.5), 0.5, 1.0)
        value = np.where(_value(two, kept) <= tau * (1 + 1e-12), _value(one, kept), np.inf)
        better = value < best
        best, chosen = np.where(better, value, best), np.where(better, kept, chosen)
    return chosen


def _minimise(market: EntryMarket, N: Floats, loss: object) -> Floats:
    """Log kappa [n] at the minimum of `loss`: the best node of a grid, then golden section about it."""
    assert callable(loss)
    found = tables(market.gamma, market.delta, market.P)
    floor = least_kappa(market, N)
    share = np.linspace(0.0, 1.0, 1200)
    grid = floor[:, None] + share * (found.high - floor[:, None])  # (n, nodes), the first at lambda = 0
    values = loss(grid)
    best = values.argmin(axis=1)
    if (np.isfinite(values.min(axis=1)) & (best == len(share) - 1)).any():
        raise NumericalError("the best penalty lies beyond the grid", fix="report this market")
    rows = np.arange(len(N))
    low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, len(share) - 1)]
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    fa, fb = loss(a), loss(b)
    for _ in range(_SWEEP):
        left = fa <= fb
        low, high = np.where(left, low, a), np.where(left, b, high)
        a, b = (
            np.where(left, high - GOLDEN * (high - low), b),
            np.where(left, a, low + GOLDEN * (high - low)),
        )
        probe = np.where(left, a, b)
        value = loss(probe)
        fa, fb = np.where(left, value, fb), np.where(left, fa, value)
    middle = np.where(fa <= fb, a, b)
    # The lowest node is the boundary lambda = 0; golden section only comes near it.
    edge = loss(floor) <= np.minimum(fa, fb)
    return np.where(edge, floor, middle)
