"""The roster on images: LDS with cost, removals and retraining, mislabelled rows, controls, damping."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.studies.attribution.attribution_methods.roster import REMOVED, ROSTER, trained
from glasshouse.studies.attribution.fashion import (
    NOISY,
    Recipe,
    margins,
    queries,
    train_mlp,
    train_rows,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution import ScoreTable
    from glasshouse.attribution.evaluate import Brittleness, LeaveSomeOut, RetrainBank, Retrainings

OTHER = "EK-FAC, another query"
"""Control of removals: the rows that score highest for a query of another class."""


def lds_rows(recipe: Recipe, bank: RetrainBank, models: int) -> dict[str, Any]:
    """Per method: LDS per query, mean over `models`; cost and top-20 overlap of the first model."""
    from glasshouse.attribution.evaluate import measured, top_overlap
    from glasshouse.attribution.logra.projection import RankWarning

    found: dict[str, Any] = {}
    for seed in range(models):
        run = trained(recipe, seed)
        for name, build in ROSTER.items():
            method = build(run)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RankWarning)  # the last layer is thinner than LoGra's rank
                row = measured(name, method, run.model, run.rows, queries(), bank, measurement="margin")
            mine = found.setdefault(
                name, {"lds": [], "cost": row.cost.to_json(), "overlap": top_overlap(row.table, 20)}
            )
            mine["lds"].append(row.by_query.tolist())
    for mine in found.values():
        mean = np.mean(mine["lds"], axis=0)  # undefined for a query whose measurement never changes
        mine["lds"] = [None if np.isnan(v) else float(v) for v in mean]
    return found


def gaps(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The label's logit minus the largest other one [Q]: positive exactly where the answer is right."""
    import torch

    with torch.no_grad():
        z = model(x)
        own = z.gather(1, y[:, None]).squeeze(1)
        return (own - z.scatter(1, y[:, None], -torch.inf).amax(1)).double().numpy()


def retrainings(recipe: Recipe, seeds: int, store: Path) -> Retrainings:
    """Models without some rows, measured twice: margins, then gaps."""
    from glasshouse.attribution.evaluate import Retrainings

    (x, y), _ = train_rows(recipe)
    qx, qy = queries()

    def train(rows: list[int], seed: int) -> np.ndarray:
        model = train_mlp(x[rows], y[rows], seed, recipe)
        return np.stack([margins(model, qx, qy), gaps(model, qx, qy)])

    return Retrainings(train, recipe.rows, seeds=seeds, store=store, name=f"fashion {recipe.name}")


def removal_tables(recipe: Recipe) -> dict[str, ScoreTable]:
    """Scores of the methods whose top rows are removed, and of EK-FAC for queries of other classes."""
    from dataclasses import replace

    run, asked = trained(recipe, 0), queries()
    tables = {name: ROSTER[name](run).fit(run.model, run.rows).score(asked, "margin") for name in REMOVED}
    label = asked[1].numpy()
    away = [int(np.flatnonzero(label != label[q])[q % (label != label[q]).sum()]) for q in range(len(label))]
    tables[OTHER] = replace(tables["EK-FAC"], scores=tables["EK-FAC"].scores[away])
    return tables


def removals(
    recipe: Recipe, count: int, ks: tuple[int, ...], flips: tuple[int, ...], seeds: int, store: Path
) -> tuple[LeaveSomeOut, Brittleness]:
    """Leave-some-out of the first `count` queries and brittleness of the same, on shared models."""
    from glasshouse.attribution.evaluate import brittleness, leave_some_out

    tables, models = removal_tables(recipe), retrainings(recipe, seeds, store)
    asked = list(range(count))
    some = leave_some_out(tables, models, ks=ks, queries=asked)
    (_, labels), _ = train_rows(recipe)
    brittle = brittleness(
        tables, models.of(1), ks=flips, queries=asked,
        row_classes=labels.numpy(), query_classes=queries()[1].numpy(),
    )  # fmt: skip
    return some, brittle


def mislabelled(models: int) -> dict[str, Any]:
    """Scores [N] of suspicion on the noisy recipe (mean over models) and the truth."""
    from glasshouse.attribution import EKFAC, TRAK, TracIn, as_units
    from glasshouse.attribution.checkpoints import loaded
    from glasshouse.attribution.evaluate import el2n, losses

    rows, wrong = train_rows(NOISY)
    units = as_units(rows)
    total: dict[str, np.ndarray] = {}
    for seed in range(models):
        run = trained(NOISY, seed)
        early = []
        for point in run.path[:3]:
            with loaded(run.model, point) as working:
                early.append(working)
        scores = {
            "self-influence, EK-FAC": EKFAC(seed=seed).fit(run.model, rows).self_score(),
            "self-influence, TracIn": TracIn(run.path).fit(run.model, rows).self_score(),
            "self-influence, TRAK": TRAK(seed=seed).fit(run.model, rows).self_score(),
            "gradient norm": EKFAC("identity").fit(run.model, rows).self_score(),
            "loss": losses(run.model, units),
            "EL2N, first half of training": el2n(early, units),
        }
        for name, values in scores.items():
            total[name] = total.get(name, 0) + values.astype(np.float64) / models
    return {"wrong": wrong.tolist(), "scores": {name: values.tolist() for name, values in total.items()}}


def randomisation(recipe: Recipe, models: int) -> dict[str, Any]:
    """Spearman per query of EK-FAC's scores with those of shuffled weights, and of another trained model."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.evaluate import randomised
    from glasshouse.attribution.evaluate.lds import _spearman_columns

    rows, asked = train_rows(recipe)[0], queries()
    found: dict[str, Any] = {"shuffled": [], "another": [], "seed": []}
    networks = [train_mlp(*rows, seed, recipe) for seed in range(models + 1)]
    scores = [EKFAC(seed=0).fit(m, rows).score(asked, "margin").scores.astype(np.float64) for m in networks]
    for seed in range(models):
        broken = EKFAC(seed=0).fit(randomised(networks[seed], seed=seed), rows).score(asked, "margin").scores
        found["shuffled"] += _spearman_columns(scores[seed].T, broken.astype(np.float64).T).tolist()
        found["another"] += _spearman_columns(scores[seed].T, scores[seed + 1].T).tolist()
        found["seed"] += [seed] * len(broken)
    return found


def damping_choice(recipe: Recipe, bank: RetrainBank) -> list[dict[str, Any]]:
    """`auto_damping` of EK-FAC and TRAK on the bank's first twenty subsets, judged on all of them."""
    from glasshouse.attribution import EKFAC, TRAK
    from glasshouse.attribution.evaluate import RetrainBank, auto_damping
    from glasshouse.attribution.evaluate.lds import lds_by_query
    from glasshouse.statistics import bootstrap

    run, asked = trained(recipe, 0), queries()
    few, found = RetrainBank(bank.masks[:20], bank.values[:20]), []
    for name, method in (("EK-FAC", EKFAC()), ("TRAK, 1 model", TRAK())):
        method.fit(run.model, run.rows)
        usual = lds_by_query(method.score(asked, "margin").scores, bank)
        chosen = auto_damping(method, asked, few, measurement="margin")
        best = lds_by_query(method.score(asked, "margin").scores, bank)
        found.append({
            "recipe": recipe.name, "method": name, "damping": str(chosen.chosen),
            "lds": (mean := bootstrap(best)).value, "low": mean.low, "high": mean.high,
            "lds of auto": float(usual.mean()), "chosen by query": best.tolist(),
            "auto by query": usual.tolist(), "sweep": {_short(d): v for d, v in chosen.lds.items()},
        })  # fmt: skip
    return found


def _short(damping: float | str) -> str:
    return damping if isinstance(damping, str) else f"{damping:.2g}"
