"""Closed forms: the quality that learning can induce at most, symmetric profiles, thresholds, criteria."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society.content_incentives.costs import Floats, cost_of

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.scenario import ContentMarket

ENUMERATE_UP_TO = 8
"""User types up to which every grouping is tried; above, groups are improved from many starts."""


def pull(market: ContentMarket) -> Floats:
    """Sum over s > t of beta^(s-t) eta_s, for t = 1 .. T, [T]: what later rounds reward in round t."""
    out = np.zeros(market.T)
    for t in range(market.T - 2, -1, -1):
        out[t] = market.beta * (market.rates[t + 1] + out[t + 1])
    return out


def upper_bound(market: ContentMarket) -> Floats:
    """Quality that no producer exceeds in any Nash equilibrium, pure or mixed, [T] (paper, section 3).

    Dropping content of quality q in round t saves cost(q) and lowers exposure in a later round s by at most
    eta_s q / 4, the steepest slope of a softmax: cost(q) <= q pull_t / 4. EXP3's bound carries a factor P.
    Raises InputError for rules that do not learn, and for c = 1, where the bound is vacuous.
    """
    if market.algo not in ("hedge", "exp3"):
        raise InputError(f"there is no such bound for {market.algo!r}", fix="ask it of 'hedge' or 'exp3'")
    factor = market.P if market.algo == "exp3" else 1
    most = factor * pull(market) / 4
    if market.cost_curve is None:
        if market.c == 1:
            raise InputError("c = 1: the exponent 1/(c-1) is undefined", fix="give c > 1")
        return np.asarray(most ** (1 / (market.c - 1)))
    return _largest_affordable(market, most)


def symmetric_foc(market: ContentMarket) -> Floats:
    """Quality [T] at which no producer gains by a small change when all do the same (Hedge, D = 1).

    A candidate only: for large learning rates it is no equilibrium, which `solve` certifies.
    """
    if market.algo != "hedge" or market.users is not None:
        raise InputError("the closed form is for Hedge with one-dimensional quality")
    share = 1 / market.P
    return np.asarray(cost_of(market).quality_at_slope(share * (1 - share) * pull(market)))


def steady_quality(P: int, beta: float, c: float, eta: float) -> float:
    """The symmetric profile far from the end for a constant learning rate."""
    return float((eta / (c * P) * (1 - 1 / P) * beta / (1 - beta)) ** (1 / (c - 1)))


def punish_threshold(P: int, beta: float, c: float, eps: float = 0.01) -> float:
    """q* = (beta / P)^(1/c) (1 - eps): what a punishing platform can demand."""
    return float((beta / P) ** (1 / c) * (1 - eps))


def break_even(market: ContentMarket) -> float:
    """The quality whose cost is worth next round's exposure, beta / P."""
    return float(cost_of(market).quality(market.beta / market.P))


def threshold(market: ContentMarket) -> float:
    """The quality that a punishing platform demands: `q`, or the largest that pays, times 1 - eps."""
    return market.q if market.q is not None else break_even(market) * (1 - market.eps)


def direction(market: ContentMarket) -> Floats:
    """G = E[u] / |E[u]| [D], along which content is measured."""
    mean = market.shares @ market.U
    return np.asarray(mean / np.linalg.norm(mean))


def direction_welfare(market: ContentMarket) -> float:
    """Users' utility per round when all comply along the mean direction: q |E u|."""
    return threshold(market) * float(np.linalg.norm(market.shares @ market.U))


def switch_angle(c: float) -> float:
    """Angle in degrees between two equally many users above which two producers should specialise."""
    return math.degrees(2 * math.acos(2 ** (-1 / c)))


def criteria_of(market: ContentMarket) -> Floats:
    """What each producer must give, [P, D]: the market's own, or the best times 1 - eps."""
    if market.criteria is not None:
        return np.array(market.criteria, dtype=np.float64)
    return optimal_criteria(market)[0] * (1 - market.eps)


def optimal_criteria(market: ContentMarket) -> tuple[Floats, float]:
    """Criteria [P, D] that maximise E max_j <u, p_j> with cost(|p_j|) <= beta P[j serves u]; their welfare.

    Users are grouped; a group's producer can afford length r(share) and is best aimed at the group's weighted
    sum. All groupings up to 8 user types, above that the best of many greedy improvements (a heuristic).
    A producer without a group gets zero. Raises InputError where no grouping is consistent with the argmax.
    """
    U, shares, cost = market.U, market.shares, cost_of(market)
    best: tuple[float, Floats] | None = None
    for labels in _groupings(market):
        p = _aimed(U, shares, labels, market.P, lambda share: float(cost.quality(market.beta * share)))
        served = (p @ U.T).argmax(0)
        value = float(((p @ U.T).max(0)) @ shares)
        # A user who prefers another group's content would change who pays for what.
        kept = (p @ U.T)[labels, np.arange(len(U))] >= (p @ U.T)[served, np.arange(len(U))] - 1e-12
        if kept.all() and (best is None or value > best[0] + 1e-15):
            best = value, p
    if best is None:
        raise InputError("no grouping of the users is consistent with whom they prefer")
    return best[1], best[0]


def _aimed(U: Floats, shares: Floats, labels: np.ndarray, P: int, length: object) -> Floats:
    assert callable(length)
    p = np.zeros((P, U.shape[1]))
    for j in np.unique(labels):
        mine = labels == j
        aim = shares[mine] @ U[mine]
        p[j] = length(float(shares[mine].sum())) * aim / np.linalg.norm(aim)
    return p


def _groupings(market: ContentMarket) -> Iterator[np.ndarray]:
    n = len(market.U)
    if n <= ENUMERATE_UP_TO:
        yield from _partitions(n, market.P)
        return
    from glasshouse.runtime.seeds import rng

    generator = rng(0, "groupings")
    for start in range(60):
        groups = 1 + start % min(market.P, n)
        centres = market.U[generator.choice(n, groups, replace=False)]
        labels = (centres @ market.U.T).argmax(0)
        for _ in range(50):
            p = _aimed(market.U, market.shares, labels, market.P, lambda share: share ** (1 / market.c))
            moved = (p @ market.U.T).argmax(0)
            if (moved == labels).all():
                break
            labels = moved
        yield labels


def _partitions(n: int, most: int) -> Iterator[np.ndarray]:
    """Every way to put n users into at most `most` groups, each once (restricted growth strings)."""

    def grow(labels: list[int], used: int) -> Iterator[np.ndarray]:
        if len(labels) == n:
            yield np.array(labels)
            return
        for j in range(min(used + 1, most)):
            yield from grow([*labels, j], max(used, j + 1))

    return grow([], 0)


def _largest_affordable(market: ContentMarket, most: Floats) -> Floats:
    """The largest q with cost(q) <= q * most, [T], by bisection (cost is convex: the set is an interval)."""
    cost = cost_of(market)
    low, high = np.zeros(len(most)), np.full(len(most), 1.0)
    for _ in range(60):
        growing = cost.value(high) <= high * most
        high = np.where(growing, 2 * high, high)
        if not growing.any():
            break
    for _ in range(100):
        middle = (low + high) / 2
        fits = cost.value(middle) <= middle * most
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return high
