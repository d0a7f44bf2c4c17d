"""Projected gradients of rows, and what weighs them: the passes of `TRAK`. Pure functions of (job, shard)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.objectives import Measurement, measure
from glasshouse.attribution.projection import Projector
from glasshouse.attribution.stages import asking
from glasshouse.attribution.stages.steps import Job, steps
from glasshouse.attribution.store import Tensors
from glasshouse.attribution.units import Batch, TensorUnits, Units


@dataclass(frozen=True)
class Output:
    """A measurement by name (or the function itself) that other processes can be sent."""

    f: str | Measurement

    @property
    def name(self) -> str:
        """What the output calls itself."""
        return self.f if isinstance(self.f, str) else asking.name_of(self.f)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[B]`."""
        return measure(self.f)(model, batch)


def in_float(units: Units) -> Units:
    """The same rows for a float32 model."""
    if isinstance(units, TensorUnits) and units.inputs.is_floating_point():
        return TensorUnits(units.inputs.float(), units.targets, units.ids)
    return units


class _Heard:
    """A measurement that remembers its last values."""

    def __init__(self, f: Any) -> None:
        self.f, self.values = f, torch.empty(0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = self.f(model, batch)
        self.values = found.detach()
        return found


def feature_shard(
    job: Job, projector: Projector, objective: Any, indices: Sequence[int], *, weighted: bool = True
) -> Tensors:
    """Of the rows `indices`: `phi` [n, k], the projected gradient of `job.loss`; and what weighs it.

    With an `objective`, that is `psi` [n, k], the projected gradient of minus the objective; without, it is
    `weight` [n] = 1 - p of the margins that `job.loss` gives (not for `weighted` False: queries).
    """
    heard = _Heard(job.loss)
    found = {"phi": torch.empty(len(indices), projector.width)}
    for rows, features in _projected(replace(job, loss=heard), projector, indices):
        found["phi"][rows] = features
        if objective is None and weighted:
            weight = found.setdefault("weight", torch.empty(len(indices)))
            weight[rows] = torch.sigmoid(-heard.values.float()).cpu()  # 1 - p of log p - log(1 - p)
    if objective is not None:
        found["psi"] = torch.empty(len(indices), projector.width)
        for rows, features in _projected(replace(job, loss=objective), projector, indices):
            found["psi"][rows] = -features
    return found


def _projected(job: Job, projector: Projector, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch: places in `indices`, and projected gradients of `job.loss` there."""
    place = {row: k for k, row in enumerate(indices)}
    for step in steps(job, indices):
        yield torch.tensor([place[i] for i in step.at]), projector.project(step.pairs).cpu()
