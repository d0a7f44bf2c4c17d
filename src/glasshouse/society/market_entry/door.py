"""The door of market entry: points of a sweep, and the page of a report."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.society._door import Door, Rows
from glasshouse.society._page import Certificate, Chart, Compared, Line, Mark, Page, Points
from glasshouse.society.market_entry.scenario import ASSUMPTIONS, EntryMarket
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    from glasshouse.society.market_entry.threshold import EntryResult

SIMULATED_UP_TO = 120
"""Incumbents of at most this size are simulated too; larger ones take minutes per draw."""
FEATURES, DRAWS = 1200, 20
_N_I = [20.0, 40.0, 80.0, 110.0, 300.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]


def solve(scenario: EntryMarket, seed: int) -> EntryResult:
    """The entry threshold; nothing is random, `seed` is not used."""
    from glasshouse.society.market_entry.threshold import entry_threshold

    return entry_threshold(scenario)


def point(scenario: dict[str, Any], seed: int) -> Rows:
    """One row: the threshold, and the incumbent's loss simulated where it is small enough to be."""
    from glasshouse.society.market_entry.exponents import entry_exponent

    market = EntryMarket.parse(scenario)
    found = _threshold(market)
    size = math.inf if market.N_I is None else market.N_I
    return [{
        "seed": seed, "N_I": market.N_I, "tau_I": market.tau_I, "tau_E": market.tau_E, "gamma": market.gamma,
        "delta": market.delta, "rho": market.rho, "value": found.N_E, "L_I": found.L_I, "gap": found.gap,
        "regime": found.regime, "theory_slope": entry_exponent(market, size), "converged": found.converged,
        "bracket": found.certificate,
        **_simulated(market, seed),
    }]  # fmt: skip


def page(scenario: EntryMarket, rows: Rows, seeds: Sequence[int]) -> Page:
    """The report: thresholds over N_I, losses simulated beside theory, the gap, the control."""
    from glasshouse.society.market_entry.exponents import entry_breaks
    from glasshouse.society.market_entry.threshold import entry_threshold

    entry, control, gap = (_first_seed(rows, name, seeds) for name in ("entry", "control", "gap"))
    against_all = entry_threshold(scenario.changed({"N_I": None}))
    first, second = entry_breaks(scenario)
    marks = tuple(Mark(x, name) for x, name in ((first, "moat shrinks"), (second, "flat")) if 20 <= x <= 1e9)
    main = Chart(
        "Data a newcomer needs against the incumbent's data", "incumbent's points N_I",
        "newcomer's points N_E*",
        lines=(
            _line("deterministic equivalent", entry, "theory"),
            _line("no safety limit", control, "control"),
        ),
        marks=marks, caption="Vertical lines: theorem 4, up to constants.", log_x=True, log_y=True,
    )  # fmt: skip
    simulated, compared = _losses(rows, "entry")
    charts = [main, *([simulated] if simulated else [])]
    if gap:
        charts.append(Chart(
            "Data needed as the newcomer's limit approaches the incumbent's", "gap of the plateaus G_I - G_E",
            "N_E* against an incumbent with infinitely many points",
            lines=(_line("deterministic equivalent", gap, "theory", x="gap"),), log_x=True, log_y=True,
        ))  # fmt: skip
    need = "no number of points suffices"
    if against_all.N_E is not None:
        need = f"{against_all.N_E:,.0f} points suffice"
    return Page(
        title="How much data does a newcomer need?",
        lead=(
            f"Against an incumbent with infinitely many points, {need} to perform as well "
            f"(regime: {against_all.regime}). The incumbent labels {scenario.alpha_I:.1%} of its points for "
            f"performance, the newcomer {scenario.alpha_E:.1%}."
        ),
        assumptions=(*ASSUMPTIONS, *scenario.warnings),
        charts=tuple(charts),
        compared=(*_slopes(scenario, entry), *compared),
        control=_control_words(control),
        control_charts=(Chart(
            "The same market without safety limits", "incumbent's points N_I", "newcomer's points N_E*",
            lines=(_line("no safety limit", control, "control"),), log_x=True, log_y=True,
        ),),
        certificates=(Certificate(
            "relative width of the bracket of N_E*", max((row["bracket"] for row in entry), default=0.0),
            1e-6, "bisection on the deterministic equivalent",
        ),),
        notes=(
            "Curves are the deterministic equivalent of the model, which simulation checks where incumbents "
            f"are small (up to {SIMULATED_UP_TO} points, {FEATURES} features); exponents are the paper's.",
            "Nothing here is fitted to data. EmpiricalMarket fits the same quantities to your own losses.",
        ),
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _threshold(market: EntryMarket) -> EntryResult:
    """The same for every seed of a sweep."""
    return solve(market, 0)


def _simulated(market: EntryMarket, seed: int) -> dict[str, float | None]:
    """The incumbent's loss: mean and error of the simulation, and the theory on its truncated spectrum."""
    empty = {"simulated": None, "simulated_se": None, "simulated_theory": None}
    if market.N_I is None or market.N_I > SIMULATED_UP_TO:
        return empty
    import numpy as np

    from glasshouse.society.market_entry.equivalent import best_losses
    from glasshouse.society.market_entry.monte_carlo import simulate_loss

    N = int(market.N_I)
    truncated = market.changed({"P": FEATURES})
    lam = float(best_losses(truncated, np.array(market.alpha_I), np.array([float(N)])).lam[0])
    found = simulate_loss(market, market.alpha_I, N, max(lam, 1e-12), P=FEATURES, draws=DRAWS, seed=seed)
    spread = float(found.L1[:, 0].std(ddof=1)) / math.sqrt(DRAWS)
    return {
        "simulated": float(found.L1[:, 0].mean()), "simulated_se": spread,
        "simulated_theory": float(found.theory[0]),
    }  # fmt: skip


def _first_seed(rows: Rows, sweep: str, seeds: Sequence[int]) -> Rows:
    """Thresholds do not depend on the seed: one row per point."""
    chosen = [row for row in rows if row["sweep"] == sweep and row["seed"] == seeds[0]]
    return [row for row in chosen if row["value"] is not None]


def _line(name: str, rows: Rows, kind: Any, x: str = "N_I") -> Line:
    shown = sorted((row for row in rows if row[x] is not None and row[x] > 0), key=lambda row: row[x])
    return Line(name, tuple(row[x] for row in shown), tuple(row["value"] for row in shown), kind)


def _losses(rows: Rows, sweep: str) -> tuple[Chart | None, list[Compared]]:
    """Simulated losses of small incumbents beside theory, pooled over seeds."""
    sizes: dict[float, Rows] = {}
    for row in rows:
        if row["sweep"] == sweep and row["simulated"] is not None:
            sizes.setdefault(row["N_I"], []).append(row)
    if not sizes:
        return None, []
    points, compared, theory = [], [], []
    for size, group in sorted(sizes.items()):
        n = len(group)
        mean, expected = (sum(row[k] for row in group) / n for k in ("simulated", "simulated_theory"))
        half = 1.96 * math.sqrt(sum(row["simulated_se"] ** 2 for row in group)) / n
        estimate = Estimate(mean, mean - half, mean + half, 0.95, n * DRAWS, "normal over draws")
        agrees = not estimate.excludes(expected) or abs(mean - expected) <= 0.03 * expected
        compared.append(Compared(f"incumbent's loss at N_I = {size:g}", expected, estimate, agrees))
        points.append((size, mean, mean - half, mean + half))
        theory.append((size, expected))
    x, value, low, high = zip(*points, strict=True)
    chart = Chart(
        "Performance loss of small incumbents", "incumbent's points N_I", "performance loss",
        lines=(Line("deterministic equivalent", *map(tuple, zip(*theory, strict=True))),),
        points=(Points("simulated", x, value, low, high, (True,) * len(x)),), log_x=True, log_y=True,
    )  # fmt: skip
    return chart, compared


def _slopes(scenario: EntryMarket, entry: Rows) -> list[Compared]:
    """The exponent of N_E* in N_I at both ends of the sweep, beside theorem 4's."""
    from glasshouse.statistics.slopes import log_slope

    ordered = sorted(entry, key=lambda row: row["N_I"])
    if len(ordered) < 6:
        return []
    out = []
    for name, part in (("smallest", ordered[:3]), ("largest", ordered[-3:])):
        slope = log_slope([row["N_I"] for row in part], [row["value"] for row in part])
        theory = part[1]["theory_slope"]
        agrees = abs(slope.value - theory) <= 0.15
        out.append(Compared(f"exponent of N_E* in N_I, {name} incumbents", theory, slope, agrees, "theorem"))
    return out


def _control_words(control: Rows) -> str:
    if not control:
        return "Without safety limits no threshold was found."
    ratios = [row["value"] / row["N_I"] for row in control]
    return (
        f"Without safety limits the newcomer needs between {min(ratios):.4f} and {max(ratios):.4f} times the "
        "incumbent's points: data are a moat."
    )


def _grids(scenario: EntryMarket) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]:
    unit = 1.0 if scenario.tau_unit == "L*" else scenario.L_star
    grids: dict[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]] = {
        "entry": ({}, {"N_I": _N_I}),
        "control": ({"tau_I": None, "tau_E": None}, {"N_I": _N_I}),
    }
    if scenario.alpha_I < 1:
        low = scenario.alpha_I**2 * unit
        limits = [low + (unit - low) * share for share in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)]
        grids["gap"] = ({"N_I": None}, {"tau_E": limits})
    return grids


DOOR = Door(
    name="entry",
    question="How much data does a newcomer need against an incumbent held to a stricter safety limit?",
    scenario=EntryMarket,
    solve=solve,
    point=point,
    default_grid=lambda scenario: {"N_I": _N_I},
    report_grids=_grids,
    page=page,
    x_axis={"N_I": "incumbent's points", "tau_E": "newcomer's limit", "tau_I": "incumbent's limit"},
    value="value",
)
