"""Market entry and content incentives against plain loops that follow the papers' pseudo-code, and growth.

The loops are written here from the papers: ridge regression solved anew for every data set and penalty; the
deterministic equivalent summed over a full spectrum of 1e6 terms; a recommender that goes from round to
round, producer to producer; EXP3 one path after another. Both sides run on the same draws, and their numbers
must agree. `growth` prints cost over three decades of N, producers and rounds, with the exponent of the last.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Row

CASES = ("ridge", "equivalent", "hedge", "exp3", "growth")
PLAIN = "plain loop of the pseudo-code"
PENALTIES = np.geomspace(1e-4, 1.0, 25)


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """Rows of the cases asked for; 'growth' has no peer."""
    build = {"ridge": _ridge, "equivalent": _equivalent, "hedge": _hedge, "exp3": _exp3, "growth": _growth}
    rows: list[Row] = []
    for name in CASES:
        if not cases or name in cases:
            rows += build[name](repeats)
    return rows


def _row(case: str, ours: float, plain: float, gap: float, allowed: float, peer: str = PLAIN) -> Row:
    verdict = "equal" if gap <= allowed else "DIFFERENT"
    agreement = f"{verdict}: largest relative difference {gap:.1e} (allowed {allowed:g})"
    return Row(case, "all", ours, peer, plain, plain / ours, None, agreement, None)


def _seconds(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    best, out = math.inf, None
    for _ in range(repeats):
        started = time.process_time()
        out = function()
        best = min(best, time.process_time() - started)
    return best, out


def _apart(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-300)))


# ── market entry ──


def _ridge(repeats: int) -> list[Row]:
    from sklearn.linear_model import Ridge

    from glasshouse.runtime.seeds import derive, rng
    from glasshouse.society.market_entry import EntryMarket, simulate_loss
    from glasshouse.society.market_entry.monte_carlo import Targets

    market, alpha, N, P, draws = EntryMarket(rho=0.3), 0.7, 100, 600, 4
    pair = Targets.draw(market, P, derive(0, "fixed"))

    def data(draw: int) -> tuple[np.ndarray, np.ndarray]:
        Z = np.random.default_rng(derive(0, "X", draw)).standard_normal((N, P))
        X = Z * np.sqrt(pair.lam)
        by_two = rng(0, "labels", draw).random(N) >= alpha
        return X, np.where(by_two, X @ pair.two, X @ pair.one)

    def plain() -> np.ndarray:
        out = np.empty((draws, len(PENALTIES)))
        for draw in range(draws):
            for at, lam in enumerate(PENALTIES):
                X, y = data(draw)
                b = np.linalg.solve(X.T @ X / N + lam * np.eye(P), X.T @ y / N)
                out[draw, at] = float(pair.lam @ (b - pair.one) ** 2)
        return out

    def sklearn() -> np.ndarray:
        out = np.empty((draws, len(PENALTIES)))
        for draw in range(draws):
            X, y = data(draw)
            for at, lam in enumerate(PENALTIES):
                b = Ridge(alpha=N * lam, fit_intercept=False, solver="cholesky").fit(X, y).coef_
                out[draw, at] = float(pair.lam @ (b - pair.one) ** 2)
        return out

    def ours() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return simulate_loss(
                market, alpha, N, PENALTIES, P=P, draws=draws, targets="fixed", labels="drawn"
            ).L1  # fmt: skip

    mine, fast = _seconds(ours, repeats)
    slow, expected = _seconds(plain)
    peer, theirs = _seconds(sklearn, repeats)
    case = f"ridge, {draws} data sets, N {N}, P {P}, {len(PENALTIES)} penalties"
    return [
        _row(case, mine, slow, _apart(fast, expected), 1e-6),
        _row(case, mine, peer, _apart(fast, theirs), 1e-6, "scikit-learn Ridge(solver='cholesky')"),
    ]


def _equivalent(repeats: int) -> list[Row]:
    from glasshouse.society.market_entry import EntryMarket
    from glasshouse.society.market_entry.equivalent import losses_at
    from glasshouse.society.market_entry.spectrum import tables

    market, alpha, halvings = EntryMarket(P=1e5, finite_size=False), 0.9, 45
    sizes = np.geomspace(100, 1000, 10)[:, None]
    lams = np.broadcast_to(np.geomspace(1e-5, 1e-2, 20), (10, 20))
    i = np.arange(1, int(market.P) + 1, dtype=np.float64)
    lam_i, b = i ** -(1 + market.gamma), i**-market.delta
    r = 1 - market.rho

    def plain_one(N: float, lam: float) -> float:
        low, high = math.log(lam), 5.0
        for _ in range(halvings):  # kappa by bisection, every sum over the full spectrum
            kappa = math.exp((low + high) / 2)
            above = lam / kappa + (lam_i / (lam_i + kappa)).sum() / N > 1
            low, high = ((low + high) / 2, high) if above else (low, (low + high) / 2)
        ratio = lam_i / (lam_i + kappa)
        g2, L = (ratio**2).sum() / N, 2 * r * (lam_i * b).sum()
        bias = kappa**2 * (ratio**2 / lam_i * b).sum() * (1 - 2 * alpha * (1 - alpha) * r) / (1 - g2)
        drift = 2 * (1 - alpha) * (2 * alpha - 1) * r * kappa * (ratio * b).sum()
        return float((1 - alpha) ** 2 * L + drift + bias + alpha * (1 - alpha) * L * g2 / (1 - g2))

    def plain() -> np.ndarray:
        return np.array([[plain_one(float(n), float(lam)) for lam in lams[0]] for n in sizes[:, 0]])

    def ours() -> np.ndarray:
        low, high = np.log(lams), np.full(lams.shape, 5.0)
        shared = tables(market.gamma, market.delta, market.P)
        for _ in range(halvings):
            kappa = np.exp((low + high) / 2)
            above = lams / kappa + shared.at(kappa)["t1"] / sizes > 1
            low, high = np.where(above, np.log(kappa), low), np.where(above, high, np.log(kappa))
        return losses_at(market, np.array(alpha), sizes, kappa).L1

    def first() -> np.ndarray:
        tables.cache_clear()
        return ours()

    cold, _ = _seconds(first)
    warm, fast = _seconds(ours, repeats)
    slow, expected = _seconds(plain)
    gap = _apart(fast, expected)
    return [
        _row("equivalent, 200 losses, P 1e5, tables made first", cold, slow, gap, 1e-4),
        _row("equivalent, 200 losses, P 1e5, tables there", warm, slow, gap, 1e-4),
    ]


# ── content incentives ──


def _hedge(repeats: int) -> list[Row]:
    from glasshouse.society.content_incentives import ContentMarket, exposures, utilities, welfare

    market = ContentMarket(P=20, T=1000, eta=0.05)
    p = np.random.default_rng(0).random((20, 1000, 1))

    def plain() -> np.ndarray:
        earned, users, scores = [0.0] * market.P, [0.0] * market.T, [0.0] * market.P
        for t in range(1, market.T + 1):
            eta = float(market.rates[t - 1])
            weights = [math.exp(eta * (score - max(scores))) for score in scores]
            for j in range(market.P):
                chance, quality = weights[j] / sum(weights), float(p[j, t - 1, 0])
                earned[j] += market.beta**t * (chance - quality**market.c)
                users[t - 1] += chance * quality
            for j in range(market.P):
                scores[j] += float(p[j, t - 1, 0])
        return np.array([*earned, *users])

    def ours() -> np.ndarray:
        x = exposures(market, p)
        return np.concatenate([utilities(market, p, x), welfare(market, p, x)])

    mine, fast = _seconds(ours, max(repeats, 5))
    slow, expected = _seconds(plain, repeats)
    return [_row("Hedge, 20 producers, 1000 rounds", mine, slow, _apart(fast, expected), 1e-9)]


def _exp3(repeats: int) -> list[Row]:
    from glasshouse.runtime.seeds import rng
    from glasshouse.society.content_incentives import ContentMarket, exp3_exposures

    market, paths = ContentMarket(P=3, T=40, algo="exp3", eta=0.1), 2000
    q = np.random.default_rng(0).random((3, 40))
    uniforms = rng(0, "exp3").random((market.T, paths))

    def plain() -> np.ndarray:
        total = np.zeros((market.P, market.T))
        for path in range(paths):
            score = np.zeros(market.P)
            for t in range(market.T):
                weights = np.exp(market.rates[t] * score)
                chance = (1 - market.gamma) * weights / weights.sum() + market.gamma / market.P
                total[:, t] += chance
                shown = int(np.searchsorted(np.cumsum(chance)[:-1], uniforms[t, path]))
                score[shown] += q[shown, t] / chance[shown]
        return total / paths

    mine, fast = _seconds(lambda: exp3_exposures(market, q, paths=paths)[0].mean(0), max(repeats, 3))
    slow, expected = _seconds(plain)
    return [_row(f"EXP3, {paths} paths, 3 producers, 40 rounds", mine, slow, _apart(fast, expected), 1e-9)]


# ── growth ──


def _growth(repeats: int) -> list[Row]:
    from glasshouse.society.content_incentives import ContentMarket, exposures, utilities
    from glasshouse.society.market_entry import EntryMarket, entry_threshold, simulate_loss

    def simulate(N: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return simulate_loss(EntryMarket(), 0.9, N, 1e-4, P=2000, draws=1)

    def play(P: int, T: int) -> Any:
        market = ContentMarket(P=P, T=T)
        p = np.full((P, T, 1), 0.1)
        return utilities(market, p, exposures(market, p))

    axes: dict[str, tuple[tuple[int, ...], Callable[[int], Any]]] = {
        "threshold against N_I": (
            (1_000, 10_000, 100_000, 1_000_000), lambda n: entry_threshold(EntryMarket(N_I=float(n)))
        ),
        "one simulated fit, N (P 2000)": ((2, 20, 200, 2000), simulate),
        "payoffs, producers (100 rounds)": ((4, 40, 400, 4000), lambda P: play(P, 100)),
        "payoffs, rounds (4 producers)": ((20, 200, 2000, 20_000), lambda T: play(4, T)),
    }  # fmt: skip
    rows = []
    for name, (sizes, work) in axes.items():
        work(sizes[0])  # tables and imports are not part of the growth
        spent = [_seconds(functools.partial(work, size), repeats)[0] for size in sizes]
        exponent = math.log10(spent[-1] / spent[-2])
        for size, seconds in zip(sizes, spent, strict=True):
            said = f"exponent of the last decade {exponent:.2f}" if size == sizes[-1] else None
            rows.append(Row("growth", f"{name} = {size:,}", seconds, "none", None, None, None, said, None))
    return rows
