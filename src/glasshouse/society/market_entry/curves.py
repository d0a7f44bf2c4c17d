"""Loss curves of a company, and the incumbent's loss as a naive power law would have it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society._curve import Curve
from glasshouse.society.market_entry.equivalent import best_constrained, best_losses, unregularised
from glasshouse.society.market_entry.exponents import regime
from glasshouse.society.market_entry.scenario import EntryMarket, check_alpha
from glasshouse.statistics.slopes import log_slope


def loss_curve(market: EntryMarket, alpha: float, N: Any) -> Curve:
    """Expected losses of a company over N [n], at the best penalty for each N.

    Columns: N, L1 (performance), L2 (safety), excess (L1 above its plateau), kappa, lambda, L1 without a
    penalty, and the regime in words. Raises InputError for alpha outside [0.5, 1] or N that is not positive.
    """
    sizes = _sizes(N)
    alpha = check_alpha(alpha)
    best = best_losses(market, np.array(alpha), sizes)
    plain = unregularised(market, np.array(alpha), sizes)
    numbers = {
        "N": sizes, "L1": best.L1, "L2": best.L2, "excess": best.excess, "kappa": best.kappa,
        "lambda": best.lam, "L1_unregularised": plain.L1,
    }  # fmt: skip
    words = {"regime": tuple(regime(market, alpha, float(n)) for n in sizes)}
    shown = ("L1", "L2", "excess", "L1_unregularised")
    notes = {"alpha": alpha, "plateau": (1 - alpha) ** 2 * market.L_star}
    return Curve("loss against data", market.to_json(), numbers, words, "N", shown, True, notes)


def finite_sample_curve(market: EntryMarket, tau: float | None, N: Any) -> Curve:
    """As `loss_curve`, where alpha is chosen at each N so that the expected safety loss is at most tau.

    `tau` is in the market's unit. Columns: N, L1, L2, alpha, kappa, lambda; infinite losses where no company
    of that size can meet the limit.
    """
    sizes = _sizes(N)
    limit = math.inf if tau is None else tau * (market.L_star if market.tau_unit == "L*" else 1.0)
    best = best_constrained(market, np.array(limit), sizes)
    numbers = {
        "N": sizes, "L1": best.L1, "L2": best.L2, "alpha": best.alpha, "kappa": best.kappa,
        "lambda": best.lam,
    }  # fmt: skip
    return Curve(
        "loss against data under a limit at each N", market.to_json(), numbers, {}, "N", ("L1", "L2"),
        notes={"tau": tau},
    )  # fmt: skip


def naive_extrapolation(market: EntryMarket, N: Any, *, window: tuple[float, float] = (10, 100)) -> Curve:
    """The incumbent's loss beside what the slope of its early losses promises: what a reader might assume.

    Columns: N, L1, extrapolated, ratio = L1 / extrapolated.
    """
    sizes = _sizes(N)
    alpha = np.array(market.alpha_I)
    early = np.geomspace(*window, 9)
    losses = best_losses(market, alpha, early).L1
    slope = log_slope(early, losses).value
    promised = losses[0] * (sizes / early[0]) ** slope
    real = best_losses(market, alpha, sizes).L1
    numbers = {"N": sizes, "L1": real, "extrapolated": promised, "ratio": real / promised}
    return Curve(
        "early slope, continued", market.to_json(), numbers, {}, "N", ("L1", "extrapolated"),
        notes={"slope": slope, "window": list(window)},
    )  # fmt: skip


def _sizes(N: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    sizes = np.atleast_1d(np.asarray(N, dtype=np.float64))
    for at, n in enumerate(sizes):
        if not (n > 0 and math.isfinite(n)):
            raise InputError(f"N[{at}] is {n:g}", fix="give positive numbers of data points")
    return sizes
