"""Study: when providers compete on a shared representation, a better one can serve users worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study
from glasshouse.studies.society import _model_competition as pieces

if TYPE_CHECKING:
    from glasshouse.society.model_competition._welfare import WelfareCurve
    from glasshouse.studies._lab import Lab

Rows = list[dict[str, Any]]
ALIKE = (0.2, 0.25, 0.3, 0.33)
APART = (0.36, 0.4, 0.45)
APART_SL = {0.36: 0.035, 0.4: 0.037, 0.45: 0.040}
GRID = tuple(round(0.02 * i, 2) for i in range(1, 26))
GRID_PROVIDERS = (2, 3, 4, 5)
PROVIDERS = (2, 3, 4)
MARGIN = 0.002
"""Numerical error of a simulated loss (the tolerance of 1a)."""
WIDEST = 0.01
"""A wider interval of the simulation says too little to agree with anything."""
TOLERANCE = 1e-3
"""The largest gain at which a profile is called an equilibrium (5a)."""
MONOTONE = 0.002
"""A fall of users' loss under a rising Bayes loss up to this is numerical error."""


@dataclass(frozen=True)
class Config:
    """`users` of settings 1 and 2; `grid_seeds` initialisations per grid point; `resamples` of the digits."""

    seeds: int = 10
    users: tuple[int, int] = (400, 10_000)
    grid_seeds: int = 5
    sigmas: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 10.0)
    resamples: int = 10
    rungs: tuple[str, ...] = ("pca:0", "pca:1", "pca:2", "pca:4", "pca:8", "pca:16", "pca:32")
    text_seeds: int = 3
    checkpoints: tuple[int, ...] = (0, 10, 20, 35, 50, 100, 200)


NONMONOTONE = "non-monotone in Bayes risk across representations (shape only; figures not available to us)"
WARM = "best responses searched by gradient ascent from the current predictor only, same seeds"
CLAIMS = [
    ClaimSpec(
        "model-competition/1a",
        "Below the threshold (m=3, c=0.3, alpha 0.2 to 0.33) users' loss is alpha within 0.002, for every "
        "alpha and initialisation.",
        Threshold(">=", 1.0),
        null=0.9,
        control=WARM,
        paper="all providers predict alike iff alpha <= 1/m (c -> 0)",
    ),
    ClaimSpec(
        "model-competition/1b",
        "Above it (alpha 0.36, 0.40, 0.45) users' loss is 0.035, 0.037, 0.040 within 0.003, for every alpha "
        "and initialisation.",
        Threshold(">=", 1.0),
        null=0.9,
        control="the loss of a single provider, alpha, on the same points",
        paper="0 for c -> 0",
    ),
    ClaimSpec(
        "model-competition/1c",
        "The local search of the reference implementation ends away from the equilibrium at alpha = 0.30 in "
        "at least one of five seeds.",
        Threshold(">=", 0.2),
        null=0.0,
        control="the multi-start search from the same seeds",
    ),
    ClaimSpec(
        "model-competition/2a",
        "With three providers users' loss is at least 3 times higher at sigma 1.5 than at sigma 10 although "
        "the Bayes loss is lower by at least 0.1 (a data seed where it is not counts as 0).",
        Threshold(">=", 3.0),
        null=1.0,
        control="the same ratio with two providers",
        paper=NONMONOTONE,
    ),
    ClaimSpec(
        "model-competition/2b",
        "With two providers users' loss never falls by more than 0.002 as the Bayes loss rises, in every "
        "data seed.",
        Threshold(">=", 1.0),
        null=0.5,
        control="three providers on the same users",
        paper="two providers: users' loss is the Bayes loss (threshold 1/2)",
    ),
    ClaimSpec(
        "model-competition/2c",
        "With two providers users' loss stays within 0.006 of the Bayes loss at every sigma (largest "
        "difference of a data seed, averaged over data seeds).",
        Threshold("<=", 0.006),
        control="three providers on the same users",
        paper="two providers: users' loss is the Bayes loss (threshold 1/2)",
    ),
    ClaimSpec(
        "model-competition/2d",
        "With four providers users' loss has its maximum inside: at sigma 1.5 it is higher than at both ends "
        "(sigma 0.5 and 10).",
        Threshold(">", 0.0),
        control="the same difference with two providers",
        paper=NONMONOTONE,
    ),
    ClaimSpec(
        "model-competition/3",
        "On scikit-learn's digits users' loss is more than 4 times higher with one principal component than "
        "with none, although the Bayes loss is lower.",
        Threshold(">", 4.0),
        null=1.0,
        control="the same ratio with two providers",
        paper=NONMONOTONE + ", CIFAR-10",
    ),
    ClaimSpec(
        "model-competition/4r",
        "A transformer learning to add: users' loss on its last residual stream at the checkpoint where it "
        "is highest, minus untrained, while the Bayes loss falls.",
        Threshold("report"),
    ),
    ClaimSpec(
        "model-competition/5a",
        "Every simulated point of this study is an equilibrium up to 0.001 of market share.",
        Threshold(">=", 1.0),
        null=0.99,
        control=WARM + ", certified by the full search",
    ),
    ClaimSpec(
        "model-competition/5b",
        "The closed form lies in the simulated interval (95 % over seeds, numerical error 0.002, half-width "
        "at most 0.01) on at least 95 % of the points of setting 1, m in {2, 3, 4, 5}.",
        Threshold(">=", 0.95),
        null=0.9,
        control=WARM + ", m=3",
        paper="exact for c -> 0",
    ),
]


@study(
    "model-competition",
    wing="society",
    paper="Jagadeesan et al. 2023, Improved Bayes Risk Can Yield Reduced Social Welfare Under Competition, "
    "arXiv 2306.14670",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(grid_seeds=20, resamples=50, text_seeds=10, seeds=20)},
)
def model_competition(config: Config, lab: Lab) -> Iterator[Yield]:
    """Model competition: better representations, worse welfare."""
    certified: Rows = []
    yield from _setting_1(config, lab, certified)
    yield from _setting_2(config, lab, certified)
    yield from _digits(config, lab, certified)
    yield from _text(config, lab, certified)
    yield from _grid(config, lab, certified)


def _setting_1(config: Config, lab: Lab, certified: Rows) -> Iterator[Yield]:
    found = _bare(lab, config, (*ALIKE, *APART), 3, lab.seeds)
    warm = _bare(lab, config, (*ALIKE, *APART), 3, lab.seeds, warm=True)
    certified += found
    alike, apart = _only(found, ALIKE), _only(found, APART)
    yield lab.claim(
        "model-competition/1a", _share(alike, _is_alpha), _share(_only(warm, ALIKE), _is_alpha),
        note=_by(alike, "alpha"),
    )  # fmt: skip
    yield lab.claim(
        "model-competition/1b", _share(apart, _is_apart),
        _share([{**row, "SL": row["alpha"]} for row in apart], _is_apart), note=_by(apart, "alpha"),
    )  # fmt: skip
    few = set(lab.seeds[:5])
    off = [[r for r in rows if r["alpha"] == 0.3 and r["seed"] in few] for rows in (warm, found)]
    yield lab.claim(
        "model-competition/1c", *(_rate(rows, lambda r: not _is_alpha(r)) for rows in off),
        note="losses of the local search: " + ", ".join(f"{r['SL']:.3f}" for r in off[0]),
    )  # fmt: skip
    yield Table(
        "setting-1", [{**r, "search": s} for s, rows in (("multi", found), ("warm", warm)) for r in rows]
    )


def _setting_2(config: Config, lab: Lab, certified: Rows) -> Iterator[Yield]:
    by = {
        m: [
            lab.cached(
                "gaussians", pieces.gaussians, sigmas=list(config.sigmas), m=m, n=config.users[1], seed=seed
            )
            for seed in lab.seeds
        ]
        for m in PROVIDERS
    }  # fmt: skip
    certified += [row for draws in by.values() for rows in draws for row in rows]
    three, two, four = by[3], by[2], by[4]
    yield lab.claim("model-competition/2a", _mean(three, _rise), _mean(two, _rise), note=_levels(three))
    monotone = [{"ok": _monotone(rows)} for rows in two]
    yield lab.claim(
        "model-competition/2b", _share(monotone, lambda r: r["ok"]),
        _share([{"ok": _monotone(rows)} for rows in three], lambda r: r["ok"]), note=_levels(two),
    )  # fmt: skip
    yield lab.claim("model-competition/2c", _mean(two, _furthest), _mean(three, _furthest))
    ends = (min(config.sigmas), max(config.sigmas))
    peaks = [max(rows, key=lambda r: r["SL"])["sigma"] for rows in four]
    yield lab.claim(
        "model-competition/2d", _mean(four, lambda rows: _inside(rows, ends)),
        _mean(two, lambda rows: _inside(rows, ends)),
        note=f"{_levels(four)}; the maximum lies at sigma " + ", ".join(f"{p:g}" for p in peaks),
    )  # fmt: skip
    yield Table("setting-2", [row for draws in by.values() for rows in draws for row in rows])
    yield Figure("setting-2", _sigma_figure(by))


def _digits(config: Config, lab: Lab, certified: Rows) -> Iterator[Yield]:
    curves = {}
    for m in (3, 2):
        rows = [
            row
            for draw in range(config.resamples + 1)
            for row in lab.cached("digits", pieces.digits, rungs=list(config.rungs), m=m, draw=draw)
        ]
        certified += rows
        curves[m] = _curve(rows, m)
    three = curves[3]
    fall = three.difference("pca:1", "pca:0", "bayes")
    yield lab.claim(
        "model-competition/3", three.ratio("pca:1", "pca:0"), curves[2].ratio("pca:1", "pca:0"),
        note=f"Bayes loss at pca:1 minus pca:0: {fall}; users' loss by rung: " + "; ".join(
            f"{name} {three.estimate(name).value:.3f} (Bayes {three.estimate(name, 'bayes').value:.3f})"
            for name in three.names
        ),
    )  # fmt: skip
    yield Table("digits", [{"m": m, **row} for m, curve in curves.items() for row in curve.rows])
    yield Figure("digits", three.plot())


def _text(config: Config, lab: Lab, certified: Rows) -> Iterator[Yield]:
    draws = [
        lab.cached("text", pieces.text, checkpoints=list(config.checkpoints), m=3, seed=seed)
        for seed in lab.seeds[: config.text_seeds]
    ]
    certified += [row for rows in draws for row in rows]
    means = {
        step: tuple(_mean(draws, lambda rows, i=i, c=c: rows[i][c]) for c in ("bayes", "SL"))
        for i, step in enumerate(config.checkpoints)
    }
    peak = max(range(len(config.checkpoints)), key=lambda i: means[config.checkpoints[i]][1].value)
    yield lab.claim(
        "model-competition/4r", _mean(draws, lambda rows: rows[peak]["SL"] - rows[0]["SL"]),
        note="Bayes loss / users' loss after training steps: " + "; ".join(
            f"{step}: {bayes.value:.3f} / {loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]"
            for step, (bayes, loss) in means.items()
        ),
    )  # fmt: skip
    yield Table("text", [row for rows in draws for row in rows])


def _grid(config: Config, lab: Lab, certified: Rows) -> Iterator[Yield]:
    seeds = lab.seeds[: config.grid_seeds]
    by = {m: _bare(lab, config, GRID, m, seeds) for m in GRID_PROVIDERS}
    warm = _bare(lab, config, GRID, 3, seeds, warm=True)
    certified += [row for rows in by.values() for row in rows]
    held = _share(certified, lambda row: row["eps_nash"] <= TOLERANCE)
    worst = max(row["eps_nash"] for row in certified)
    yield lab.claim(
        "model-competition/5a", held, _share(warm, lambda row: row["eps_nash"] <= TOLERANCE),
        note=f"largest gain of any searched deviation {worst:.1e}; {len(certified)} profiles",
    )  # fmt: skip
    points = [_agreement(rows, m, alpha) for m, rows in by.items() for alpha in GRID]
    missed = [f"m={p['m']} alpha={p['alpha']}" for p in points if not p["agrees"]]
    yield lab.claim(
        "model-competition/5b", _share(points, lambda p: p["agrees"]),
        _share([_agreement(warm, 3, alpha) for alpha in GRID], lambda p: p["agrees"]),
        note="missed: " + (", ".join(missed) or "none"),
    )  # fmt: skip
    yield Table("phase-diagram", points)
    yield Figure("phase-diagram", _phase_figure(by))


def _bare(
    lab: Lab, config: Config, alphas: Sequence[float], m: int, seeds: Sequence[int], *, warm: bool = False
) -> Rows:
    """Setting 1; the local search starts as the reference does, at standard deviation 0.1."""
    search, init_std = ("warm-start", 0.1) if warm else ("multi-start", 0.5)
    return [
        row
        for seed in seeds
        for row in lab.cached(
            "no-information", pieces.no_information, alphas=list(alphas), m=m, n=config.users[0],
            search=search, init_std=init_std, seed=seed,
        )
    ]  # fmt: skip


def _agreement(rows: Rows, m: int, alpha: float) -> dict[str, Any]:
    """Whether every equilibrium that seeds reached is one of the closed form's, within the interval."""
    from glasshouse.society.model_competition.theory import closed_form
    from glasshouse.statistics import t_interval

    known = closed_form([alpha], m, 0.3)["SL"].tolist()
    groups: dict[float, list[float]] = {}
    for row in _only(rows, (alpha,)):
        nearest = min(known, key=lambda value: abs(value - row["SL"]))
        groups.setdefault(nearest, []).append(row["SL"])
    agrees = True
    for value, losses in groups.items():
        found = t_interval(losses) if len(losses) > 1 else Estimate.exact(losses[0], 1)
        inside = found.low - MARGIN <= value <= found.high + MARGIN
        agrees &= inside and (found.high - found.low) / 2 <= WIDEST
    losses = [row["SL"] for row in _only(rows, (alpha,))]
    return {
        "m": m, "alpha": alpha, "agrees": bool(agrees), "closed_form": ", ".join(f"{v:.4f}" for v in known),
        "least": min(losses), "largest": max(losses), "seeds": len(losses),
    }  # fmt: skip


def _share(rows: Rows, holds: Callable[[dict[str, Any]], bool]) -> Estimate:
    """How many rows hold, with an exact lower bound: an 'every' claim."""
    from glasshouse.statistics import one_sided_bound

    return one_sided_bound(sum(bool(holds(row)) for row in rows), len(rows))


def _rate(rows: Rows, holds: Callable[[dict[str, Any]], bool]) -> Estimate:
    from glasshouse.statistics import clopper_pearson

    return clopper_pearson(sum(bool(holds(row)) for row in rows), len(rows))


def _mean(draws: list[Rows], of: Callable[[Rows], float]) -> Estimate:
    from glasshouse.statistics import t_interval

    return t_interval([of(rows) for rows in draws])


def _is_alpha(row: dict[str, Any]) -> bool:
    return abs(row["SL"] - row["alpha"]) <= 0.002


def _is_apart(row: dict[str, Any]) -> bool:
    return abs(row["SL"] - APART_SL[row["alpha"]]) <= 0.003


def _only(rows: Rows, alphas: Sequence[float]) -> Rows:
    return [row for row in rows if row["alpha"] in alphas]


def _at(rows: Rows, sigma: float) -> dict[str, Any]:
    return next(row for row in rows if row["sigma"] == sigma)


def _rise(rows: Rows) -> float:
    near, far = _at(rows, 1.5), _at(rows, 10.0)
    return near["SL"] / far["SL"] if far["bayes"] - near["bayes"] >= 0.1 else 0.0


def _monotone(rows: Rows) -> bool:
    ordered = sorted(rows, key=lambda row: row["bayes"])
    return all(b["SL"] >= a["SL"] - MONOTONE for a, b in pairwise(ordered))


def _furthest(rows: Rows) -> float:
    return max(abs(row["SL"] - row["bayes"]) for row in rows)


def _inside(rows: Rows, ends: tuple[float, float]) -> float:
    return _at(rows, 1.5)["SL"] - max(_at(rows, end)["SL"] for end in ends)


def _levels(draws: list[Rows]) -> str:
    """Mean Bayes loss and users' loss at each sigma."""
    told = []
    for i, row in enumerate(draws[0]):
        bayes, loss = (_mean(draws, lambda rows, c=c: rows[i][c]) for c in ("bayes", "SL"))  # noqa: B023
        told.append(
            f"sigma {row['sigma']:g}: {bayes.value:.3f} / {loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]"
        )
    return "Bayes / users' loss at " + "; ".join(told)


def _by(rows: Rows, column: str) -> str:
    values: dict[Any, list[float]] = {}
    for row in rows:
        values.setdefault(row[column], []).append(row["SL"])
    return "users' loss at " + "; ".join(
        f"{column} {value:g}: {min(losses):.4f} to {max(losses):.4f}" for value, losses in values.items()
    )


def _curve(rows: Rows, m: int) -> WelfareCurve:
    from glasshouse.society.model_competition._welfare import WelfareCurve

    return WelfareCurve(tuple(rows), m, 1797)


def _sigma_figure(by: dict[int, list[Rows]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for m, draws in by.items():
        columns = {c: [_mean(draws, lambda rows, i=i, c=c: rows[i][c]) for i in range(len(draws[0]))]
                   for c in ("bayes", "SL")}  # fmt: skip
        figure.add_trace(
            go.Scatter(
                name=f"{m} providers", mode="lines+markers", x=[e.value for e in columns["bayes"]],
                y=[e.value for e in columns["SL"]],
                error_y={"array": [e.high - e.value for e in columns["SL"]]},
            )
        )  # fmt: skip
    return figure.update_layout(
        title="Gaussian users", xaxis_title="Bayes loss", yaxis_title="users' loss at equilibrium"
    )


def _phase_figure(by: dict[int, Rows]) -> Any:
    import plotly.graph_objects as go

    from glasshouse.society.model_competition.theory import closed_form

    figure = go.Figure()
    for m, rows in by.items():
        theory = closed_form(list(GRID), m, 0.3)
        figure.add_trace(
            go.Scatter(
                name=f"closed form, m={m}", x=theory["alpha"].tolist(), y=theory["SL"].tolist(), mode="lines"
            )
        )
        figure.add_trace(
            go.Scatter(
                name=f"simulated, m={m}", mode="markers", x=[r["alpha"] for r in rows],
                y=[r["SL"] for r in rows],
                marker={"symbol": ["circle" if r["eps_nash"] <= TOLERANCE else "circle-open" for r in rows]},
            )
        )  # fmt: skip
    return figure.update_layout(
        title="Users of whom nothing is known", xaxis_title="minority share", yaxis_title="users' loss"
    )
