"""A linear classifier whose 60 training steps are differentiated exactly: the truth for SOURCE and EK-FAC."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng, seeded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution.source import Checkpoint

    Labelled = tuple[torch.Tensor, torch.Tensor]

ROWS, ASKED, INPUTS, CLASSES = 200, 20, 20, 4
BATCH, EPOCHS, RATE, MOMENTUM = 20, 6, 0.01, 0.9
STEPS = EPOCHS * ROWS // BATCH
DAMPINGS: tuple[float | str, ...] = ("auto", 1e-3)


def toy_data(seed: int) -> tuple[Labelled, Labelled]:
    """Inputs of unequal scale with labels drawn from a softmax teacher: training rows and queries."""
    import torch

    draw = rng(seed, "unrolled toy")
    scale = np.linspace(0.5, 1.5, INPUTS)
    x = draw.standard_normal((ROWS + ASKED, INPUTS)) * scale
    logits = x @ draw.standard_normal((INPUTS, CLASSES)) * 2 / INPUTS**0.5
    y = (logits + draw.gumbel(size=logits.shape)).argmax(1)  # a draw from the softmax
    inputs, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    return (inputs[:ROWS], labels[:ROWS]), (inputs[ROWS:], labels[ROWS:])


def train_toy(
    rows: Labelled, seed: int, count: int
) -> tuple[nn.Module, nn.Module, list[Checkpoint], list[list[int]]]:
    """First and final model, `count` checkpoints at the ends of equal parts, and the batches in order."""
    import torch
    from torch import nn

    from glasshouse.studies.attribution.source.images import Keeper

    with seeded(seed, "unrolled toy"):
        model = nn.Linear(INPUTS, CLASSES)
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    draw = rng(seed, "unrolled toy", "order")
    order = [b.tolist() for _ in range(EPOCHS) for b in np.split(draw.permutation(ROWS), ROWS // BATCH)]
    keep = Keeper(STEPS, count, RATE)
    for k, at in enumerate(order, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[0][at]), rows[1][at]).backward()
        optimizer.step()
        keep(model, k)
    return start, model, keep.found, order


def toy_seed(seed: int, *, segments: int, count: int) -> dict[str, Any]:
    """Spearman per query with the exact derivative, by method; `slope` of exact on SOURCE's scores."""
    import torch

    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.objectives import default_objective, measure
    from glasshouse.attribution.source import SOURCE, unrolled_influence
    from glasshouse.attribution.units import as_units

    torch.set_num_threads(1)
    rows, asked = toy_data(seed)
    start, final, points, order = train_toy(rows, seed, count)
    exact = unrolled_influence(
        start, as_units(rows), as_units(asked), objective=default_objective(as_units(rows).batch([0])),
        measurement=measure("margin"),
        order=order, rates=[RATE] * STEPS, momentum=MOMENTUM,
    ).numpy()  # fmt: skip
    source = SOURCE(points, segments=segments, momentum=MOMENTUM, seed=seed).fit(final, rows)
    scores = {"SOURCE": source.score(asked, "margin").scores}
    for damping in DAMPINGS:
        ekfac = EKFAC(damping=damping, seed=seed).fit(final, rows)  # type: ignore[arg-type]
        scores[f"EK-FAC, {damping}"] = ekfac.score(asked, "margin").scores
    scores["identity"] = EKFAC("identity").fit(final, rows).score(asked, "margin").scores
    scores["rows permuted"] = scores["SOURCE"][:, rng(seed, "toy control").permutation(ROWS)]
    own = scores["SOURCE"]
    slope = float((own * exact).sum() / (own * own).sum())
    return {"seed": seed, "slope": slope} | {name: _spearman(s, exact) for name, s in scores.items()}


def _spearman(scores: np.ndarray, exact: np.ndarray) -> list[float]:
    from scipy.stats import spearmanr

    return [float(spearmanr(a, b)[0]) for a, b in zip(scores, exact, strict=True)]
