"""What a platform recommends, given everybody's content; and what producers and users get from it.

Scores of learning rules are cumulative sums, so exposures of all rounds come from one pass without a loop
over rounds. EXP3's scores depend on its own draws: see `exp3`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society.content_incentives.costs import Floats, cost_of

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.scenario import ContentMarket

SLACK = 1e-9
"""How far below a threshold content may fall and still comply (rounding)."""


def exposures(market: ContentMarket, p: Floats) -> Floats:
    """Probability that producer j is recommended to user u in round t: [P, T, n], for content p [P, T, D]."""
    utility = content_utility(market, p)
    if market.algo == "uniform":
        return np.full(utility.shape, 1 / len(p))
    if market.algo == "static-contest":
        return _softmax(market.rates[None, :, None] * utility)
    if market.algo == "exp3":
        raise InputError("EXP3's exposures are random", fix="use exp3_exposures")
    scores = np.cumsum(utility, axis=1) - utility  # what was shown before round t
    if market.algo == "hedge":
        return _softmax(market.rates[None, :, None] * scores)
    if market.algo == "follow-the-leader":
        return _leaders(scores)
    active = active_set(market, p)[:, :, None]  # (P, T, 1)
    if market.algo == "punish-user-utility":
        from glasshouse.society.content_incentives.theory import criteria_of

        promised = (criteria_of(market) @ market.U.T)[:, None, :]
        return _within(active, _leaders(np.where(active, promised, -np.inf)))
    return _within(active, _softmax(np.where(active, market.rates[None, :, None] * scores, -np.inf)))


def active_set(market: ContentMarket, p: Floats) -> np.ndarray:
    """Who may still be recommended in round t, bool [P, T]: those who complied in all rounds before."""
    complied = complies(market, p)
    before = np.ones_like(complied)
    before[:, 1:] = np.logical_and.accumulate(complied[:, :-1], axis=1)
    return before


def complies(market: ContentMarket, p: Floats) -> np.ndarray:
    """Whether content meets the platform's threshold in each round, bool [P, T]."""
    from glasshouse.society.content_incentives.theory import criteria_of, direction, threshold

    if market.algo == "punish-user-utility":
        promised = criteria_of(market) @ market.U.T  # (P, n)
        return np.asarray((content_utility(market, p) >= promised[:, None, :] - SLACK).all(-1))
    return np.asarray(p @ direction(market) >= threshold(market) - SLACK)


def content_utility(market: ContentMarket, p: Floats) -> Floats:
    """<u, p_j^t> [P, T, n]."""
    return np.asarray(p @ market.U.T)


def utilities(market: ContentMarket, p: Floats, x: Floats) -> Floats:
    """Discounted earnings less costs of each producer [P], for exposures x [P, T, n]."""
    weights = market.beta ** np.arange(1, market.T + 1)
    earned = x @ market.shares - cost_of(market).value(np.linalg.norm(p, axis=-1))
    return np.asarray(earned @ weights)


def welfare(market: ContentMarket, p: Floats, x: Floats) -> Floats:
    """Users' expected utility in each round [T]."""
    return np.asarray((x * content_utility(market, p)).sum(0) @ market.shares)


def regret(market: ContentMarket, p: Floats, x: Floats) -> float:
    """What the best fixed producer would have given users over all rounds, less what they got (undiscounted).

    Per user, then averaged: the platform may personalise. This is its own metric, on fixed content.
    """
    utility = content_utility(market, p)
    best = utility.sum(1).max(0)  # (n,)
    return float((best - (x * utility).sum((0, 1))) @ market.shares)


def _softmax(logits: Floats) -> Floats:
    """Over producers (axis 0); columns that are all -inf become NaN and are replaced by the caller."""
    top = logits.max(0)
    with np.errstate(invalid="ignore"):
        e = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
        return np.asarray(e / e.sum(0))


def _leaders(scores: Floats) -> Floats:
    top = scores.max(0)
    best = scores >= top - 1e-12 * (1 + np.abs(np.where(np.isfinite(top), top, 0.0)))
    return np.asarray(best / best.sum(0))


def _within(active: np.ndarray, x: Floats) -> Floats:
    """X among the active; uniform over all where nobody is."""
    return np.where(active.any(0), np.where(active, x, 0.0), 1 / len(x))
