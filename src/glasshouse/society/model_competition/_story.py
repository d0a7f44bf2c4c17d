"""The report of a competition scenario: what its rows say, in the order a reader asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glasshouse.society._door import Rows
from glasshouse.society._page import Certificate, Chart, Compared, Line, Mark, Page, Points
from glasshouse.society.model_competition import theory
from glasshouse.society.model_competition._welfare import resampled
from glasshouse.society.model_competition.scenario import LADDERS, CompetitionScenario
from glasshouse.statistics import Estimate, t_interval

MARGIN = 0.002
"""Numerical error of a simulated loss: predictors saturate, but never reach 0 and 1."""
TITLE = "Does a better model serve users better when providers compete?"


def page(scenario: CompetitionScenario, rows: Rows, seeds: Sequence[int]) -> Page:
    """The report; `rows` are those of `report_grids`, each with its `sweep`."""
    phase = [row for row in rows if row["sweep"] == "phase"]
    ladder = [row for row in rows if row["sweep"] == "ladder"]
    two = [row for row in rows if row["sweep"] == "two"]
    field = LADDERS[scenario.users][0]
    return Page(
        title=TITLE,
        lead=_lead(scenario, ladder, field),
        assumptions=_assumptions(scenario),
        charts=(phase_chart(scenario, phase), ladder_chart(scenario, ladder, field)),
        compared=(_bracket(scenario, phase), *_compared(scenario, phase), *_gaussian(ladder, field)),
        control=_control(scenario, ladder, two, field),
        control_charts=(_control_chart(scenario, ladder, two, field),),
        certificates=_certificates({"phase diagram": phase, "ladder": ladder, "two providers": two}),
        notes=(
            "Theorem-backed: the lines of the phase diagram (0-1 predictions, any function of x, equal "
            "reputations). Simulated: every point. Fitted to your data: only the linear predictors, where "
            "the users are your own features.",
            "The equilibrium that is simulated is selected by random initialisation; others may exist, and "
            "points with several are averages over seeds.",
            "A certificate covers the deviations that were searched. Providers with richer predictors than "
            "linear ones, prices, entry, and users who learn over time are outside the model.",
            "Losses on the users the predictors were fitted to are optimistic for new users.",
        ),
        provenance={"scenario": scenario.to_json(), "seeds": list(seeds)},
    )


def phase_chart(scenario: CompetitionScenario, rows: Rows) -> Chart:
    """Users' loss against the minority share: closed form, one provider, and simulation."""
    m, c = scenario.providers, scenario.noise
    grid = np.linspace(0.0, 0.5, 251)
    lines = [Line("one provider (no competition)", (0.0, 0.5), (0.0, 0.5), "control")]
    for k in range(m + 1) if scenario.reputations is None else ():
        stands = theory.is_equilibrium(grid, m, c, k)
        loss = np.where(stands, theory.social_loss(grid, m, c, k), np.nan)
        if stands.any():
            lines.append(Line(f"theory, {m} providers", tuple(grid), tuple(loss)))
    edge = theory.threshold(m, c)
    marks = (Mark(edge, f"alpha* = {edge:.3f}"),) if scenario.reputations is None else ()
    return Chart(
        title=f"Users of whom nothing is known: {m} providers, noise {c:g}",
        x_title="share of users with the minority label (lower: better informed)",
        y_title="mean loss of users at the provider they chose",
        lines=tuple(lines),
        points=(_points("simulated", rows, "alpha", "SL", lambda row: min(row["alpha"], 1 - row["alpha"])),),
        marks=marks,
        caption="Left of the boundary all providers predict alike and users lose alpha. Right of it somebody "
        "offers the other label, and users who can tell lose less.",
    )


def ladder_chart(scenario: CompetitionScenario, rows: Rows, field: str) -> Chart:
    """Users' loss against the Bayes loss of the representation."""
    by = _groups(rows, field)
    names = tuple(f"{field} {value}" for value in by)
    bayes = tuple(_estimate(part, "bayes").value for part in by.values())
    loss = [_estimate(part, "SL") for part in by.values()]
    top = max(bayes, default=0.5)
    lines = [Line("one provider (no competition)", (0.0, top), (0.0, top), "control")]
    told = sorted((b, part[0]["theory_low"]) for b, part in zip(bayes, by.values(), strict=True)
                  if part[0]["theory_low"] is not None)  # fmt: skip
    if told:
        name = "theory, any function" if field == "sigma" else f"theory, {scenario.providers} providers"
        lines.append(Line(name, tuple(b for b, _ in told), tuple(t for _, t in told)))
    order = sorted(range(len(bayes)), key=lambda i: bayes[i])
    lines.append(
        Line("simulated", tuple(bayes[i] for i in order), tuple(loss[i].value for i in order), "measured")
    )
    points = Points(
        "simulated", bayes, tuple(e.value for e in loss), tuple(e.low for e in loss),
        tuple(e.high for e in loss), tuple(all(r["converged"] for r in part) for part in by.values()), names,
    )  # fmt: skip
    return Chart(
        title=f"Representations from poor (right) to rich (left): users '{scenario.users}'",
        x_title="Bayes loss of the representation (what one provider reaches)",
        y_title="mean loss of users at the provider they chose",
        lines=tuple(lines),
        points=(points,),
        caption="Where points rise to the left, a better representation leaves users worse off.",
    )


def _control_chart(scenario: CompetitionScenario, ladder: Rows, two: Rows, field: str) -> Chart:
    top = max((row["bayes"] for row in ladder), default=0.5)
    points = [_points("one provider", ladder, field, "bayes", lambda row: row["bayes"])]
    if two:
        points.append(_points("two providers", two, field, "SL", lambda row: row["bayes"]))
    return Chart(
        title="Without competition, and with two providers only",
        x_title="Bayes loss of the representation", y_title="mean loss of users",
        lines=(Line("loss equals Bayes loss", (0.0, top), (0.0, top), "control"),), points=tuple(points),
        caption="With one provider users' loss is the Bayes loss: every better representation helps.",
    )  # fmt: skip


def _lead(scenario: CompetitionScenario, ladder: Rows, field: str) -> str:
    by = _groups(ladder, field)
    losses = {value: (_estimate(part, "bayes"), _estimate(part, "SL")) for value, part in by.items()}
    pair = _worst_rise(by)
    head = f"{scenario.providers} providers share one representation of users '{scenario.users}'. "
    if pair is None:
        return head + (
            f"Along {len(losses)} representations no pair was found where the Bayes loss falls and users' "
            "loss rises with both 95% intervals excluding zero."
        )
    worse, better, rise = pair
    return head + (
        f"Going from {field} {worse} to {field} {better}, the Bayes loss falls from "
        f"{losses[worse][0].value:.3f} to {losses[better][0].value:.3f}, yet users' loss rises from "
        f"{losses[worse][1].value:.3f} to {losses[better][1].value:.3f}: by {rise.value:.3f}, 95% interval "
        f"{rise.low:.3f} to {rise.high:.3f} over {rise.n:,} "
        f"{'data seeds' if scenario.synthetic else 'users'}."
    )


def _worst_rise(by: dict[Any, Rows]) -> tuple[Any, Any, Estimate] | None:
    """The pair with the largest certain rise of users' loss under a certain fall of the Bayes loss."""
    best: tuple[Any, Any, Estimate] | None = None
    for a, worse in by.items():
        for b, better in by.items():
            bayes, loss = _difference(better, worse, "bayes"), _difference(better, worse, "SL")
            certain = bayes.high < 0 < loss.low
            if certain and (best is None or loss.value > best[2].value):
                best = (a, b, loss)
    return best


def _control(scenario: CompetitionScenario, ladder: Rows, two: Rows, field: str) -> str:
    said = "With one provider the game is gone: users' loss is the Bayes loss and never rises as it falls. "
    by = _groups(two, field)
    if not by:
        return said + "The scenario itself has two providers."
    gaps = [abs(_estimate(p, "SL").value - _estimate(p, "bayes").value) for p in by.values()]
    pair = _worst_rise(by)
    rise = "no rise under a falling Bayes loss was found" if pair is None else (
        f"the largest rise is {pair[2].value:.3f} [{pair[2].low:.3f}, {pair[2].high:.3f}]"
    )  # fmt: skip
    return said + (
        f"With two providers on the same representations users' loss stays within {max(gaps):.2g} of the "
        f"Bayes loss, and {rise}; with {scenario.providers} the curve above is drawn."
    )


def _bracket(scenario: CompetitionScenario, rows: Rows) -> Compared:
    """Between which minority shares providers stop predicting alike."""
    alike = [r["alpha"] for r in rows if r["k_hetero"] == 0 and r["converged"]]
    apart = [r["alpha"] for r in rows if r["k_hetero"] > 0 and r["converged"]]
    name = "minority share at which both labels are offered"
    if not alike or not apart:
        measured = Estimate.undefined("one regime only was met on the grid", len(rows))
        return Compared(name, None, measured, None)
    low, high = min(max(alike), min(apart)), max(max(alike), min(apart))
    measured = Estimate(
        (low + high) / 2, low, high, 0.95, len(rows), "between the last grid point alike and the first apart"
    )
    if scenario.reputations is not None:
        return Compared(name, None, measured, None)
    edge = theory.threshold(scenario.providers, scenario.noise)
    return Compared(name, edge, measured, low <= edge <= high)


def _compared(scenario: CompetitionScenario, rows: Rows) -> list[Compared]:
    found = []
    for alpha, part in _groups(rows, "alpha").items():
        measured = _estimate(part, "SL")
        low, high = part[0]["theory_low"], part[0]["theory_high"]
        if low is None:
            found.append(Compared(f"users' loss at alpha = {alpha:g}", None, measured, None))
            continue
        near = low if abs(measured.value - low) <= abs(measured.value - high) else high
        agree = measured.low - MARGIN <= near <= measured.high + MARGIN
        found.append(Compared(f"users' loss at alpha = {alpha:g}", near, measured, agree))
    return found


def _gaussian(rows: Rows, field: str) -> list[Compared]:
    """Theory for any function beside linear providers: shown, not judged, since the classes differ."""
    if field != "sigma":
        return []
    return [
        Compared(f"users' loss at sigma = {sigma:g} (theory: any function)", part[0]["theory_low"],
                 _estimate(part, "SL"), None)
        for sigma, part in _groups(rows, "sigma").items()
    ]  # fmt: skip


def _certificates(sweeps: dict[str, Rows]) -> tuple[Certificate, ...]:
    found = []
    for name, rows in sweeps.items():
        if rows:
            worst = max(rows, key=lambda row: row["eps_nash"])
            open_ = sum(not row["converged"] for row in rows)
            what = f"{name}: worst of {len(rows)}" + (f" ({open_} without an equilibrium)" if open_ else "")
            found.append(Certificate(what, worst["eps_nash"], worst["tolerance"], worst["search"]))
    return tuple(found)


def _assumptions(scenario: CompetitionScenario) -> tuple[str, ...]:
    m, c = scenario.providers, scenario.noise
    w = "equal" if scenario.reputations is None else ", ".join(f"{x:g}" for x in scenario.reputations)
    return (
        f"{m} providers choose predictors to maximise their expected market share, nothing else.",
        f"Users choose a provider with probability proportional to reputation times exp(-loss / {c:g}): "
        f"users know their own loss, up to noise. Reputations: {w}.",
        f"All providers share one representation and use linear predictors of temperature {scenario.T:g}.",
        "Providers know the distribution of users and respond in turn until nobody gains.",
        "A user's loss lies between 0 (served perfectly) and 1, the same at a provider for every user "
        "with the same features and label.",
    )


def _groups(rows: Rows, field: str) -> dict[Any, Rows]:
    found: dict[Any, Rows] = {}
    for row in rows:
        found.setdefault(row[field], []).append(row)
    return found


def _estimate(rows: Rows, column: str) -> Estimate:
    return _interval([row[column] for row in rows], rows)


def _difference(a: Rows, b: Rows, column: str) -> Estimate:
    """A minus b, seed by seed."""
    other = {row["seed"]: row[column] for row in b}
    return _interval([row[column] - other[row["seed"]] for row in a], a)


def _interval(values: list[float], rows: Rows) -> Estimate:
    """Seeds are independent data for synthetic users, else everybody (seed 0) and bootstrap samples."""
    synthetic = rows[0]["users"] in ("no-information", "gaussians", "subpopulations")
    if synthetic or rows[0]["seed"] != 0:
        return t_interval(values) if max(values) > min(values) or len(values) < 2 else _constant(values)
    return resampled(values[0], values[1:], rows[0]["users_counted"])


def _constant(values: list[float]) -> Estimate:
    return Estimate(values[0], values[0], values[0], 0.95, len(values), "equal in every seed")


def _points(name: str, rows: Rows, field: str, column: str, at: Callable[[Any], float]) -> Points:
    by = _groups(rows, field)
    found = [_estimate(part, column) for part in by.values()]
    return Points(
        name,
        tuple(float(np.mean([at(row) for row in part])) for part in by.values()),
        tuple(e.value for e in found),
        tuple(e.low if math.isfinite(e.low) else e.value for e in found),
        tuple(e.high if math.isfinite(e.high) else e.value for e in found),
        tuple(all(row["converged"] for row in part) for part in by.values()),
        tuple(f"{field} {value}" for value in by),
    )
