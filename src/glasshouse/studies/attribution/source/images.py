"""SOURCE and its rivals on images: scores of one model, their LDS on a bank, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.studies.attribution.fashion import Recipe, queries, train_mlp, train_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.attribution.source import SOURCE, Checkpoint

    Labelled = tuple[torch.Tensor, torch.Tensor]

SWEEP = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Absolute dampings of the EK-FAC baseline beside "auto", a tenth of the mean eigenvalue."""

Scores = dict[str, np.ndarray]
Costs = dict[str, dict[str, float]]


class Keeper:
    """An `on_step` of `train_mlp` that keeps checkpoints at the ends of `count` equal parts."""

    def __init__(self, steps: int, count: int, rate: float, *, stage: str = "train", offset: int = 0) -> None:
        self.planned = {(2 * steps * (k + 1) + count) // (2 * count) for k in range(count)}
        self.rate, self.stage, self.offset = rate, stage, offset
        self.found: list[Checkpoint] = []

    def __call__(self, model: nn.Module, step: int) -> None:
        """Keep this step if it was planned."""
        from glasshouse.attribution.source import Checkpoint

        if step in self.planned:
            self.found.append(Checkpoint(model, self.offset + step, self.rate, self.stage))


def grown(recipe: Recipe, seed: int, count: int) -> tuple[nn.Module, list[Checkpoint], Labelled]:
    """A model of the recipe, `count` checkpoints of its training, and its rows."""
    (x, y), _ = train_rows(recipe)
    keep = Keeper(recipe.epochs * -(-len(x) // recipe.batch), count, recipe.rate)
    return train_mlp(x, y, seed, recipe, keep), keep.found, (x, y)


def source_of(recipe: Recipe, checkpoints: list[Checkpoint], segments: int, seed: int = 0) -> SOURCE:
    """SOURCE told how the recipe trains."""
    from glasshouse.attribution.source import SOURCE

    return SOURCE(
        checkpoints, segments=segments, momentum=recipe.momentum, weight_decay=recipe.decay, seed=seed
    )


def shuffled(model: nn.Module, checkpoints: list[Checkpoint]) -> tuple[nn.Module, list[Checkpoint]]:
    """The control: every model of the path with its weights permuted within tensors."""
    from dataclasses import replace

    from glasshouse.attribution.checkpoints import loaded
    from glasshouse.attribution.evaluate import randomised

    found = []
    for point in checkpoints:
        with loaded(model, point) as working:
            found.append(replace(point, weights=randomised(working)))
    return randomised(model), found


def all_scores(recipe: Recipe, seed: int, *, segments: int, count: int) -> tuple[Scores, Costs]:
    """Every method's scores [Q, N] on one model, with CPU seconds and bytes."""
    model, points, rows = grown(recipe, seed, count)
    found, costs = rivals(model, rows, queries(), points, recipe, seed)
    timed(found, costs, "SOURCE", source_of(recipe, points, segments, seed), model, rows, queries())
    control = source_of(recipe, (turned := shuffled(model, points))[1], segments, seed)
    found["SOURCE, shuffled weights"] = control.fit(turned[0], rows).score(queries(), "margin").scores
    return found, costs


def rivals(
    model: nn.Module, rows: Labelled, asked: Labelled, points: list[Checkpoint], recipe: Recipe, seed: int
) -> tuple[Scores, Costs]:
    """EK-FAC over a sweep of dampings, gradient dot product, TracIn and representation cosine."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.tracin import TracIn

    found: Scores = {}
    costs: Costs = {}
    timed(found, costs, "identity", EKFAC("identity"), model, rows, asked)
    ekfac = EKFAC(seed=seed)
    timed(found, costs, "EK-FAC", ekfac, model, rows, asked)
    for damping in SWEEP:
        found[f"EK-FAC, damping {damping:g}"] = redamped(ekfac, damping, asked)
    timed(found, costs, "TracIn", TracIn(points), model, rows, asked)
    found["representation"] = representation(model, rows, asked)
    return found, costs


def timed(
    found: Scores,
    costs: Costs,
    name: str,
    method: Any,
    model: nn.Module,
    rows: Any,
    asked: Labelled,
    **score: Any,
) -> None:
    """Fit, score, and note both with what they cost."""
    start = time.process_time()
    method.fit(model, rows)
    fitted = time.process_time()
    found[name] = method.score(asked, "margin", **score).scores
    costs[name] = {
        "fit CPU seconds": fitted - start, "score CPU seconds": time.process_time() - fitted,
        "factor bytes": float(method.cost(len(asked[0]))["factor_bytes"]),
    }  # fmt: skip


def redamped(method: EKFAC, damping: float, asked: Labelled) -> np.ndarray:
    """Scores of the same factors with another damping."""
    before, method.damping = method.damping, damping
    try:
        return method.score(asked, "margin").scores
    finally:
        method.damping = before


def representation(model: nn.Module, rows: Labelled, asked: Labelled) -> np.ndarray:
    """Cosine of last hidden layers, positive for the same label."""
    import torch

    with torch.no_grad():
        a, b = (torch.nn.functional.normalize(model[:-1](x), dim=1) for x in (asked[0], rows[0]))  # type: ignore[index]
    return ((a @ b.T) * (2.0 * (asked[1][:, None] == rows[1][None]).float() - 1)).numpy()


def lds_of(models: Iterable[Callable[[], tuple[Scores, Costs]]], bank: RetrainBank) -> dict[str, Any]:
    """LDS per query: each model's own, averaged over models (`one`), and of the summed scores (`all`).

    `each` is every model's mean; `cost` is that of the last model.
    """
    from glasshouse.attribution.evaluate.lds import lds_by_query

    single: dict[str, list[np.ndarray]] = {}
    total: Scores = {}
    last: Costs = {}
    for build in models:
        scores, last = build()
        for name, matrix in scores.items():
            single.setdefault(name, []).append(lds_by_query(matrix, bank))
            total[name] = total.get(name, 0) + matrix
    return {
        "one": {name: _plain(np.mean(values, 0)) for name, values in single.items()},
        "each": {name: [float(np.nanmean(v)) for v in values] for name, values in single.items()},
        "all": {name: _plain(lds_by_query(matrix, bank)) for name, matrix in total.items()},
        "cost": last,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """For JSON: queries without a rank correlation are None."""
    return [None if np.isnan(v) else float(v) for v in values]
