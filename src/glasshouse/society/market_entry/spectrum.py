"""Sums over a power-law spectrum as functions of kappa, computed once per (gamma, delta, P).

The first 2000 terms are exact; the tail is 3000 buckets of geometric width, each with its exact number of
terms at the geometric midpoint. The relative error of the sums is below 1e-4 (a test measures it).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError

Floats = NDArray[np.float64]
EXACT, BUCKETS = 2000, 3000
PER_DECADE = 60
"""Nodes of the tables per decade of effective dimension."""
NAMES = ("t1", "t2", "s11", "s12", "s21", "s32")


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues `lam` [K], squared coefficients `target` [K], and how many terms each stands for, [K]."""

    lam: Floats
    target: Floats
    count: Floats

    @classmethod
    def power_law(cls, gamma: float, delta: float, P: float) -> Spectrum:
        """The first P terms of lam_i = i^-(1+gamma), target_i = i^-delta."""
        i, count = nodes(P)
        return cls(i ** -(1 + gamma), i**-delta, count)

    def sums(self, kappa: Any) -> dict[str, Floats]:
        """The six sums at kappa [...]:

        t1 = tr S(S+k)^-1, t2 = tr S^2 (S+k)^-2, s11 = sum lam b / (lam+k), s12 = sum lam b / (lam+k)^2,
        s21 = sum lam^2 b / (lam+k), s32 = sum lam^3 b / (lam+k)^2, with b the squared coefficients.
        """
        k = np.asarray(kappa, dtype=np.float64)[..., None]
        ratio = self.lam / (self.lam + k)  # (..., K)
        weighted = self.count * self.target
        return {
            "t1": ratio @ self.count,
            "t2": ratio**2 @ self.count,
            "s11": ratio @ weighted,
            "s12": (ratio**2 / self.lam) @ weighted,
            "s21": (ratio * self.lam) @ weighted,
            "s32": (ratio**2 * self.lam) @ weighted,
        }


@dataclass(frozen=True)
class Tables:
    """Splines of the logs of the sums over log kappa; `total` = sum lam_i b_i."""

    gamma: float
    total: float
    low: float
    high: float
    splines: dict[str, Any]

    def at(self, kappa: Floats) -> dict[str, Floats]:
        """The sums at kappa [...]. Raises InputError outside the tables."""
        logs = np.log(kappa)
        if logs.size and (logs.min() < self.low - 1e-9 or logs.max() > self.high + 1e-9):
            raise InputError(
                f"kappa lies in [{float(np.min(kappa)):.3g}, {float(np.max(kappa)):.3g}], the tables in "
                f"[{math.exp(self.low):.3g}, {math.exp(self.high):.3g}]",
                fix="ask for fewer data points or more features P",
            )
        logs = np.clip(logs, self.low, self.high)
        return {name: np.exp(spline(logs)) for name, spline in self.splines.items()}


@functools.lru_cache(maxsize=32)
def tables(gamma: float, delta: float, P: float = 1e16) -> Tables:
    """The tables of one spectrum; kappa runs so far that effective dimensions come near P.

    They are shared by all alpha, rho and N. kappa_min is tied to the spectrum, P^-(1+gamma) / 20: a fixed
    floor would stop optima at large N (gamma = 1, N = 1e9 needs 1e-18).
    """
    from scipy.interpolate import CubicSpline

    spectrum = Spectrum.power_law(gamma, delta, P)
    low, high = -(1 + gamma) * math.log(P) - 3.0, math.log(1e4)
    steps = int(PER_DECADE * (high - low) / (math.log(10) * (1 + gamma))) + 2
    logs = np.linspace(low, high, steps)
    found: dict[str, list[Floats]] = {name: [] for name in NAMES}
    for block in np.array_split(logs, max(1, steps // 64)):  # (64, K) at a time: 2.5 MB
        for name, values in spectrum.sums(np.exp(block)).items():
            found[name].append(values)
    splines = {name: CubicSpline(logs, np.log(np.concatenate(parts))) for name, parts in found.items()}
    total = float((spectrum.lam * spectrum.target) @ spectrum.count)
    return Tables(gamma, total, low, high, splines)


def nodes(P: float) -> tuple[Floats, Floats]:
    """Positions and counts that stand for the terms 1 .. P."""
    if P <= EXACT:
        i = np.arange(1, int(P) + 1, dtype=np.float64)
        return i, np.ones_like(i)
    edges = np.unique(np.floor(np.geomspace(EXACT + 1, P + 1, BUCKETS + 1)))
    # Bucket [a, b) holds the terms a .. b - 1; half a term either way centres it.
    middle = np.sqrt((edges[:-1] - 0.5) * (edges[1:] - 0.5))
    head = np.arange(1, EXACT + 1, dtype=np.float64)
    return np.concatenate([head, middle]), np.concatenate([np.ones(EXACT), np.diff(edges)])
