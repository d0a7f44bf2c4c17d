"""What the theorems say: exponents, where they change, and an exponent measured in a window.

Every exponent drops out of one line. With s = kappa^(-1/(1+gamma)) effective dimensions,

    E L1 ~ s^-nu + (1-alpha)(1-rho) s^-nu' + (1-alpha)(1-rho) s/N + (1-alpha)^2 (1-rho),

minimised over s <= N: the first term alone gives N^-nu, the first against the third N^-(nu/(nu+1)), the
second against the third N^-(nu'/(nu'+1)), and the last is the plateau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glasshouse.society.market_entry.scenario import EntryMarket, check_alpha
from glasshouse.statistics import Estimate
from glasshouse.statistics.slopes import log_slope


@dataclass(frozen=True)
class Breaks:
    """Sizes N at which the exponent changes, up to constants; infinite where it never does.

    `slow`: from nu to nu/(nu+1). `plateau`: the loss stops falling. `last`: the excess loss turns from
    nu/(nu+1) to nu'/(nu'+1).
    """

    slow: float
    plateau: float
    last: float


def regime_breaks(market: EntryMarket, alpha: float) -> Breaks:
    """Where the exponents of a company that labels a share alpha for performance change (theorems 2, 3)."""
    a, r, nu, late = 1 - check_alpha(alpha), 1 - market.rho, market.nu, market.nu_prime
    if a == 0:
        return Breaks(math.inf, math.inf, math.inf)
    slow = (a * r) ** (-1 / nu)
    plateau = a ** (-(2 + nu) / nu) * r ** (-1 / nu)
    last = math.inf if late == nu else (a * r) ** (1 - (nu + 1) / (nu - late))
    return Breaks(slow, plateau, last)


def loss_exponent(market: EntryMarket, alpha: float, N: float) -> float:
    """nu* of theorem 2: the loss falls like N^-nu*; 0 on the plateau."""
    breaks = regime_breaks(market, alpha)
    if breaks.slow >= N:
        return market.nu
    return market.nu / (market.nu + 1) if breaks.plateau >= N else 0.0


def excess_exponent(market: EntryMarket, alpha: float, N: float) -> float:
    """The exponent of theorem 3, of the loss above its plateau."""
    breaks = regime_breaks(market, alpha)
    if breaks.slow >= N:
        return market.nu
    slower = market.nu if breaks.last >= N else market.nu_prime
    return slower / (slower + 1)


def regime(market: EntryMarket, alpha: float, N: float) -> str:
    """The named phase of a company's loss at N: 'fast', 'slow' or 'plateau'."""
    breaks = regime_breaks(market, alpha)
    if breaks.slow >= N:
        return "fast"
    return "slow" if breaks.plateau >= N else "plateau"


def entry_breaks(market: EntryMarket) -> tuple[float, float]:
    """N_I at which the exponent of N_E* in N_I falls from 1 to 1/(nu+1), and from there to 0 (theorem 4)."""
    G, r, nu = market.G_I, 1 - market.rho, market.nu
    if G == 0:
        return math.inf, math.inf
    return (G * r) ** (-1 / (2 * nu)), G ** (-0.5 - 1 / nu) * r**0.5


def entry_exponent(market: EntryMarket, N_I: float) -> float:
    """The exponent of N_E* in N_I for an unconstrained newcomer (theorem 4): 1, 1/(nu+1), 0."""
    first, second = entry_breaks(market)
    if first >= N_I:
        return 1.0
    return 1 / (market.nu + 1) if second >= N_I else 0.0


def entry_regime(market: EntryMarket) -> str:
    """The named phase of a market: 'moat', 'shrinking moat', 'flat' or 'closed'.

    In a moat the newcomer needs as many points as the incumbent, up to a constant; where it is flat a finite
    number suffices against any incumbent; a market is closed where no number does.
    """
    if market.N_I is None:
        return "flat" if market.G_I > market.G_E else "closed"
    first, second = entry_breaks(market)
    if first >= market.N_I:
        return "moat"
    return "shrinking moat" if second >= market.N_I else "flat"


def gap_exponents(market: EntryMarket) -> tuple[float, float, float]:
    """C of theorem 5, N_E* ~ (G_I - G_E)^-c, as the gap shrinks: 1/nu, (nu+1)/nu, (nu'+1)/nu'."""
    nu, late = market.nu, market.nu_prime
    return 1 / nu, (nu + 1) / nu, (late + 1) / late


def fit_exponent(N: Any, loss: Any, window: tuple[float, float]) -> Estimate:
    """The exponent b of loss ~ N^-b in low <= N <= high, with the regression error as its interval.

    Measure it inside one regime: crossovers take decades (see `regime_breaks`).
    """
    found = log_slope(N, loss, window=window)
    if not found.defined:
        return found
    return Estimate(-found.value, -found.high, -found.low, found.level, found.n, found.method)
