"""Learning one task after another without forgetting: distances to what was learned, added to the loss.

`loss = cross-entropy + weight * (1 / tasks) * sum_j FSD_j(theta_j, theta)`, one sketch per task learned
(Dhawan et al. 2023, section 5.1). `penalty` fits into any loop; `ContinualTrainer.learn` is a small loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.base import at_least_one
from glasshouse.attribution.function_space_distance.fallback import _Fallback
from glasshouse.attribution.function_space_distance.sketch import FSDSketch, Method
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng

Remembered = FSDSketch | _Fallback


def penalty(
    sketches: Sequence[Remembered],
    model: nn.Module,
    *,
    weight: float = 1.0,
    method: Method = "deterministic",
    rho: str | None = None,
    n: int = 200,
    seed: int = 0,
) -> Tensor:
    """`weight` times the mean distance of `model` from the sketched references: a scalar with gradients.

    Zero without sketches. For sampled methods hold `seed` for an epoch: draws that change with every step
    make the penalty noisy.
    """
    parameter = next(model.parameters())
    if not sketches:
        return torch.zeros((), device=parameter.device)
    found = []
    for k, sketch in enumerate(sketches):
        if isinstance(sketch, FSDSketch):
            found.append(sketch.distance(model, method, rho or "l2", n=n, seed=seed + k))  # type: ignore[arg-type]
        else:
            found.append(sketch.distance(model, rho=rho))
    return weight * torch.stack(found).mean()


class ContinualTrainer:
    """Holds one sketch per task learned and trains the next task against them.

    `make` builds the estimator of a task (default: a class-conditional `FSDSketch` of rank 25); `weight`
    scales the penalty; `method`, `rho` and `n` are those of `distance`; `sketches` are of tasks known.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> trainer = ContinualTrainer(weight=1.0, make=lambda: FSDSketch())
    >>> x, y = torch.randn(40, 3), torch.tensor([0, 1] * 20)
    >>> trainer.learn(model, (x, y), epochs=1).remember(model, (x, y)).penalty(model).item()
    0.0
    """

    def __init__(
        self,
        sketches: Iterable[Remembered] = (),
        weight: float = 1.0,
        *,
        make: Callable[[], Remembered] | None = None,
        method: Method = "deterministic",
        rho: str | None = None,
        n: int = 200,
        seed: int = 0,
    ) -> None:
        if not weight >= 0:
            raise InputError(f"weight is {weight}", fix="use a number >= 0")
        self.sketches, self.weight = list(sketches), weight
        self.make = make or (lambda: FSDSketch(True, cov=25))
        self.method, self.rho, self.n, self.seed = method, rho, n, seed

    def penalty(self, model: nn.Module, epoch: int = 0) -> Tensor:
        """The penalty of the tasks remembered; sampled draws are the same throughout an epoch."""
        return penalty(
            self.sketches, model, weight=self.weight, method=self.method, rho=self.rho, n=self.n,
            seed=self.seed + 1000 * epoch,
        )  # fmt: skip

    def remember(self, model: nn.Module, data: Any) -> ContinualTrainer:
        """Sketch the task just learned; its data may go afterwards."""
        self.sketches.append(self.make().fit(model, data))
        return self

    def learn(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        *,
        epochs: int = 3,
        batch: int = 50,
        rate: float = 1e-3,
        every: int = 1,
        stream: int | None = None,
    ) -> ContinualTrainer:
        """Train on (inputs, labels) with Adam, cross-entropy and the penalty.

        The order of rows is drawn by `seed` and `stream` (default: the number of tasks remembered).

        With `every` k the penalty enters each k-th step, times k: the same gradient on average for less time.
        """
        for name, value in (("epochs", epochs), ("batch", batch), ("every", every)):
            at_least_one(name, value)
        x, y = data
        stream = len(self.sketches) if stream is None else stream
        optimiser, done = torch.optim.Adam(model.parameters(), lr=rate), 0
        for epoch in range(epochs):
            order = rng(self.seed, "continual", stream, epoch).permutation(len(x))
            for rows in torch.from_numpy(order).split(batch):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                if self.sketches and self.weight and done % every == 0:
                    loss = loss + every * self.penalty(model, epoch)
                loss.backward()
                optimiser.step()
                done += 1
        return self
