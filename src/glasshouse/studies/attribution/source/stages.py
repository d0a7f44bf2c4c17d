"""Two stages: 600 originals, then 600 flipped and shifted images; which originals made the final model?"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng
from glasshouse.studies.attribution.fashion import OnStep, Recipe, margins, pictures, queries, train_mlp
from glasshouse.studies.attribution.source.images import (
    Costs,
    Keeper,
    Scores,
    redamped,
    representation,
    timed,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.attribution.source import SOURCE, Checkpoint
    from glasshouse.studies._lab import Lab

    Labelled = tuple[torch.Tensor, torch.Tensor]

FIRST = Recipe("first stage", rows=600, epochs=8, rate=0.02)
SECOND = Recipe("second stage", rows=600, epochs=4, rate=0.003)
SHIFT = 3
"""Pixels by which flipped images move to the right."""

QUERIES = 40
SWEEP = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Sizes:
    """The bank: `subsets` halves of the first stage, `seeds` models each."""

    subsets: int = 50
    seeds: int = 4


@dataclass(frozen=True)
class Staged:
    """One model of two stages: the end of each, checkpoints of both, and rows by stage."""

    final: nn.Module
    middle: nn.Module
    checkpoints: list[Checkpoint]
    rows: dict[str, Any]


def flipped(pixels: torch.Tensor) -> torch.Tensor:
    """Images [n, 784] mirrored left to right and shifted by `SHIFT` pixels."""
    import torch

    square = pixels.view(-1, 28, 28).flip(2)
    moved = torch.full_like(square, float(square.min()))
    moved[:, :, SHIFT:] = square[:, :, :-SHIFT]
    return moved.reshape(len(pixels), -1)


def stage_rows() -> tuple[Labelled, Labelled]:
    """Originals (rows 0 to 599 of the pool) and, flipped and shifted, the 600 after them."""
    x, y = pictures("pool", 0, FIRST.rows)
    x2, y2 = pictures("pool", FIRST.rows, SECOND.rows)
    return (x, y), (flipped(x2), y2)


def asked() -> dict[str, Labelled]:
    """Held-out images, as they are and flipped."""
    x, y = queries(QUERIES)
    return {"originals": (x, y), "flipped": (flipped(x), y)}


def train_two(
    first: Labelled, second: Labelled, seed: int, on_step: tuple[OnStep | None, OnStep | None] = (None, None)
) -> tuple[nn.Module, nn.Module]:
    """The model after the first stage and after the second; momentum starts anew between them."""
    middle = train_mlp(*first, seed, FIRST, on_step[0])
    final = copy.deepcopy(middle)
    return middle, continued(final, second, seed, on_step[1])


def continued(model: nn.Module, rows: Labelled, seed: int, on_step: OnStep | None = None) -> nn.Module:
    """`model` trained on by the recipe of the second stage, in place."""
    import torch

    x, y = rows
    optimizer = torch.optim.SGD(
        model.parameters(), lr=SECOND.rate, momentum=SECOND.momentum, weight_decay=SECOND.decay
    )
    done = 0
    for epoch in range(SECOND.epochs):
        order = torch.from_numpy(rng(seed, "second stage", epoch).permutation(len(x)))
        for at in order.split(SECOND.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
            done += 1
            if on_step is not None:
                on_step(model, done)
    return model.eval()


def grown_two(seed: int, count: int, first: Labelled | None = None) -> Staged:
    """A model of two stages with `count` checkpoints in each; `first` replaces the first stage's rows."""
    from glasshouse.attribution import TensorUnits

    usual, second = stage_rows()
    first = first or usual
    steps = [r.epochs * -(-r.rows // r.batch) for r in (FIRST, SECOND)]
    keep = (
        Keeper(steps[0], count, FIRST.rate, stage="first"),
        Keeper(steps[1], count, SECOND.rate, stage="second", offset=steps[0]),
    )
    middle, final = train_two(first, second, seed, keep)
    rows = {
        "first": TensorUnits(*first, [f"original {i}" for i in range(FIRST.rows)]),
        "second": TensorUnits(*second, [f"flipped {i}" for i in range(SECOND.rows)]),
    }
    return Staged(final, middle, keep[0].found + keep[1].found, rows)


def source_two(staged: Staged, seed: int = 0, points: list[Checkpoint] | None = None) -> SOURCE:
    """SOURCE with one segment a stage, told how both were trained."""
    from glasshouse.attribution.source import SOURCE

    return SOURCE(
        points or staged.checkpoints, segments=2, momentum=FIRST.momentum, weight_decay=FIRST.decay, seed=seed
    )


def two_stage_scores(seed: int, kind: str, *, count: int) -> tuple[Scores, Costs]:
    """Scores [Q, 600] of the first stage's rows by every method; queries of one `kind`."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.tracin import TracIn

    staged, query = grown_two(seed, count), asked()[kind]
    first = staged.rows["first"]
    found: Scores = {}
    costs: Costs = {}
    timed(found, costs, "SOURCE", source_two(staged, seed), staged.final, staged.rows, query, stage="first")
    at_end = EKFAC(seed=seed)
    timed(found, costs, "EK-FAC, end of stage 1", at_end, staged.middle, first, query)
    final = EKFAC(seed=seed)
    timed(found, costs, "EK-FAC, final model", final, staged.final, first, query)
    for damping in SWEEP:
        found[f"EK-FAC, end of stage 1, damping {damping:g}"] = redamped(at_end, damping, query)
        found[f"EK-FAC, final model, damping {damping:g}"] = redamped(final, damping, query)
    second = EKFAC(seed=seed).fit(staged.final, staged.rows["second"])
    table = second.score(query, "margin", candidates=first)
    found["EK-FAC, final model, stage-2 Hessian"] = table.scores
    timed(found, costs, "identity", EKFAC("identity"), staged.final, first, query)
    path = [p for p in staged.checkpoints if p.stage == "first"]
    timed(found, costs, "TracIn", TracIn(path), staged.middle, first, query)
    found["representation"] = representation(staged.final, (first.inputs, first.targets), query)
    draw = rng(seed, "two-stage control")
    found["SOURCE, rows permuted"] = found["SOURCE"][:, draw.permutation(FIRST.rows)]
    return found, costs


def two_stage_bank(lab: Lab, kind: str, sizes: Sizes) -> RetrainBank:
    """Models whose first stage saw a random half of its rows and whose second stage is whole.

    Measured by the margins of both kinds of queries; made once and kept in the cache.
    """
    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.runtime.codeversion import code_version

    def build(folder: Path) -> None:
        first, second = stage_rows()
        sets, done = asked(), 0

        def measure(rows: list[int], seed: int) -> np.ndarray:
            nonlocal done
            done += 1
            if done % 50 == 0:
                lab.progress.say(
                    f"bank of two stages: {done} of {sizes.subsets * sizes.seeds} models trained"
                )
            model = train_two((first[0][rows], first[1][rows]), second, seed)[1]
            return np.concatenate([margins(model, *pair) for pair in sets.values()])

        store = lab.run.folder("bank-two-stages")
        bank = RetrainBank.build(measure, FIRST.rows, subsets=sizes.subsets, seeds=sizes.seeds, store=store)
        bank.save(folder)

    args = {"recipes": [asdict(FIRST), asdict(SECOND)], "shift": SHIFT, **asdict(sizes)}
    both = RetrainBank.load(lab.cache.fetch("retrain-bank", args, build, code=code_version(train_two)))
    at = list(asked()).index(kind) * QUERIES
    return RetrainBank(both.masks, both.values[:, :, at : at + QUERIES])
