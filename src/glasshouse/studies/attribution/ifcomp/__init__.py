"""IF-COMP: does one linear step say which points are foreign, which labels wrong, and how sure to be?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, spearman, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.fashion import data_file
from glasshouse.studies.attribution.ifcomp.measure import calibrated, mislabelled, novelty
from glasshouse.studies.attribution.ifcomp.oracle import oracle
from glasshouse.studies.attribution.ifcomp.organism import CORRUPTIONS, RECIPES, SEVERITIES

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = "Ng, Grosse and Ghassemi, ICML 2024, arXiv 2406.02745"
FRESH = 20
"""The claims' seeds start here: what is chosen by hand was chosen on seeds 0 to 14."""
Runs = list[dict[str, Any]]


@dataclass(frozen=True)
class Config:
    """`seeds` networks of each recipe, `oracles` of which are trained on `points` points."""

    seeds: int = 8
    oracles: int = 8
    points: int = 30
    steps: int = 20
    members: int = 3


SHUFFLED = "the complexities of all points in random order, minus the maximal probability's"
CLAIMS = (
    ClaimSpec(
        "ifcomp/1a",
        "Complexity knows images with permuted pixels better than the maximal probability does, on a network "
        "of moderate fit (AUROC difference)",
        Threshold(">=", 0.10),
        null=0.0,
        control=SHUFFLED,
        paper="matches or beats strong baselines on OpenOOD",
    ),
    ClaimSpec(
        "ifcomp/1b",
        "The same on a network that has learnt noisy labels by heart",
        Threshold(">=", 0.10),
        null=0.0,
        control=SHUFFLED,
        paper="matches or beats strong baselines on OpenOOD",
    ),
    ClaimSpec(
        "ifcomp/1c",
        "Complexity knows images upside down at least as well as the maximal probability, by heart (AUROC "
        "difference)",
        Threshold(">=", 0.0),
        null=0.0,
        control=SHUFFLED,
    ),
    ClaimSpec(
        "ifcomp/2a",
        "Hindsight probabilities lower the calibration error by a quarter, alpha tuned on other points "
        "(relative fall, moderate fit)",
        Threshold(">=", 0.25),
        null=0.0,
        control="each point with the norms of another one, alpha tuned as well",
        paper="better calibrated than strong baselines on CIFAR-10-C",
    ),
    ClaimSpec(
        "ifcomp/2br",
        "Calibration error of temperature scaling, minus that of hindsight probabilities (moderate fit)",
        Threshold("report"),
    ),
    ClaimSpec(
        "ifcomp/2c",
        "The same under shift, mean over 4 corruptions and 5 severities",
        Threshold(">=", 0.0),
        null=-0.01,  # a hundredth of calibration error is less than 1,000 rows can tell
        control="each point with the norms of another one",
    ),
    ClaimSpec(
        "ifcomp/3",
        "Under shift hindsight probabilities are better calibrated at every severity (least fall of the "
        "median error over the corruptions)",
        Threshold(">", 0.0),
        null=-0.01,
        control="each point with the norms of another one",
        paper="better calibrated than strong baselines on CIFAR-10-C",
    ),
    ClaimSpec(
        "ifcomp/4a",
        "The code length finds wrong labels as well as the loss does (AUROC difference, moderate fit)",
        Threshold(">=", -0.01),
        null=-0.01,
        control="self-influence at temperature 1000, minus the loss",
        paper="matches or beats strong baselines on noisy CIFAR",
    ),
    ClaimSpec(
        "ifcomp/4b",
        "The code length finds wrong labels better than self-influence does (AUROC difference, by heart)",
        Threshold(">", 0.0),
        null=0.0,
        control="self-influence at temperature 1000, minus self-influence at 1",
        paper="matches or beats strong baselines on noisy CIFAR",
    ),
    ClaimSpec(
        "ifcomp/5a",
        "The linear step ranks points and labels as training on them does (Spearman of p_k norm_k and gain)",
        Threshold(">=", 0.5),
        null=0.0,
        control="the norms of other points",
        paper="the linear step follows retraining closely",
    ),
    ClaimSpec(
        "ifcomp/5b",
        "It does so better than plain gradient norms (Spearman difference)",
        Threshold(">", 0.0),
        null=0.0,
        control="the norms of other points, minus plain gradient norms",
    ),
)


@study(
    "ifcomp",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(seeds=20, oracles=20, points=100, members=5)},
)
def ifcomp(config: Config, lab: Lab) -> Iterator[Yield]:
    """Complexity, hindsight probabilities and code lengths on Fashion-MNIST with noisy labels."""
    if data_file() is None:
        lab.progress.say("ifcomp needs the images that GLASSHOUSE_DATA points at: not run")
        return
    seeds = [FRESH + seed for seed in lab.seeds]

    def all_of(what: str, fn: Callable[..., Any], names: Sequence[str], **more: Any) -> dict[str, Runs]:
        return {
            name: [lab.step(f"{what}-{name}-{s}", lambda s=s, name=name: fn(name, s, **more)) for s in seeds]
            for name in names
        }

    yield from _novelty(lab, all_of("novelty", novelty, list(RECIPES)))
    yield from _calibration(lab, all_of("calibration", calibrated, list(RECIPES), members=config.members))
    yield from _labels(lab, all_of("labels", mislabelled, list(RECIPES)))
    seeds = seeds[: config.oracles]
    yield from _oracle(lab, all_of("oracle", oracle, ["moderate"], points=config.points, steps=config.steps))


def _difference(runs: Runs, read: Callable[[dict[str, Any]], dict[str, float]], a: str, b: str) -> Estimate:
    """Mean over seeds of one number minus another, with Student's interval."""
    return t_interval([read(run)[a] - read(run)[b] for run in runs])


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _novelty(lab: Lab, found: dict[str, Runs]) -> Iterator[Yield]:
    for claim, name, kind in (
        ("1a", "moderate", "permuted"), ("1b", "memorised", "permuted"), ("1c", "memorised", "upside-down"),
    ):  # fmt: skip
        runs = found[name]

        def read(run: dict[str, Any], kind: str = kind) -> dict[str, float]:
            return run["kinds"][kind]  # type: ignore[no-any-return]

        fit = np.mean([run["train_accuracy"] for run in runs])
        note = f"{len(runs)} seeds; accuracy on the noisy rows {fit:.3f}"
        estimate = _difference(runs, read, "complexity", "MSP")
        yield lab.claim(f"ifcomp/{claim}", estimate, _difference(runs, read, "shuffled", "MSP"), note)
    rows = [
        {"column": name, "points": kind, **_means([run["kinds"][kind] for run in runs])}
        for name, runs in found.items() for kind in runs[0]["kinds"]
    ]  # fmt: skip
    yield Table("out-of-distribution", rows)


def _calibration(lab: Lab, found: dict[str, Runs]) -> Iterator[Yield]:
    runs, other = found["moderate"], "norms of other points"

    def fall(key: str) -> Estimate:
        return relative_fall([run["plain"]["raw"] for run in runs], [run["plain"][key] for run in runs])

    note = f"{len(runs)} seeds; tuned on 500 points, 1,000 to measure; 15 bins of equal mass"
    yield lab.claim("ifcomp/2a", fall("IF-COMP"), fall(other), note)
    plain = _difference(runs, lambda run: run["plain"], "temperature scaling", "IF-COMP")
    yield lab.claim("ifcomp/2br", plain, None, note)

    def shifted(run: dict[str, Any]) -> dict[str, float]:
        return _means(list(run["shift"].values()))

    rival = "temperature scaling"
    yield lab.claim(
        "ifcomp/2c",
        _difference(runs, shifted, rival, "IF-COMP"),
        _difference(runs, shifted, rival, other),
        note,
    )
    yield lab.claim("ifcomp/3", _least_fall(runs, "IF-COMP"), _least_fall(runs, other), note)
    rows = [{"column": name, "points": "as they are", **_means([run["plain"] for run in kept])}
            for name, kept in found.items()]  # fmt: skip
    rows += [
        {"column": name, "points": f"severity {s}", **_means([_median(run, s) for run in kept])}
        for name, kept in found.items() for s in SEVERITIES
    ]  # fmt: skip
    yield Table("calibration", rows)
    yield Figure("calibration", _shift_figure(rows))


def relative_fall(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Estimate:
    """1 - mean(after) / mean(before) over seeds, with the interval of Fieller.

    It holds the r for which after - (1 - r) before may be zero on average by Student's interval. Nothing is
    divided, so one small `before` does no harm.
    """

    def edge(upper: bool) -> float:
        low, high = -5.0, 1.0
        for _ in range(60):
            r = (low + high) / 2
            gap = t_interval([a - (1 - r) * b for a, b in zip(after, before, strict=True)], level)
            # The gap grows with r; the upper edge is where even its low end has reached zero.
            high, low = (r, low) if (gap.low if upper else gap.high) > 0 else (high, r)
        return low

    value = 1 - float(np.mean(after) / np.mean(before))
    low, high = edge(upper=False), edge(upper=True)
    return Estimate(value, min(low, value), max(high, value), level, len(after), "fieller, t over seeds")


def _median(run: dict[str, Any], severity: int) -> dict[str, float]:
    """Median error over the corruptions of one severity."""
    rows = [run["shift"][f"{kind} {severity}"] for kind in CORRUPTIONS]
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def _least_fall(runs: Runs, key: str) -> Estimate:
    """The severity where the median error falls least; that it falls everywhere needs no correction."""
    falls = [t_interval([_median(run, s)["raw"] - _median(run, s)[key] for run in runs]) for s in SEVERITIES]
    return min(falls, key=lambda estimate: (estimate.value, estimate.low))


def _labels(lab: Lab, found: dict[str, Runs]) -> Iterator[Yield]:
    for claim, name, rival in (("4a", "moderate", "loss"), ("4b", "memorised", "self-influence, T=1")):
        runs = found[name]

        def read(run: dict[str, Any]) -> dict[str, float]:
            return run["auroc"]  # type: ignore[no-any-return]

        fit = np.mean([run["train_accuracy"] for run in runs])
        note = f"{len(runs)} seeds; accuracy on the noisy rows {fit:.3f}"
        control = _difference(runs, read, "self-influence, T=1000", rival)
        yield lab.claim(f"ifcomp/{claim}", _difference(runs, read, "code length", rival), control, note)
    yield Table(
        "wrong-labels", [{"column": n, **_means([r["auroc"] for r in runs])} for n, runs in found.items()]
    )


def _oracle(lab: Lab, found: dict[str, Runs]) -> Iterator[Yield]:
    runs = found["moderate"]
    values = [
        {key: spearman(np.ravel(run["gain"]), np.ravel(told)).value for key, told in run["told"].items()}
        for run in runs
    ]
    own, other = (t_interval([v[key] for v in values]) for key in ("EK-FAC", "other points"))
    note = f"{len(runs)} seeds x {len(runs[0]['gain'])} points x 10 labels"
    yield lab.claim("ifcomp/5a", own, other, note)
    better, control = (
        t_interval([v[key] - v["identity"] for v in values]) for key in ("EK-FAC", "other points")
    )
    yield lab.claim("ifcomp/5b", better, control, note)
    yield Table("linearisation", [{"seed": run["seed"], **v} for run, v in zip(runs, values, strict=True)])


def _shift_figure(rows: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    kept = [row for row in rows if row["column"] == "moderate"]
    figure = go.Figure()
    for key in ("raw", "temperature scaling", "IF-COMP"):
        figure.add_scatter(x=[row["points"] for row in kept], y=[row[key] for row in kept], name=key)
    return figure.update_layout(yaxis_title="calibration error (median over corruptions)")
