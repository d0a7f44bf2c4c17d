"""The door of content incentives: points of a sweep, and the page of a report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.society._door import Door, Rows
from glasshouse.society._page import Certificate, Chart, Compared, Line, Page, Points
from glasshouse.society.content_incentives.scenario import ASSUMPTIONS, ContentMarket
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.equilibria import ContentEquilibrium

_ETAS = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
TOLERANCE = 1e-3


def solve(scenario: ContentMarket, seed: int) -> ContentEquilibrium:
    """Best responses from a random start (stream `seed`), certified; an unfinished one says so itself."""
    from glasshouse.society.content_incentives import equilibria

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `converged` and the summary say it
        return equilibria.solve(scenario, tol=TOLERANCE, start="random", seed=seed)


def point(scenario: dict[str, Any], seed: int) -> Rows:
    """One row: quality and welfare at the profile found, the closed forms, the certificate."""
    from glasshouse.society.content_incentives.sweeps import closed_forms

    market = ContentMarket.parse(scenario)
    found = solve(market, seed)
    theory = closed_forms(market)
    return [{
        "seed": seed, "algo": market.algo, "P": market.P, "T": market.T, "beta": market.beta, "c": market.c,
        "eta": market.eta, "value": found.value, "first_round": float(found.quality[:, 0].mean()),
        "welfare": float(found.welfare.mean()), "first_welfare": float(found.welfare[0]),
        "eps_nash": found.eps_nash, "eps_error": found.eps_error, "converged": found.converged,
        "regime": found.regime, "search": found.certificate_method,
        **{name: None if math.isnan(value) else value for name, value in theory.items()},
    }]  # fmt: skip


def page(scenario: ContentMarket, rows: Rows, seeds: Sequence[int]) -> Page:
    """The report: quality over learning rates beside theory, rules compared, the control."""
    by = {name: [row for row in rows if row["sweep"] == name] for name in ("rates", "rules", "control")}
    main = Chart(
        "Quality in the first round against the learning rate", "learning rate eta", "quality",
        lines=tuple(
            line for line in (
                _line("symmetric first-order condition", by["rates"], "foc"),
                _line("upper bound", by["rates"], "bound"),
            ) if line.x
        ),
        points=(_points("best responses", by["rates"]),), log_x=True, log_y=True,
        caption="Hollow: a cycle or an uncertified profile; no equilibrium is claimed there.",
    )  # fmt: skip
    certified = [row for row in by["rates"] if row["converged"]]
    rules = {row["algo"]: _mean(by["rules"], row["algo"]) for row in by["rules"]}
    said = "; ".join(f"{algo} {e.value:.3f}" for algo, e in rules.items())
    worst = max(rows, key=lambda row: row["eps_nash"] if row["converged"] else -1.0)
    off = [row["first_round"] for row in by["control"]]
    return Page(
        title="What content quality does the recommender induce?",
        lead=(
            f"Mean quality over rounds by rule: {said}. Under a learning rule quality falls with the "
            f"learning rate ({len(certified)} of {len(by['rates'])} profiles are certified equilibria)."
        ),
        assumptions=(*ASSUMPTIONS, *scenario.warnings),
        charts=(main,),
        compared=tuple(_compared(by["rates"])),
        control=(
            "With recommendations that do not depend on content (uniform), producers offer quality "
            f"{max(off, default=0.0):.3f} at most: what quality there is comes from the rule."
        ),
        control_charts=(Chart(
            "The same market with uniform recommendations", "learning rate eta (unused)", "quality",
            points=(_points("uniform", by["control"]),), log_x=True,
        ),),
        certificates=(Certificate(
            "largest gain among the profiles called equilibria", worst["eps_nash"], TOLERANCE,
            worst["search"],
        ),),
        notes=(
            "The upper bound is a theorem for every Nash equilibrium, pure or mixed; the first-order "
            "condition is a candidate, an equilibrium only where the certificate says so.",
            "EXP3's outcomes are simulated and searched within classes of content sequences.",
        ),
    )  # fmt: skip


def _line(name: str, rows: Rows, column: str) -> Line:
    found = {row["eta"]: row[column] for row in rows if row[column] is not None and row[column] > 0}
    return Line(name, tuple(sorted(found)), tuple(found[eta] for eta in sorted(found)))


def _points(name: str, rows: Rows) -> Points:
    from glasshouse.statistics import t_interval

    etas = sorted({row["eta"] for row in rows})
    groups = [[row for row in rows if row["eta"] == eta] for eta in etas]
    found = [t_interval([row["first_round"] for row in group]) for group in groups]
    ends = [(e.low, e.high) if len(g) > 1 else (e.value, e.value) for e, g in zip(found, groups, strict=True)]
    return Points(
        name, tuple(etas), tuple(e.value for e in found), tuple(max(low, 0.0) for low, _ in ends),
        tuple(high for _, high in ends), tuple(all(row["converged"] for row in group) for group in groups),
    )  # fmt: skip


def _mean(rows: Rows, algo: str) -> Estimate:
    values = [row["value"] for row in rows if row["algo"] == algo]
    return Estimate.exact(
        sum(values) / len(values), len(values), (max(values) - min(values)) / 2, "range over seeds"
    )


def _compared(rows: Rows) -> list[Compared]:
    """The closed form beside what best responses found, at every learning rate where it exists."""
    out = []
    for eta in sorted({row["eta"] for row in rows}):
        group = [row for row in rows if row["eta"] == eta]
        if group[0]["foc"] is None:
            continue
        values = [row["first_round"] for row in group]
        measured = Estimate.exact(
            sum(values) / len(values), len(values), (max(values) - min(values)) / 2, "range over seeds"
        )
        certified = all(row["converged"] for row in group)
        agrees = abs(measured.value - group[0]["foc"]) <= 0.02 * group[0]["foc"] if certified else None
        name = f"first-round quality at eta = {eta:g}" + ("" if certified else " (no equilibrium found)")
        out.append(Compared(name, group[0]["foc"], measured, agrees))
    return out


def _grids(scenario: ContentMarket) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]:
    several = scenario.users is not None
    rules = (
        ["hedge", "punish-direction", "punish-user-utility"] if several else ["hedge", "exp3", "punish-hedge"]
    )
    learning = scenario.algo if scenario.algo in ("hedge", "exp3") else "hedge"
    return {
        "rates": ({"algo": learning, "eta_schedule": None}, {"eta": _ETAS}),
        "rules": ({}, {"algo": [*rules, "uniform"]}),
        "control": ({"algo": "uniform", "eta_schedule": None}, {"eta": _ETAS[::2]}),
    }


DOOR = Door(
    name="content",
    question="What content quality does a learning recommender induce, and which rule would induce more?",
    scenario=ContentMarket,
    solve=solve,
    point=point,
    default_grid=lambda scenario: {"eta": _ETAS},
    report_grids=_grids,
    page=page,
    x_axis={"eta": "learning rate", "T": "rounds", "P": "producers"},
    value="value",
)
