"""Curves over learning rates, horizons and platform rules."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from glasshouse.society._curve import Curve
from glasshouse.society.content_incentives.equilibria import ContentEquilibrium, solve
from glasshouse.society.content_incentives.platforms import exposures, regret
from glasshouse.society.content_incentives.scenario import ContentMarket
from glasshouse.society.content_incentives.theory import symmetric_foc, upper_bound


def sweep_eta(market: ContentMarket, etas: Sequence[float], *, seed: int = 0) -> Curve:
    """Quality at equilibrium over learning rates, with the closed form (Hedge, D = 1) and the upper bound.

    Columns: eta, quality (mean), first_round, foc, bound (of the first round), welfare, eps_nash, converged.
    """
    rows = []
    for eta in etas:
        here = market.changed({"eta": float(eta)})
        found = _quiet(here, seed)
        rows.append({"eta": float(eta), **_told(found), **closed_forms(here)})
    return _curve("quality against the learning rate", market, rows, "eta", ("first_round", "foc", "bound"))


def sweep_horizon(market: ContentMarket, horizons: Sequence[int], *, seed: int = 0) -> Curve:
    """The same over horizons T."""
    rows = []
    for T in horizons:
        here = market.changed({"T": int(T)})
        rows.append({"T": float(T), **_told(_quiet(here, seed)), **closed_forms(here)})
    return _curve("quality against the horizon", market, rows, "T", ("quality", "first_round", "foc"))


def compare_algorithms(
    market: ContentMarket, algos: Sequence[str | ContentMarket], *, seed: int = 0
) -> Curve:
    """The same producers under several rules: mean quality, welfare, regret on fixed content, certificate.

    A rule is a name, or a market with its own settings. `regret_fixed` is the platform's regret against the
    best fixed producer when content does not respond (random, the same for all rules): a small one does not
    make good content. NaN for EXP3, whose exposures are random.
    """
    rows, names = [], []
    for algo in algos:
        here = algo if isinstance(algo, ContentMarket) else market.changed({"algo": algo})
        names.append(here.algo)
        rows.append({**_told(_quiet(here, seed)), "regret_fixed": _fixed_regret(here, seed)})
    curve = _curve("rules compared", market, rows, "", ())
    return Curve(curve.kind, curve.scenario, curve.numbers, {"algo": tuple(names)}, "", ())


def fixed_content(market: ContentMarket, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Content [P, T, D] that does not respond to the platform: random levels and noise, in [0, 1]."""
    from glasshouse.runtime.seeds import rng

    generator = rng(seed, "fixed content")
    D = market.U.shape[1]
    level = generator.random((market.P, 1, 1))
    q = np.clip(level + 0.3 * (generator.random((market.P, market.T, 1)) - 0.5), 0, 1)
    aim = market.U[generator.integers(len(market.U), size=market.P)]
    return q * (aim[:, None, :] if D > 1 else 1.0)


def _fixed_regret(market: ContentMarket, seed: int) -> float:
    if market.algo == "exp3":
        return float("nan")
    p = fixed_content(market, seed)
    return regret(market, p, exposures(market, p))


def _quiet(market: ContentMarket, seed: int) -> ContentEquilibrium:
    """Solved without a warning: the curve has a column that says whether an equilibrium was found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return solve(market, seed=seed)


def _told(found: ContentEquilibrium) -> dict[str, float]:
    return {
        "quality": found.value, "first_round": float(found.quality[:, 0].mean()),
        "welfare": float(found.welfare.mean()), "eps_nash": found.eps_nash, "cycle": float(found.cycle),
        "converged": float(found.converged),
    }  # fmt: skip


def closed_forms(market: ContentMarket) -> dict[str, float]:
    """First-round quality of the first-order condition and of the upper bound; NaN where undefined."""
    learns = market.algo in ("hedge", "exp3") and (market.c > 1 or market.cost_curve is not None)
    closed = market.algo == "hedge" and market.users is None and learns
    return {
        "foc": float(symmetric_foc(market)[0]) if closed else float("nan"),
        "bound": float(upper_bound(market)[0]) if learns else float("nan"),
    }


def _curve(
    kind: str, market: ContentMarket, rows: Sequence[dict[str, float]], x: str, shown: tuple[str, ...]
) -> Curve:
    numbers = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Curve(kind, market.to_json(), numbers, {}, x, shown)
