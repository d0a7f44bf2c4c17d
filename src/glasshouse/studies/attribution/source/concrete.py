"""Real data, report only: strength of concrete (UCI), an MLP for regression, measured by squared error."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng, seeded
from glasshouse.studies.attribution.fashion import OnStep
from glasshouse.studies.attribution.source.images import SWEEP, Costs, Keeper, Scores

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.studies._lab import Lab

    Labelled = tuple[torch.Tensor, torch.Tensor]

ROWS, ASKED = 500, 60


@dataclass(frozen=True)
class Recipe:
    """SGD on the mean squared error."""

    epochs: int = 20
    batch: int = 25
    rate: float = 0.01
    momentum: float = 0.9
    decay: float = 1e-4


RECIPE = Recipe()


def concrete_file() -> Path | None:
    """The table, where GLASSHOUSE_DATA points at it."""
    root = os.environ.get("GLASSHOUSE_DATA")
    path = Path(root) / "uci-concrete" / "concrete.data" if root else None
    return path if path is not None and path.exists() else None


def concrete() -> tuple[Labelled, Labelled]:
    """Training rows and held-out rows, inputs and target in units of the training rows' spread."""
    import torch

    path = concrete_file()
    assert path is not None
    table = np.loadtxt(path)
    table = table[rng(0, "concrete").permutation(len(table))]
    table = (table - table[:ROWS].mean(0)) / table[:ROWS].std(0)
    inputs, target = torch.from_numpy(table[:, :8]).float(), torch.from_numpy(table[:, 8:]).float()
    at = slice(ROWS, ROWS + ASKED)
    return (inputs[:ROWS], target[:ROWS]), (inputs[at], target[at])


def train_concrete(rows: Labelled, seed: int, on_step: OnStep | None = None) -> nn.Module:
    """An MLP 8-64-64-1 trained by `RECIPE`."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    x, y = rows
    with seeded(seed, "concrete"):
        model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=RECIPE.rate, momentum=RECIPE.momentum, weight_decay=RECIPE.decay
    )
    done = 0
    for epoch in range(RECIPE.epochs):
        for at in torch.from_numpy(rng(seed, "concrete", epoch).permutation(len(x))).split(RECIPE.batch):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[at]), y[at]).backward()
            optimizer.step()
            done += 1
            if on_step is not None:
                on_step(model, done)
    return model.eval()


def half_squared(model: nn.Module, rows: Labelled) -> np.ndarray:
    """Half the squared error of each row: the measurement "loss" of the wing."""
    import torch

    with torch.no_grad():
        return (0.5 * (model(rows[0]) - rows[1]).square().sum(1)).double().numpy()


def concrete_scores(seed: int, *, segments: int, count: int) -> tuple[Scores, Costs]:
    """Scores [Q, 500] of SOURCE, EK-FAC over dampings and the gradient dot product on one model."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.source import SOURCE

    rows, asked = concrete()
    keep = Keeper(RECIPE.epochs * ROWS // RECIPE.batch, count, RECIPE.rate)
    model = train_concrete(rows, seed, keep)
    source = SOURCE(
        keep.found, segments=segments, momentum=RECIPE.momentum, weight_decay=RECIPE.decay, seed=seed,
        loss_scale=2.0,  # torch's mean squared error has no half
    )  # fmt: skip
    ekfac = EKFAC(seed=seed).fit(model, rows)
    found: Scores = {
        "SOURCE": source.fit(model, rows).score(asked, "loss").scores,
        "EK-FAC": ekfac.score(asked, "loss").scores,
        "identity": EKFAC("identity").fit(model, rows).score(asked, "loss").scores,
    }
    for ekfac.damping in SWEEP:
        found[f"EK-FAC, damping {ekfac.damping:g}"] = ekfac.score(asked, "loss").scores
    return found, {}


def concrete_bank(lab: Lab, subsets: int, seeds: int) -> RetrainBank:
    """Models on random halves of the training rows, measured by half the squared error of held-out rows."""
    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.runtime.codeversion import code_version

    def build(folder: Path) -> None:
        (x, y), asked = concrete()

        def measure(rows: list[int], seed: int) -> np.ndarray:
            return half_squared(train_concrete((x[rows], y[rows]), seed), asked)

        store = lab.run.folder("bank-concrete")
        RetrainBank.build(measure, ROWS, subsets=subsets, seeds=seeds, store=store).save(folder)

    args: dict[str, Any] = {
        "recipe": {"name": "concrete", **asdict(RECIPE)}, "subsets": subsets, "seeds": seeds,
    }  # fmt: skip
    return RetrainBank.load(lab.cache.fetch("retrain-bank", args, build, code=code_version(train_concrete)))
