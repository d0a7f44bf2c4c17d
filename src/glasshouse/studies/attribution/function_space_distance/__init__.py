"""Function-space distance: does a sketch tell how far a network moved, and is that good for anything?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, bootstrap, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.fashion import data_file
from glasshouse.studies.attribution.function_space_distance.accuracy import accuracy_seed
from glasshouse.studies.attribution.function_space_distance.continual import EWC_WEIGHT, continual_seed
from glasshouse.studies.attribution.function_space_distance.uses import audit_seed, mislabel_seed

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = "Dhawan, Huang, Bae, Grosse 2023, arXiv 2302.03519"
OWN = "deterministic, class-conditional"
PARAMETRIC = (
    "EWC, diagonal Fisher of the loss",
    "diagonal Gauss-Newton of outputs",
    "Gauss-Newton of outputs, EK-FAC",
    "L2 of parameters",
)
"""The parametric rivals of the spec's table, and EK-FAC, which it lacks and which is the best of them."""
TABLE_RESAMPLES = 300
"""Of the intervals in tables; those of claims have 1,000."""


@dataclass(frozen=True)
class Config:
    """Seeds of each part; `rows` images, `rank` of the covariances kept, `draws` for influence."""

    seeds: int = 5
    accuracy_seeds: int = 3
    rows: int = 2000
    rank: int = 25
    tasks: int = 5
    audit_seeds: int = 8
    draws: int = 300


CLAIMS = (
    ClaimSpec(
        "function-space-distance/1a",
        "The class-conditional sketch estimates distances to 20 % (median relative error over 68 networks)",
        Threshold("<=", 0.2),
        control="the same sketch without classes",
        paper="one parameter per unit beats other parametric approximations",
    ),
    ClaimSpec(
        "function-space-distance/1b",
        "It ranks the networks by their distance (Spearman)",
        Threshold(">=", 0.98),
        null=0.9,
        control="the squared distance of parameters",
    ),
    ClaimSpec(
        "function-space-distance/1c",
        "It ranks them better than every parametric rival (Spearman, difference to the best of EWC, "
        "Gauss-Newton diagonal or by EK-FAC, and L2)",
        Threshold(">", 0.0),
        null=0.0,
        control="its distances permuted over the networks, minus the best rival",
        paper="ahead of EWC and other parametric approximations",
    ),
    ClaimSpec(
        "function-space-distance/3a",
        "Continual learning: mean final accuracy with the sketch's penalty exceeds EWC's by five points",
        Threshold(">=", 0.05),
        null=0.0,
        control="no penalty, minus EWC",
        paper="competitive with methods that store examples",
    ),
    ClaimSpec(
        "function-space-distance/3b",
        "... and that without a penalty by ten",
        Threshold(">=", 0.10),
        null=0.0,
        control="EWC with the squared gradient of the last batch, minus no penalty",
    ),
    ClaimSpec(
        "function-space-distance/3c",
        "... and is within three points of storing 40 examples per task",
        Threshold(">=", -0.03),
        control="no penalty, minus 40 stored examples",
    ),
    ClaimSpec(
        "function-space-distance/3dr",
        "Backward transfer of the sketch's penalty (share of correct answers lost on earlier tasks)",
        Threshold("report"),
    ),
    ClaimSpec(
        "function-space-distance/4",
        "Fine-tuned on a new class, the layers' distances rank as the true ones do (Kendall)",
        Threshold(">=", 0.6),
        null=0.0,
        control="the layers in random order",
    ),
    ClaimSpec(
        "function-space-distance/5a",
        "Self-influence from the sketch ranks points as self-influence with the data does (Spearman)",
        Threshold(">=", 0.8),
        null=0.0,
        control="self-influence in a network whose weights were shuffled",
        paper="close to the exact one without passes over data",
    ),
    ClaimSpec(
        "function-space-distance/5b",
        "Mislabelled points are found as well as with the data (AUROC, difference)",
        Threshold("between", -0.03, 0.03),
        control="self-influence in a network whose weights were shuffled, minus that with the data",
    ),
)


@study(
    "function-space-distance",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={
        "laptop": Config(),
        "paper": Config(
            seeds=20, accuracy_seeds=10, rows=4000, rank=100, tasks=10, audit_seeds=30, draws=1000
        ),
    },
)
def function_space_distance(config: Config, lab: Lab) -> Iterator[Yield]:
    """Function-space distances without the data."""
    if data_file() is None:
        lab.progress.say("the study needs the images that GLASSHOUSE_DATA points at: not run")
        return
    yield from _accuracy(config, lab)
    yield from _continual(config, lab)
    yield from _audit(config, lab)
    yield from _mislabel(config, lab)


# -- 1: accuracy of the estimate -----------------------------------------------------------------------------


def _accuracy(config: Config, lab: Lab) -> Iterator[Yield]:
    runs = [
        lab.step(f"accuracy-{seed}", lambda seed=seed: accuracy_seed(seed, config.rows, config.rank))
        for seed in range(config.accuracy_seeds)
    ]
    both = {name: _joined(runs, name) for name in runs[0]["distances"]}
    clusters = [f"{k}:{c}" for k, run in enumerate(runs) for c in run["clusters"]]
    count = f"{len(runs)} networks, {len(clusters)} perturbed ones in {len(set(clusters))} groups"

    def over(values: np.ndarray, statistic: Any, resamples: int = 1000) -> Estimate:
        return bootstrap(values, statistic, clusters=clusters, resamples=resamples)

    own = both[OWN]
    other = over(both["deterministic, global"], _median_error)
    yield lab.claim("function-space-distance/1a", over(own, _median_error), other, count)
    l2 = over(both["L2 of parameters"], _spearman)
    yield lab.claim("function-space-distance/1b", over(own, _spearman), l2, count)
    rivals = [both[name] for name in PARAMETRIC]
    permuted = np.array(own)
    permuted[:, 0] = np.random.default_rng(0).permutation(permuted[:, 0])
    best = over(_beside(own, rivals), _lead)
    worst = over(_beside(permuted, rivals), _lead)
    yield lab.claim("function-space-distance/1c", best, worst, count)
    yield Table("accuracy", [_row(name, values, runs, over) for name, values in both.items()])
    leads = {name: over(_beside(own, [both[name]]), _lead, TABLE_RESAMPLES) for name in PARAMETRIC}
    yield Table("leads", [{"over": name, **lead.to_json()} for name, lead in leads.items()])
    yield Figure("accuracy", _scatter(runs[0]))


def _joined(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """Estimate, truth and number of the base network, [networks, 3]."""
    parts = [
        np.stack([run["distances"][name], run["truth"], np.full(len(run["truth"]), k)], 1)
        for k, run in enumerate(runs)
    ]
    return np.concatenate(parts)


def _beside(own: np.ndarray, rivals: list[np.ndarray]) -> np.ndarray:
    """Own estimate, truth, number of the base network, then the rivals' estimates."""
    return np.concatenate([own, *(rival[:, :1] for rival in rivals)], 1)


def _median_error(values: np.ndarray) -> float:
    return float(np.median(np.abs(values[:, 0] / values[:, 1] - 1)))


def _spearman(values: np.ndarray, column: int = 0) -> float:
    """Mean over base networks of Spearman's correlation with the truth."""
    from scipy.stats import rankdata

    found = []
    for k in np.unique(values[:, 2]):
        part = values[values[:, 2] == k]
        found.append(np.corrcoef(rankdata(part[:, column]), rankdata(part[:, 1]))[0, 1])
    return float(np.mean(found))


def _lead(values: np.ndarray) -> float:
    """Spearman of the own estimate minus that of the best rival."""
    return _spearman(values) - max(_spearman(values, k) for k in range(3, values.shape[1]))


def _row(name: str, values: np.ndarray, runs: list[dict[str, Any]], over: Any) -> dict[str, Any]:
    error, rank = (over(values, f, TABLE_RESAMPLES) for f in (_median_error, _spearman))
    logs = [np.corrcoef(np.log(run["distances"][name]), np.log(run["truth"]))[0, 1] for run in runs]
    return {
        "estimator": name, "numbers stored": runs[0]["numbers"][name],
        "spearman": rank.value, "spearman low": rank.low, "spearman high": rank.high,
        "log pearson": float(np.mean(logs)), "median ratio": float(np.median(values[:, 0] / values[:, 1])),
        "median error": error.value, "error low": error.low, "error high": error.high,
        "ms per distance": float(np.mean([run["milliseconds"][name] for run in runs])),
        "truth from": float(values[:, 1].min()), "truth to": float(values[:, 1].max()),
    }  # fmt: skip


def _scatter(run: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    shown = (OWN, "deterministic, global", "Gauss-Newton of outputs, EK-FAC", "L2 of parameters")
    points = [
        go.Scatter(x=run["truth"], y=run["distances"][name], mode="markers", name=name) for name in shown
    ]
    figure = go.Figure(points).update_xaxes(type="log", title="true distance")
    return figure.update_yaxes(type="log", title="estimated distance")


# -- 3: continual learning -----------------------------------------------------------------------------------


def _continual(config: Config, lab: Lab) -> Iterator[Yield]:
    runs = [
        lab.step(f"continual-{seed}", lambda seed=seed: continual_seed(seed, config.rows, config.tasks))
        for seed in lab.seeds
    ]
    final = {name: [run[name]["final"] for run in runs] for name in runs[0]}
    ours, ewc, none = (final[name] for name in ("sketch", "EWC", "no penalty"))
    stored, straw = final["40 stored examples"], final["EWC, last batch"]
    note = (
        f"{config.tasks} tasks, {len(runs)} seeds; EWC's weight {EWC_WEIGHT:g} was its best on another seed"
    )
    yield lab.claim("function-space-distance/3a", _paired(ours, ewc), _paired(none, ewc), note)
    yield lab.claim("function-space-distance/3b", _paired(ours, none), _paired(straw, none), note)
    yield lab.claim("function-space-distance/3c", _paired(ours, stored), _paired(none, stored), note)
    back = [run["sketch"]["backward"] for run in runs]
    yield lab.claim("function-space-distance/3dr", t_interval(back), None, note)
    rows = []
    for name, values in final.items():
        accuracy, transfer = t_interval(values), t_interval([run[name]["backward"] for run in runs])
        rows.append({"penalty": name, "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
                     "backward transfer": transfer.value, "transfer low": transfer.low,
                     "transfer high": transfer.high})  # fmt: skip
    yield Table("continual", rows)


def _paired(a: list[float], b: list[float]) -> Estimate:
    return t_interval([x - y for x, y in zip(a, b, strict=True)])


# -- 4, 5: uses ----------------------------------------------------------------------------------------------


def _audit(config: Config, lab: Lab) -> Iterator[Yield]:
    runs = [
        lab.step(f"audit-{seed}", lambda seed=seed: audit_seed(seed, config.rows, config.rank))
        for seed in range(config.audit_seeds)
    ]
    names = runs[0]["kendall"]
    found = {name: t_interval([run["kendall"][name] for run in runs]) for name in names}
    yield lab.claim("function-space-distance/4", found["sketch"], found["random order"], "seven layers")
    yield Table("layers", [{"ranking": name, **estimate.to_json()} for name, estimate in found.items()])


def _mislabel(config: Config, lab: Lab) -> Iterator[Yield]:
    runs = [
        lab.step(f"mislabel-{seed}", lambda seed=seed: mislabel_seed(seed, config.rank, config.draws))
        for seed in lab.seeds
    ]
    names = runs[0]["auroc"]
    rank = {name: [run["spearman"][name] for run in runs] for name in names}
    area = {name: [run["auroc"][name] for run in runs] for name in names}
    sketch, data, shuffled = "sketch", "with data", "shuffled weights"
    yield lab.claim("function-space-distance/5a", t_interval(rank[sketch]), t_interval(rank[shuffled]))
    yield lab.claim(
        "function-space-distance/5b", _paired(area[sketch], area[data]), _paired(area[shuffled], area[data])
    )
    rows = [
        {"score": name, "spearman with data": float(np.mean(rank[name])), "auroc": t.value, "low": t.low,
         "high": t.high}
        for name in names
        for t in [t_interval(area[name])]
    ]  # fmt: skip
    yield Table("mislabel", rows)
