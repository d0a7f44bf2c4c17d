"""The entrance of `glasshouse society competition`: a market, a point of a sweep, the grids of a report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from glasshouse.runtime.seeds import derive, rng
from glasshouse.society._door import Door, Rows
from glasshouse.society.model_competition import theory
from glasshouse.society.model_competition._result import Equilibrium
from glasshouse.society.model_competition._story import page
from glasshouse.society.model_competition.dynamics import equilibrium
from glasshouse.society.model_competition.scenario import LADDERS, CompetitionScenario
from glasshouse.society.model_competition.settings import gaussian_minority

ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.43, 0.46, 0.49)
"""Minority shares of the phase diagram."""


def solve(scenario: CompetitionScenario, seed: int) -> Equilibrium:
    """One market. On digits and features, seed 0 is everybody, another seed a bootstrap sample of users."""
    data = scenario.labelled(derive(seed, "users"))
    X, y = data.X, data.y
    if seed and not scenario.synthetic:
        drawn = rng(seed, "resample").integers(len(y), size=len(y))
        X, y = X[drawn], y[drawn]
    market = scenario.market(classes=int(data.y.max()) + 1)
    return equilibrium(X, y, market, seed=seed, starts=scenario.starts, device=scenario.device)


def point(scenario: dict[str, Any], seed: int) -> Rows:
    """One row: the scenario's fields, what was found with its certificate, and theory where there is one."""
    one = CompetitionScenario.parse(scenario)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the row says `converged`
        found = solve(one, seed)
    low, high = theory_bounds(one)
    fields = {name: _cell(value) for name, value in one.to_json().items()}
    return [{
        **fields, "seed": seed, "SL": found.SL, "bayes": found.bayes, "agreement": found.agreement,
        "k_hetero": found.k_hetero, "eps_nash": found.eps_nash, "converged": found.converged,
        "cycle": found.cycle, "regime": found.regime, "rounds": len(found.trajectory),
        "users_counted": found.users, "tolerance": found.tol, "search": found.search,
        "theory_low": low, "theory_high": high,
    }]  # fmt: skip


def theory_bounds(scenario: CompetitionScenario) -> tuple[float | None, float | None]:
    """Least and largest social loss over equilibria in closed form; None where none applies.

    With no information this is exact; for Gaussian users it is what providers with any function would do,
    not with linear ones.
    """
    if scenario.reputations is not None or scenario.users not in ("no-information", "gaussians"):
        return None, None
    m, c = scenario.providers, scenario.noise
    if scenario.users == "gaussians":
        alpha, mass = gaussian_minority(scenario.sigma)
        return theory.expected_social_loss(alpha, m, c, weights=mass)
    share = min(scenario.alpha, 1 - scenario.alpha)
    return theory.expected_social_loss([round(share * scenario.size) / scenario.size], m, c)


def default_grid(scenario: CompetitionScenario) -> Mapping[str, Sequence[Any]]:
    """The representation of these users from poor to rich."""
    field, values = LADDERS[scenario.users]
    return {field: values}


def report_grids(
    scenario: CompetitionScenario,
) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]:
    """The phase diagram on users of whom nothing is known, the ladder, and the ladder with two providers.

    One provider, the mechanism switched off, is the Bayes loss that every row carries.
    """
    bare = {"users": "no-information", "features": None, "size": 400}  # every alpha of the grid is exact
    grids = {"phase": (bare, {"alpha": ALPHAS}), "ladder": ({}, default_grid(scenario))}
    if scenario.providers > 2:
        grids["two"] = ({"providers": 2, "reputations": None}, default_grid(scenario))
    return grids


def _cell(value: Any) -> Any:
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, list) else value


DOOR = Door(
    name="competition",
    question="When the representation that all providers share gets better, are users served better?",
    scenario=CompetitionScenario,
    solve=solve,
    point=point,
    default_grid=default_grid,
    report_grids=report_grids,
    page=page,
    x_axis={
        "alpha": "minority share alpha",
        "sigma": "standard deviation",
        "representation": "representation",
    },
    value="SL",
)
