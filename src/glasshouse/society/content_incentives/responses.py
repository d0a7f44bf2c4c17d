"""Best responses: what one producer would do against the others' committed content.

One-dimensional quality under a learning or punishing rule is solved globally, by backward dynamic programming
over the producer's own cumulative score in current-value form (so that round 1000 counts as round 1 does),
then polished on the first-order condition. More dimensions are searched from many starts by L-BFGS-B. Both
add structured deviations: nothing in one round, nothing from some round on, everything scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.society.content_incentives.costs import Cost, Floats, cost_of
from glasshouse.society.content_incentives.platforms import active_set, exposures, utilities

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.scenario import ContentMarket

SCORES, QUALITIES = 400, 48
"""Nodes of the score grid, and of the quality grid, of the dynamic programme."""
_POLISH = 200


@dataclass(frozen=True)
class Response:
    """The best content found [T, D], its utility, and how it was searched."""

    p: Floats
    utility: float
    method: str


def best_response(market: ContentMarket, p: Floats, j: int, *, starts: int = 4, seed: int = 0) -> Response:
    """The best deviation of producer j from the profile p [P, T, D] that the search finds."""
    candidates: list[Floats] = [p[j]]
    if market.algo in ("uniform",):
        candidates.append(np.zeros_like(p[j]))
        method = "closed form: exposure does not depend on content"
    elif market.algo == "punish-user-utility":
        candidates += _quitting(market, j)
        method = "every round of quitting (content above the criterion earns nothing)"
    elif market.algo in ("hedge", "punish-hedge", "punish-direction") and _one_dimensional(market):
        path = _dynamic_programme(market, p, j)
        candidates = [*_polished(market, p, j, [path, p[j], np.zeros_like(path)]), *candidates, path]
        method = f"dynamic programme ({SCORES} x {QUALITIES}) and first-order polish"
    else:
        candidates += _many_starts(market, p, j, starts, seed)
        method = f"L-BFGS-B from {starts + 3} starts"
    candidates += _structured(market, p[j])
    values = [_utility(market, p, j, one) for one in candidates]
    # Late rounds weigh beta^t and vanish in the sum: among equals take the first, which is stationary in all.
    best = int(np.argmax(np.array(values) >= max(values) - 1e-12))
    return Response(candidates[best], values[best], method + ", structured deviations")


def _one_dimensional(market: ContentMarket) -> bool:
    """Whether content is a number: one user type, or content measured along one direction."""
    return market.users is None or market.algo == "punish-direction"


def _utility(market: ContentMarket, p: Floats, j: int, mine: Floats) -> float:
    changed = p.copy()
    changed[j] = mine
    return float(utilities(market, changed, exposures(market, changed))[j])


def _axis(market: ContentMarket) -> Floats:
    """The direction [D] along which one-dimensional content points."""
    from glasshouse.society.content_incentives.theory import direction

    return direction(market) if market.users is not None else np.ones(1)


# ── one dimension: dynamic programme ──


@dataclass(frozen=True)
class _Rivals:
    """What producer j faces: log-sum of rivals' weights [T] (-inf: nobody), whether nobody is active [T]."""

    log_weight: Floats
    nobody: np.ndarray


def _rivals(market: ContentMarket, p: Floats, j: int) -> _Rivals:
    shown = np.delete(p, j, axis=0) @ _gain(market)  # (P - 1, T)
    scores = np.cumsum(shown, axis=1) - shown
    logits = market.rates[None] * scores
    if market.algo.startswith("punish"):
        logits = np.where(np.delete(active_set(market, p), j, axis=0), logits, -np.inf)
    top = logits.max(0)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = safe + np.log(np.exp(logits - safe).sum(0))
    return _Rivals(total, ~np.isfinite(top))


def _gain(market: ContentMarket) -> Floats:
    """How much score one unit of content earns, as a vector [D]: the mean user's direction."""
    return market.shares @ market.U


def _exposure(rates: Floats, scores: Floats, rivals: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(rates * scores - rivals))


def _dynamic_programme(market: ContentMarket, p: Floats, j: int) -> Floats:
    """The path [T, D] of the policy that is optimal on the grid."""
    from glasshouse.society.content_incentives.theory import threshold

    cost, rivals, beta, T = cost_of(market), _rivals(market, p, j), market.beta, market.T
    axis = _axis(market)
    unit = float(_gain(market) @ axis)  # score per unit of quality
    most = float(cost.quality(beta / (1 - beta)))  # more than all that exposure can ever pay
    floor = threshold(market) if market.algo.startswith("punish") else 0.0
    q = np.concatenate([[floor], floor + np.geomspace(1e-3, 1.0, QUALITIES - 1) * max(most - floor, 1e-6)])
    paid = cost.value(q)
    span = _largest_score(market, rivals, most * unit)
    grid = np.linspace(0.0, span, SCORES)
    landing = np.minimum(grid[:, None] + unit * q[None], span) / (grid[1] - grid[0])
    left = np.minimum(landing.astype(int), SCORES - 2)
    share = landing - left
    leave = _value_outside(market, rivals) if floor else None
    value, choice = np.zeros(SCORES), np.zeros((T, SCORES), dtype=int)  # choice -1: stop complying
    for t in range(T - 1, -1, -1):
        onward = beta * (value[left] * (1 - share) + value[left + 1] * share) - paid  # (scores, qualities)
        choice[t] = onward.argmax(1)
        best = onward[np.arange(SCORES), choice[t]]
        if leave is not None:
            outside = beta * leave[t + 1]
            choice[t] = np.where(outside > best, -1, choice[t])
            best = np.maximum(best, outside)
        seen = _exposure(market.rates[t], grid, rivals.log_weight[t])
        value = np.where(rivals.nobody[t], 1.0, seen) + best
    return _walk(choice, q, grid, unit)[:, None] * axis


def _largest_score(market: ContentMarket, rivals: _Rivals, most: float) -> float:
    """Beyond this score exposure is 1 in every round."""
    rates = np.maximum(market.rates, 1e-300)
    saturated = float(np.max((np.where(rivals.nobody, 0.0, rivals.log_weight) + 14) / rates))
    return max(min(market.T * most, max(saturated, most)), 1e-9)


def _value_outside(market: ContentMarket, rivals: _Rivals) -> Floats:
    """Current value [T + 1] of no longer being active: a share where nobody is left."""
    out = np.zeros(market.T + 1)
    for t in range(market.T - 1, -1, -1):
        out[t] = rivals.nobody[t] / market.P + market.beta * out[t + 1]
    return out


def _walk(choice: np.ndarray, q: Floats, grid: Floats, unit: float) -> Floats:
    path, score = np.zeros(len(choice)), 0.0
    for t, best in enumerate(choice):
        k = int(best[min(round(score / (grid[1] - grid[0])), len(grid) - 1)])
        if k < 0:
            break  # out: nothing more
        path[t] = q[k]
        score += unit * q[k]
    return path


def _polished(market: ContentMarket, p: Floats, j: int, paths: list[Floats]) -> list[Floats]:
    """Each path moved to a point of the first-order condition, in current values, above the threshold."""
    from glasshouse.society.content_incentives.theory import threshold

    cost, rivals, axis = cost_of(market), _rivals(market, p, j), _axis(market)
    unit = float(_gain(market) @ axis)
    floor = threshold(market) if market.algo.startswith("punish") else 0.0
    out = []
    for path in paths:
        q = path @ axis
        keeps = np.flatnonzero(q < floor - 1e-9)
        last = (
            int(keeps[0]) if floor and len(keeps) else market.T
        )  # rounds from here on are not complied with
        if last == 0:
            continue
        out.append(_stationary(market, cost, rivals, q, unit, floor, last)[:, None] * axis)
    return out


def _stationary(
    market: ContentMarket, cost: Cost, rivals: _Rivals, q: Floats, unit: float, floor: float, last: int
) -> Floats:
    """Marginal cost(q_t) = unit * sum over s > t of beta^(s-t) eta_s x_s (1 - x_s), by damped iteration."""
    from scipy.signal import lfilter

    damping, before = 1.0, np.inf
    inside = np.arange(market.T) < last
    q = np.where(inside, np.maximum(q, floor), 0.0)
    for _ in range(_POLISH):
        x = _exposure(market.rates, unit * (np.cumsum(q) - q), rivals.log_weight)
        x = np.where(rivals.nobody, 1.0, x)
        gain = market.rates * x * (1 - x) * unit * (np.arange(market.T) <= last)
        # a_t = beta (gain_{t+1} + a_{t+1}): a first-order filter run backwards.
        later = np.append(lfilter([market.beta], [1, -market.beta], gain[::-1])[::-1][1:], 0.0)
        wanted = np.where(inside, np.maximum(cost.quality_at_slope(later), floor), 0.0)
        step = float(np.max(np.abs(wanted - q)))
        if step < 1e-12:
            break
        damping = damping if step < before else max(damping / 2, 0.05)
        before = step
        q = q + damping * (wanted - q)
    return q


# ── any dimension ──


def _many_starts(market: ContentMarket, p: Floats, j: int, starts: int, seed: int) -> list[Floats]:
    """Local optima [T, D] from the present content, nothing, an early burst, and random content."""
    from scipy.optimize import minimize

    from glasshouse.runtime.seeds import rng

    generator = rng(seed, "starts", j)
    T, D = p.shape[1:]
    scale = float(cost_of(market).quality(market.beta / market.P))
    burst = np.zeros((T, D))
    burst[: max(1, T // 5)] = scale * _axis(market) if market.users is not None else scale
    toward = [np.tile(scale * user, (T, 1)) for user in market.U[: starts // 2]]
    random = [scale * generator.random((T, D)) for _ in range(starts - len(toward))]
    smooth = market.algo in ("hedge", "static-contest")
    objective = _with_gradient(market, p, j) if smooth else _without(market, p, j)
    out = []
    for start in (p[j], np.full((T, D), 1e-3), burst, *toward, *random):
        found = minimize(
            objective, start.ravel(), jac=smooth, method="L-BFGS-B" if smooth else "Powell",
            bounds=[(0.0, None if smooth else 3 * scale)] * (T * D),
            options={"maxiter": 200 if smooth else 2},
        )  # fmt: skip
        out.append(np.maximum(found.x.reshape(T, D), 0.0))
    return out


def _without(market: ContentMarket, p: Floats, j: int) -> Callable[[Floats], float]:
    return lambda flat: -_utility(market, p, j, flat.reshape(p.shape[1:]))


def _with_gradient(market: ContentMarket, p: Floats, j: int) -> Callable[[Floats], tuple[float, Floats]]:
    """-U_j and its gradient for Hedge, and for the one-shot contest."""
    U, shares, beta, rates = market.U, market.shares, market.beta, market.rates
    weights = beta ** np.arange(1, market.T + 1)
    others = np.delete(p, j, axis=0) @ U.T  # (P - 1, T, n)
    learns = market.algo == "hedge"
    scores = np.cumsum(others, axis=1) - others if learns else others
    logits = rates[None, :, None] * scores
    top = logits.max(0)
    rival = top + np.log(np.exp(logits - top).sum(0))  # (T, n)
    cost = cost_of(market)

    def objective(flat: Floats) -> tuple[float, Floats]:
        mine = flat.reshape(p.shape[1:])
        shown = mine @ U.T
        score = np.cumsum(shown, axis=0) - shown if learns else shown
        x = _exposure(rates[:, None], score, rival)
        length = np.linalg.norm(mine, axis=1)
        value = float(weights @ (x @ shares - cost.value(length)))
        pull = weights[:, None] * rates[:, None] * x * (1 - x) * shares  # (T, n)
        if learns:
            pull = np.cumsum(pull[::-1], axis=0)[::-1] - pull  # rounds after t
        unit = mine / np.maximum(length, 1e-12)[:, None]
        gradient = pull @ U - (weights * cost.slope(length))[:, None] * unit
        return -value, -gradient.ravel()

    return objective


def _quitting(market: ContentMarket, j: int) -> list[Floats]:
    """Meeting the criterion until some round, then nothing."""
    from glasshouse.society.content_incentives.theory import criteria_of

    promised = criteria_of(market)[j]
    rounds = np.arange(market.T)[:, None]
    return [np.where(rounds < last, promised, 0.0) for last in range(market.T + 1)]


def _structured(market: ContentMarket, mine: Floats) -> list[Floats]:
    """Nothing in one round, nothing from a round on (at most 60 rounds of each), and everything scaled."""
    T = len(mine)
    at = np.unique(np.linspace(0, T - 1, min(T, 60)).astype(int))
    rounds = np.arange(T)[:, None]
    out: list[Any] = [np.where(rounds == t, 0.0, mine) for t in at]
    out += [np.where(rounds >= t, 0.0, mine) for t in at]
    return out + [a * mine for a in (0.5, 0.9, 0.99, 1.01, 1.1, 1.5, 2.0)]
