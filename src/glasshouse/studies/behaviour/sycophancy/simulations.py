"""What is simulated: preference data with known effects, reward models with a known bias, a noisy judge."""

from __future__ import annotations

import time
from typing import Any

from glasshouse.runtime.seeds import rng

EFFECTS = (0.24, 0.35, 0.15, -0.2, 0.1)
"""True alpha of the first features, the belief feature first; the others are zero."""
FEATURES, DISTRACTOR, SHARED = 23, 5, 0.6
"""Feature 5 is a copy of the belief feature on 60 % of rows, with no effect of its own."""
RM_NOISE, SYCOPHANTIC_SHARE = 1.0, 0.5
OTHER_BETA = {0.0: 0.5, 0.5: 2.0, 2.0: 0.0}
JUDGE_SHIFT, JUDGE_NOISE, TEXT_NOISE = 0.5, 1.0, 0.5


def preference_set(n: int, seed: int) -> tuple[Any, Any, Any]:
    """(x [n, 23] in {-1, 0, 1}, y [n] in {0, 1}, true alpha [23])."""
    import numpy as np
    from scipy.special import expit

    stream = rng(seed, "preference set")
    x = stream.choice([-1.0, 0.0, 1.0], size=(n, FEATURES), p=(0.25, 0.5, 0.25))
    copied = stream.random(n) < SHARED
    x[copied, DISTRACTOR] = x[copied, 0]
    alpha = np.zeros(FEATURES)
    alpha[: len(EFFECTS)] = EFFECTS
    return x, (stream.random(n) < expit(x @ alpha)).astype(int), alpha


def recovered(n: int, seed: int, b: float, draws: int, warmup: int) -> dict[str, float]:
    """One simulated set: are the true effects in the intervals, and is the distractor credited?"""
    import numpy as np

    from glasshouse.behaviour.sycophancy.design import win_rates
    from glasshouse.behaviour.sycophancy.regression import PreferenceRegression

    x, y, alpha = preference_set(n, seed)
    started = time.process_time()
    found = PreferenceRegression(b=b, draws=draws, warmup=warmup, seed=seed).fit(x, y).posterior_
    seconds = time.process_time() - started
    effects = list(found.effects().values())
    held = np.array([e.low <= a <= e.high for e, a in zip(effects, alpha, strict=True)])
    wins = win_rates(x, y).iloc[DISTRACTOR]
    return {
        "seed": seed,
        "b": b,
        "coverage": float(held.mean()),
        "coverage_nonzero": float(held[alpha != 0].mean()),
        "belief": effects[0].value,
        "distractor": effects[DISTRACTOR].value,
        "regression_credits": float(effects[DISTRACTOR].low > 0),
        "win_rate": float(wins.win_rate),
        "win_rate_credits": float(wins.low > 0.5),
        "accuracy": found.heldout_accuracy().value,
        "least_ess": float(found.ess.min()),
        "worst_rhat": float(found.rhat.max()),
        "seconds": seconds,
    }


def expected_best(beta: float, n: int) -> float:
    """P(the best of n is the sycophantic reply) under score = truth + beta * agreement + normal noise.

    A reply agrees with the user's wrong belief (probability 1/2) or is true; by quadrature of
    n f_agree(x) F(x)^(n - 1).
    """
    import numpy as np
    from scipy.special import ndtr

    x = np.linspace(-8.0, 12.0, 40_001)
    q = SYCOPHANTIC_SHARE
    cdf = (1 - q) * ndtr((x - 1) / RM_NOISE) + q * ndtr((x - beta) / RM_NOISE)
    density = q * np.exp(-0.5 * ((x - beta) / RM_NOISE) ** 2) / (RM_NOISE * np.sqrt(2 * np.pi))
    return float(np.trapezoid(n * density * cdf ** (n - 1), x))


def best_of_n(beta: float, ns: tuple[int, ...], items: int, samples: int, seed: int) -> dict[str, Any]:
    """One experiment: share of the curve's intervals with its expectation, or another beta's; growth."""
    import numpy as np

    from glasshouse.behaviour.sycophancy.best_of_n import bon_curve

    stream = rng(seed, "best of n", f"{beta:g}")
    agrees = (stream.random((items, samples)) < SYCOPHANTIC_SHARE).astype(float)
    scores = (1 - agrees) + beta * agrees + stream.normal(size=agrees.shape) * RM_NOISE
    curve = bon_curve(scores, agrees, ns)
    wanted = {n: expected_best(beta, n) for n in ns}
    held = [e.low <= wanted[n] <= e.high for n, e in curve.estimates.items()]
    other = {n: expected_best(OTHER_BETA.get(beta, beta + 1), n) for n in ns}
    crossed = [e.low <= other[n] <= e.high for n, e in curve.estimates.items()]
    return {
        "beta": beta,
        "held": float(np.mean(held)),
        "held_other": float(np.mean(crossed)),
        "growth": curve.growth().value,
        "curve": [e.value for e in curve.estimates.values()],
        "expected": [wanted[n] for n in ns],
    }


def judged(calls: int, seed: int, *, noisy: bool = True) -> dict[str, float]:
    """Effect over standard error of a shift in positivity, seen pointwise and pairwise with `calls` calls.

    Both judge the same texts: rated 1 to 5 once each, or compared once in each order. With `noisy=False` the
    judge says good or bad without noise, and both are the same number.
    """
    import numpy as np

    stream = rng(seed, "judged")
    texts = calls // 2
    quality = stream.normal(size=texts)
    base, shifted = (quality + TEXT_NOISE * stream.normal(size=texts) + s for s in (0.0, JUDGE_SHIFT))

    def seen(latent: Any) -> Any:
        return latent + JUDGE_NOISE * stream.normal(size=texts) if noisy else np.sign(latent)

    def rated(latent: Any) -> Any:
        return np.clip(np.round(3 + seen(latent)), 1, 5) if noisy else seen(latent)

    pointwise = rated(shifted) - rated(base)
    orders = [np.sign(seen(shifted) - seen(base)) for _ in range(2)]
    # Two orders that contradict each other fold to a tie.
    pairwise = np.where(orders[0] == orders[1], orders[0], 0.0)
    return {"pointwise": _effect_over_error(pointwise), "pairwise": _effect_over_error(pairwise)}


def _effect_over_error(values: Any) -> float:
    return float(values.mean() / (values.std(ddof=1) / len(values) ** 0.5))
