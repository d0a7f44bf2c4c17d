"""Tiny training runs with checkpoints, for the tests of SOURCE."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glasshouse.attribution import Checkpoint, TensorUnits
from glasshouse.attribution.source.moments import second_moments

INPUTS, CLASSES = 6, 3


@dataclass
class Run:
    """A finished run: first and final model, checkpoints, rows by stage, batches and rates of every step."""

    start: nn.Module
    final: nn.Module
    points: list[Checkpoint]
    rows: dict[str, TensorUnits]
    order: list[list[int]]
    rates: list[float]

    @property
    def only(self) -> TensorUnits:
        return next(iter(self.rows.values()))


def data(n: int, seed: int = 0, name: str = "row") -> TensorUnits:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INPUTS, generator=g) * torch.linspace(0.5, 1.5, INPUTS)
    W = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(99))
    y = torch.multinomial(torch.softmax(x @ W, 1), 1, generator=g)[:, 0]
    return TensorUnits(x, y, [f"{name} {i}" for i in range(n)])


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, CLASSES)).eval()


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(INPUTS, CLASSES).eval()


def train(
    model: nn.Module,
    stages: dict[str, TensorUnits],
    *,
    steps: int = 24,
    count: int = 4,
    rate: float = 0.1,
    momentum: float = 0.0,
    batch: int = 8,
    adam: bool = False,
) -> Run:
    """`steps` steps and `count` checkpoints in each stage, plain or heavy-ball SGD, or AdamW."""
    start, model = model, copy.deepcopy(model)
    points: list[Checkpoint] = []
    order: list[list[int]] = []
    for s, (stage, rows) in enumerate(stages.items()):
        optimizer = _optimizer(model, rate, momentum, adam)
        for k, at in enumerate(_batches(len(rows), batch, steps, s), 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows.inputs[at]), rows.targets[at]).backward()
            optimizer.step()
            order.append(at)
            if k % (steps // count) == 0:
                state: Any = second_moments(model, optimizer) or None
                points.append(Checkpoint(model, s * steps + k, rate, stage, optimizer_state=state))
    return Run(start, model.eval(), points, stages, order, [rate] * steps * len(stages))


def one_stage(n: int = 40, model: nn.Module | None = None, **how: Any) -> Run:
    return train(model or mlp(), {"train": data(n)}, **how)


def two_stages(n: Sequence[int] = (30, 20), **how: Any) -> Run:
    rows = {"first": data(n[0], 1, "early"), "second": data(n[1], 2, "late")}
    return train(mlp(), rows, **how)


def _batches(n: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Batches of shuffled epochs: every row is seen equally often."""
    g, found = torch.Generator().manual_seed(seed), []
    while len(found) < steps:
        found += [at.tolist() for at in torch.randperm(n, generator=g).split(batch)]
    return found[:steps]


def _optimizer(model: nn.Module, rate: float, momentum: float, adam: bool) -> torch.optim.Optimizer:
    if adam:
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
