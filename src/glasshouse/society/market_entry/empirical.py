"""`EmpiricalMarket`: the entry threshold from losses that a user measured on own training runs.

Curves at several mixture shares alpha are fitted together by

    L(alpha, N) = E + A N^-nu + B(alpha) N^-(nu/(nu+1)) + C(alpha),

with B, C >= 0 and zero at alpha = 1. Whether the slow middle term is there at all is tested
against a pure power law with its constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.market_entry.spectrum import Floats
from glasshouse.society.market_entry.tables import ErrorCurve, read_csv
from glasshouse.statistics import Estimate


@dataclass(frozen=True)
class MixtureFit:
    """Coefficients of the joint fit: B, C per alpha (0 at alpha = 1); `rss` weighted by 1 / variance."""

    nu: float
    A: float
    E: float
    B: Mapping[float, float]
    C: Mapping[float, float]
    rss: float

    def at(self, alpha: float, N: Any) -> Floats:
        """Fitted losses at N [n]; B and C are interpolated between the alphas that were measured."""
        sizes = np.asarray(N, dtype=np.float64)
        B, C = (_between(values, alpha) for values in (self.B, self.C))
        return np.asarray(self.E + self.A * sizes**-self.nu + B * sizes ** (-self.nu / (self.nu + 1)) + C)


@dataclass(frozen=True)
class EmpiricalEntry:
    """N_E with its interval; `extrapolated` where it lies outside the sizes that were measured."""

    N_E: Estimate
    alpha_I: float
    alpha_E: float
    L_I: float
    extrapolated: bool
    never: float
    """Share of the bootstrap fits in which no number of points suffices."""

    def summary(self) -> list[str]:
        """A few lines for a person."""
        out = " (outside the sizes measured)" if self.extrapolated else ""
        return [
            f"N_E* = {self.N_E}{out}",
            f"the incumbent at alpha {self.alpha_I:.3f} has loss {self.L_I:.4g}; the newcomer has alpha "
            f"{self.alpha_E:.3f}",
            f"in {self.never:.0%} of the refits no number of points suffices",
            "fitted to your data; no theorem is behind these numbers",
        ]


class EmpiricalMarket:
    """Entry thresholds from a user's curves: one `ErrorCurve` per mixture share alpha, and safety losses.

    `safety` gives the safety loss of a share alpha at the largest size (a mapping, interpolated, or a
    function); it decides which alpha a limit allows. After `fit`: `fit_` (MixtureFit), `refits_` (bootstrap),
    `slowdown_p_` (the p-value of "no slow middle term", by parametric bootstrap), `nu_` (Estimate).
    """

    def __init__(
        self, curves: Mapping[float, ErrorCurve], safety: Mapping[float, float] | Callable[[float], float],
        *, resamples: int = 200, seed: int = 0, level: float = 0.95,
    ) -> None:  # fmt: skip
        self.curves, self.safety = dict(curves), safety
        self.resamples, self.seed, self.level = resamples, seed, level

    @classmethod
    def from_csv(cls, path: Path | str, **options: Any) -> EmpiricalMarket:
        """A file with columns alpha, N, error, safety and perhaps se: one row per trained model.

        The safety loss of an alpha is that of its largest N. Raises InputError naming file and line.
        """
        rows = read_csv(path, ("alpha", "N", "error", "safety"), ("se",))
        curves, safety = {}, {}
        for alpha in sorted({row["alpha"] for row in rows}):
            part = sorted((r for r in rows if r["alpha"] == alpha), key=lambda r: r["N"])
            se = [r["se"] for r in part] if "se" in part[0] else None
            curves[alpha] = ErrorCurve.of(
                [r["N"] for r in part], [r["error"] for r in part], se, where=f"{path}, alpha {alpha:g}"
            )
            safety[alpha] = part[-1]["safety"]
        return cls(curves, safety, **options)

    @classmethod
    def from_training(
        cls, train: Callable[[int, float, int], tuple[float, float]], Ns: Sequence[int],
        alphas: Sequence[float], *, seeds: int = 3, **options: Any,
    ) -> EmpiricalMarket:  # fmt: skip
        """Curves from `train(N, alpha, seed) -> (performance loss, safety loss)`, called for all of them."""
        if seeds < 2:
            raise InputError(f"seeds is {seeds}", fix="give at least 2, so that errors are known")
        curves, safety = {}, {}
        for alpha in alphas:
            found = np.array([[train(n, alpha, seed) for seed in range(seeds)] for n in Ns])  # (N, seeds, 2)
            mean, se = found.mean(1), found.std(1, ddof=1) / math.sqrt(seeds)
            curves[alpha] = ErrorCurve.of(
                Ns, mean[:, 0], np.maximum(se[:, 0], 1e-12), where=f"alpha {alpha:g}"
            )
            safety[alpha] = float(mean[-1, 1])
        return cls(curves, safety, **options)

    @classmethod
    def from_tradeoff(
        cls, curve: ErrorCurve, tradeoff: Callable[[float], tuple[float, float]], alphas: Sequence[float],
        **options: Any,
    ) -> EmpiricalMarket:  # fmt: skip
        """Only the curve at alpha = 1 and, for each alpha, (plateau of performance, safety loss).

        Then the slow middle term is unknown and taken as absent, so that thresholds are lower bounds.
        """
        told = {alpha: tradeoff(alpha) for alpha in alphas}
        curves = {1.0: curve}
        for alpha, (plateau, _) in told.items():
            if alpha < 1:
                curves[alpha] = ErrorCurve.of(
                    curve.N, curve.error + plateau, curve.se, where=f"alpha {alpha:g}"
                )
        return cls(curves, {alpha: safety for alpha, (_, safety) in told.items()}, **options)

    def fit(self) -> EmpiricalMarket:
        """Fit all curves together. Raises InputError without a curve at alpha = 1 or with an alpha <= 0."""
        alphas = sorted(self.curves)
        if not alphas or alphas[-1] != 1.0 or alphas[0] <= 0:
            raise InputError(f"curves are given at alpha {alphas}", fix="give one at alpha = 1, others below")
        data = _Stacked.of(self.curves)
        self.fit_ = _fit_mixture(data, data.error, slow=True)
        pure = _fit_mixture(data, data.error, slow=False)
        generator = rng(self.seed, "mixture")
        self.refits_ = [
            _fit_mixture(data, data.redrawn(self.fit_, generator), slow=True) for _ in range(self.resamples)
        ]
        self.statistic_ = pure.rss - self.fit_.rss
        null = []
        for _ in range(self.resamples):
            drawn = data.redrawn(pure, generator)
            null.append(_fit_mixture(data, drawn, slow=False).rss - _fit_mixture(data, drawn, slow=True).rss)
        # The drawn curves carry noise at the scale of the fit's residuals, so the statistics compare.
        self.slowdown_p_ = (1 + sum(value >= self.statistic_ for value in null)) / (1 + self.resamples)
        self.nu_ = self._estimate(self.fit_.nu, [one.nu for one in self.refits_])
        return self

    def plateau(self, alpha: float) -> Estimate:
        """C(alpha), what the loss keeps above that of alpha = 1 with any number of points."""
        return self._estimate(_between(self.fit_.C, alpha), [_between(one.C, alpha) for one in self.refits_])

    def alpha_for(self, tau: float | None) -> float:
        """The largest alpha whose safety loss is at most tau. Raises InputError where none is."""
        grid = np.linspace(min(self.curves), 1.0, 501)
        if tau is None:
            return 1.0
        allowed = [float(a) for a in grid if self._safety(float(a)) <= tau]
        if not allowed:
            least = min(self._safety(float(a)) for a in grid)
            raise InputError(
                f"tau is {tau:g}: no alpha measured is as safe", fix=f"the safest has {least:.4g}"
            )
        return max(allowed)

    def entry_threshold(
        self, *, tau_I: float | None, tau_E: float | None = None, N_I: float | None = None
    ) -> EmpiricalEntry:
        """N_E against an incumbent with limit tau_I and N_I points (None: infinitely many)."""
        alpha_I, alpha_E = self.alpha_for(tau_I), self.alpha_for(tau_E)
        found = [_crossing(one, alpha_I, alpha_E, N_I) for one in (self.fit_, *self.refits_)]
        finite = [x for x in found[1:] if math.isfinite(x)]
        never = 1 - len(finite) / max(len(found) - 1, 1)
        estimate = self._entry_estimate(found[0], found[1:])
        sizes = np.concatenate([curve.N for curve in self.curves.values()])
        outside = not sizes.min() <= found[0] <= sizes.max()
        L_I = float(self.fit_.at(alpha_I, math.inf if N_I is None else N_I))
        return EmpiricalEntry(estimate, alpha_I, alpha_E, L_I, outside, never)

    def _entry_estimate(self, value: float, draws: Sequence[float]) -> Estimate:
        if not math.isfinite(value):
            return Estimate.undefined("no number of points suffices in the fit", len(self.curves), self.level)
        return self._estimate(value, draws)

    def _estimate(self, value: float, draws: Sequence[float]) -> Estimate:
        low, high = _quantiles(draws, self.level)
        label = f"parametric bootstrap, {self.resamples} refits"
        n = sum(len(curve.N) for curve in self.curves.values())
        return Estimate(value, min(low, value), max(high, value), self.level, n, label)

    def _safety(self, alpha: float) -> float:
        if isinstance(self.safety, Mapping):
            return _between(self.safety, alpha)
        return float(self.safety(alpha))


@dataclass(frozen=True)
class _Stacked:
    """All curves in one: alpha, N, error, sd [n]."""

    alphas: tuple[float, ...]
    alpha: Floats
    N: Floats
    error: Floats
    sd: Floats

    @classmethod
    def of(cls, curves: Mapping[float, ErrorCurve]) -> _Stacked:
        alphas = tuple(sorted(curves))
        return cls(
            alphas, np.concatenate([np.full(len(curves[a].N), a) for a in alphas]),
            np.concatenate([curves[a].N for a in alphas]), np.concatenate([curves[a].error for a in alphas]),
            np.concatenate([curves[a].weights ** -0.5 for a in alphas]),
        )  # fmt: skip

    def redrawn(self, fit: MixtureFit, generator: np.random.Generator) -> Floats:
        """Losses [n] drawn about a fit, with the scatter that its residuals show."""
        fitted = np.array([float(fit.at(a, n)) for a, n in zip(self.alpha, self.N, strict=True)])
        freedom = max(len(self.N) - 2 * len(self.alphas) - 1, 1)
        scale = math.sqrt(fit.rss / freedom)
        return np.asarray(np.maximum(fitted + scale * self.sd * generator.standard_normal(len(fitted)), 0.0))


def _fit_mixture(data: _Stacked, error: Floats, *, slow: bool) -> MixtureFit:
    """Non-negative least squares for given nu, nu by a bounded search from the best of a grid."""
    from scipy.optimize import minimize_scalar, nnls

    mixed = [a for a in data.alphas if a < 1]
    scale = float(np.exp(np.log(data.N).mean()))
    ratio, root = data.N / scale, 1 / data.sd
    marks = [data.alpha == a for a in mixed]

    def solve(nu: float) -> tuple[Floats, float]:
        columns = [np.ones_like(ratio), ratio**-nu, *(1.0 * mark for mark in marks)]
        if slow:
            columns += [mark * ratio ** (-nu / (nu + 1)) for mark in marks]
        return nnls(np.stack(columns, axis=1) * root[:, None], error * root)

    grid = np.linspace(0.05, 3.0, 30)
    start = float(grid[int(np.argmin([solve(float(nu))[1] for nu in grid]))])
    found = minimize_scalar(
        lambda nu: solve(nu)[1], bounds=(max(start - 0.1, 0.01), start + 0.1), method="bounded",
        options={"xatol": 1e-5},
    )  # fmt: skip
    nu = float(found.x)
    x, norm = solve(nu)
    # All columns are near 1: what lies below rounding of the losses is zero, not a small plateau.
    x = np.where(x < 1e-12 * float(error.max()), 0.0, x)
    k = len(mixed)
    B = x[2 + k :] * scale ** (nu / (nu + 1)) if slow else np.zeros(k)
    return MixtureFit(
        nu, float(x[1]) * scale**nu, float(x[0]),
        {**dict(zip(mixed, map(float, B), strict=True)), 1.0: 0.0},
        {**dict(zip(mixed, map(float, x[2 : 2 + k]), strict=True)), 1.0: 0.0}, float(norm) ** 2,
    )  # fmt: skip


def _crossing(fit: MixtureFit, alpha_I: float, alpha_E: float, N_I: float | None) -> float:
    """The least N at which the newcomer's fitted loss is the incumbent's; infinite where there is none."""
    target = float(fit.at(alpha_I, math.inf if N_I is None else N_I))
    low, high = 0.0, math.log(1e15)
    if float(fit.at(alpha_E, math.exp(high))) > target:
        return math.inf
    for _ in range(80):
        middle = (low + high) / 2
        enough = float(fit.at(alpha_E, math.exp(middle))) <= target
        low, high = (low, middle) if enough else (middle, high)
    return math.exp(high)


def _between(values: Mapping[float, float], alpha: float) -> float:
    points = sorted(values)
    if not points[0] <= alpha <= points[-1]:
        raise InputError(
            f"alpha {alpha:g} was not measured", fix=f"ask within [{points[0]:g}, {points[-1]:g}]"
        )
    return float(np.interp(alpha, points, [values[p] for p in points]))


def _quantiles(draws: Sequence[float], level: float) -> tuple[float, float]:
    """Order statistics, so that infinite draws make an infinite bound and nothing else."""
    ordered = sorted(draws)
    tail = (1 - level) / 2
    last = len(ordered) - 1
    return ordered[math.floor(tail * last)], ordered[math.ceil((1 - tail) * last)]
