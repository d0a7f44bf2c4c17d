"""How many points a newcomer needs: the least N_E at which it performs as well as the incumbent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.society._curve import Curve
from glasshouse.society.market_entry.equivalent import best_constrained, best_losses
from glasshouse.society.market_entry.exponents import entry_exponent, entry_regime, gap_exponents
from glasshouse.society.market_entry.scenario import ASSUMPTIONS, EntryMarket
from glasshouse.society.market_entry.spectrum import Floats

if TYPE_CHECKING:
    import pandas as pd

MOST = 1e20
"""The largest N_E that is searched; P / 100 where that is less."""
_HALVINGS = 60


@dataclass(frozen=True)
class EntryResult:
    """The entry threshold of one market.

    `N_E` is None where no number of points up to P / 100 suffices. `bracket` holds sizes just too small and
    just large enough (their ratio is the certificate); `L_I` is the incumbent's performance loss.
    """

    scenario: dict[str, Any]
    N_E: float | None
    N_I: float | None
    alpha_I: float
    alpha_E: float
    L_I: float
    gap: float
    """Loss by which the newcomer's plateau lies below the incumbent's."""
    regime: str
    bracket: tuple[float, float]
    exponents: dict[str, Any]
    warnings: tuple[str, ...]
    converged: bool = True

    @property
    def value(self) -> float:
        """N_E, infinite where it is None."""
        return math.inf if self.N_E is None else self.N_E

    @property
    def certificate(self) -> float:
        """The bracket's relative width: N_E is known to this."""
        return self.bracket[1] / self.bracket[0] - 1

    def summary(self) -> list[str]:
        """A few lines for a person."""
        need = "no finite number of points suffices" if self.N_E is None else f"N_E* = {self.N_E:.6g} points"
        against = "infinitely many" if self.N_I is None else f"{self.N_I:.6g}"
        return [
            f"{need} against an incumbent with {against} (regime: {self.regime})",
            f"the incumbent labels {self.alpha_I:.1%} for performance, the newcomer {self.alpha_E:.1%}",
            f"the incumbent's performance loss is {self.L_I:.6g}; the plateaus differ by {self.gap:.4g}",
            f"certificate: N_E* bracketed to {self.certificate:.1e} (theory: deterministic equivalent)",
            *self.warnings,
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        row = {
            k: v for k, v in asdict(self).items() if k not in ("scenario", "bracket", "exponents", "warnings")
        }
        return pd.DataFrame([{**self.scenario, **row, "low": self.bracket[0], "high": self.bracket[1]}])

    def plot(self) -> Any:
        """Both companies' losses over N, and the crossing (plotly)."""
        import plotly.graph_objects as go

        market = EntryMarket.parse(self.scenario)
        N = np.geomspace(10, 1e9, 60)
        figure = go.Figure()
        for name, alpha in (("incumbent", self.alpha_I), ("newcomer", self.alpha_E)):
            figure.add_trace(go.Scatter(x=N, y=best_losses(market, np.array(alpha), N).L1, name=name))
        figure.add_hline(y=self.L_I, line_dash="dot")
        if self.N_E is not None:
            figure.add_vline(x=self.N_E, line_dash="dot")
        return figure.update_layout(
            title="performance loss against data", xaxis={"type": "log", "title": "data points"},
            yaxis={"type": "log"},
        )  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write `entry.json` into `folder`."""
        files.write_json(Path(folder) / "entry.json", {**asdict(self), "assumptions": list(ASSUMPTIONS)})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> EntryResult:
        """Read what `save` wrote."""
        told = files.read_json(Path(folder) / "entry.json")
        told.pop("assumptions")
        told["bracket"], told["warnings"] = tuple(told["bracket"]), tuple(told["warnings"])
        return cls(**told)


def entry_threshold(market: EntryMarket) -> EntryResult:
    """The least number of points at which the newcomer's best loss is the incumbent's (paper, section 3).

    Raises InputError where the incumbent itself cannot meet its limit (constraint 'finite_sample').
    """
    return _results([market])[0]


def entry_curve(market: EntryMarket, N_I: Any) -> Curve:
    """N_E* over the incumbent's N_I [n]: columns N_I, N_E (NaN where no number suffices), slope (theorem 4).

    `slope` is the theorem's exponent at N_I, for a newcomer without a limit.
    """
    sizes = np.atleast_1d(np.asarray(N_I, dtype=np.float64))
    found = _results([market.changed({"N_I": float(n)}) for n in sizes])
    numbers = {
        "N_I": sizes,
        "N_E": np.array([math.nan if one.N_E is None else one.N_E for one in found]),
        "L_I": np.array([one.L_I for one in found]),
        "theory_slope": np.array([entry_exponent(market, float(n)) for n in sizes]),
    }
    words = {"regime": tuple(one.regime for one in found)}
    return Curve(
        "entry threshold against the incumbent's data", market.to_json(), numbers, words, "N_I", ("N_E",)
    )


def entry_gap_curve(
    market: EntryMarket, *, tau_E: Sequence[float] | None = None, gap: Any | None = None
) -> Curve:
    """N_E* over the newcomer's limit, or over the gap G_I - G_E that it makes: columns gap, tau_E, N_E.

    Give one of the two. A gap larger than G_I cannot be.
    """
    if (tau_E is None) == (gap is None):
        raise InputError("give tau_E or gap, one of them")
    unit = 1.0 if market.tau_unit == "L*" else market.L_star
    if gap is not None:
        gaps = np.atleast_1d(np.asarray(gap, dtype=np.float64))
        if (gaps <= 0).any() or (gaps > market.G_I).any():
            raise InputError(
                f"gaps run from {gaps.min():.3g} to {gaps.max():.3g}",
                fix=f"give values in (0, {market.G_I:.3g}]",
            )
        # (1 - alpha_E)^2 L* = G_I - gap; 1 - alpha_E by a difference of squares would lose small gaps.
        alphas = 1 - np.sqrt(np.maximum(market.G_I - gaps, 0) / market.L_star)
    else:
        alphas = np.array([market.changed({"tau_E": float(tau)}).alpha_E for tau in tau_E or ()])
        gaps = market.G_I - (1 - alphas) ** 2 * market.L_star
    excess = _incumbents_excess([market])[0]
    N_E = _crossings(market, alphas, gaps + excess)
    numbers = {"gap": gaps, "tau_E": alphas**2 * unit, "alpha_E": alphas, "N_E": N_E[1]}
    notes = {"theory": list(gap_exponents(market)), "G_I": market.G_I}
    return Curve(
        "entry threshold against the gap", market.to_json(), numbers, {}, "gap", ("N_E",), True, notes
    )


def _results(markets: Sequence[EntryMarket]) -> list[EntryResult]:
    """All markets share spectrum, rho and constraint."""
    first = markets[0]
    if first.constraint == "finite_sample":
        L_I, (low, high) = _finite(markets)
    else:
        excess = _incumbents_excess(markets)
        gaps = np.array([m.G_I - m.G_E for m in markets])
        low, high = _crossings(first, np.array([m.alpha_E for m in markets]), gaps + excess)
        L_I = np.array([m.G_I for m in markets]) + excess
    return [
        EntryResult(
            scenario=m.to_json(), N_E=float(high[i]) if math.isfinite(high[i]) else None, N_I=m.N_I,
            alpha_I=m.alpha_I, alpha_E=m.alpha_E, L_I=float(L_I[i]), gap=m.G_I - m.G_E,
            regime=entry_regime(m) if math.isfinite(high[i]) else "closed",
            bracket=(float(low[i]), float(high[i]) if math.isfinite(high[i]) else MOST),
            exponents={"nu": m.nu, "nu_prime": m.nu_prime, "gap": list(gap_exponents(m))},
            warnings=m.warnings,
        )
        for i, m in enumerate(markets)
    ]  # fmt: skip


def _incumbents_excess(markets: Sequence[EntryMarket]) -> Floats:
    """Loss of each incumbent above its plateau [m]: 0 for infinitely many points."""
    finite = np.array([m.N_I is not None for m in markets])
    excess = np.zeros(len(markets))
    if finite.any():
        chosen = [m for m in markets if m.N_I is not None]
        alphas = np.array([m.alpha_I for m in chosen])
        sizes = np.array([m.N_I for m in chosen], dtype=np.float64)
        excess[finite] = best_losses(chosen[0], alphas, sizes).excess
    return excess


def _crossings(market: EntryMarket, alphas: Floats, allowed: Floats) -> tuple[Floats, Floats]:
    """Brackets of the N at which the excess loss falls to `allowed` [m]; the upper end infinite past MOST.

    Both sides are excesses, so that a gap of 1e-9 beside a plateau of 1e-2 keeps its digits.
    """

    def enough(N: Floats) -> Any:
        return best_losses(market, alphas, N).excess <= allowed

    return _bisect(enough, len(alphas), market.P / 100)


def _bisect(enough: Any, m: int, most: float) -> tuple[Floats, Floats]:
    low, high = np.zeros(m), np.full(m, math.log(min(MOST, most)))
    reached, at_once = enough(np.exp(high)), enough(np.exp(low))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = enough(np.exp(middle))
        low, high = np.where(found, low, middle), np.where(found, middle, high)
    high = np.where(at_once, 0.0, high)
    low = np.where(at_once, 0.0, low)
    return np.exp(low), np.where(reached, np.exp(high), np.inf)


def _finite(markets: Sequence[EntryMarket]) -> tuple[Floats, tuple[Floats, Floats]]:
    """Thresholds where limits bind the predictors that companies can fit."""
    first = markets[0]
    L_I = np.array([m.G_I for m in markets])
    finite = np.array([m.N_I is not None for m in markets])
    if finite.any():
        chosen = [m for m in markets if m.N_I is not None]
        taus = np.array([_in_losses(m, m.tau_I) for m in chosen])
        sizes = np.array([m.N_I for m in chosen], dtype=np.float64)
        L_I[finite] = best_constrained(first, taus, sizes).L1
    if not np.isfinite(L_I).all():
        at = markets[int(np.argmin(np.isfinite(L_I)))]
        raise InputError(
            f"an incumbent with N_I = {at.N_I} cannot meet tau_I = {at.tau_I} with any alpha >= 0.5",
            fix="give it more points or a laxer limit",
        )
    taus = np.array([_in_losses(m, m.tau_E) for m in markets])

    def enough(N: Floats) -> Any:
        return best_constrained(first, taus, N).L1 <= L_I

    return L_I, _bisect(enough, len(markets), first.P / 100)


def _in_losses(market: EntryMarket, tau: float | None) -> float:
    if tau is None:
        return math.inf
    return tau if market.tau_unit == "loss" else tau * market.L_star
