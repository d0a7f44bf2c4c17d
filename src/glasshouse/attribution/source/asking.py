"""Queries carried back through the segments, and the passes over each segment's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.source.curvature import Working
from glasshouse.attribution.source.segments import Segment
from glasshouse.attribution.source.spectral import Spectrum
from glasshouse.attribution.stages.contract import Query, low_rank
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.stages.scoring import Plan, Prepared, score_shard
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Store, gathered
from glasshouse.attribution.units import TensorUnits, TokenUnits, Units
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive

Tensors = dict[str, Tensor]
Spectra = Mapping[str, Spectrum]


def carried(raw: Tensors, spectra: Sequence[Spectra], wanted: Sequence[int]) -> Iterator[tuple[int, Tensors]]:
    """(segment, query gradients there) for each `wanted` segment, last one first.

    `raw` are gradients at the end of training, [Q, out, in]. What leaves is `F_seg` of the query after
    the segment; `F_back` then takes it to the segment before (Bae et al. 2024, equation 12).
    """
    for index in reversed(range(len(spectra))):
        if index in wanted:
            yield index, {name: spectra[index][name].seg(V) for name, V in raw.items()}
        if index > min(wanted):
            raw = {name: spectra[index][name].back(V) for name, V in raw.items()}


def prepared(
    found: Tensors, ids: tuple[str, ...], model: nn.Module, rank: int | None, svd: str, seed: int
) -> Prepared:
    """Queries of one segment in the form that the score pass takes.

    Low rank comes after F_seg, which raises the rank: check the correlation with full queries per segment.
    """
    modules = {}
    for k, (name, V) in enumerate(found.items()):
        query: Query = low_rank(V, rank, method=svd, seed=derive(seed, "svd", k))
        modules[name] = query.parted(ones=getattr(model.get_submodule(name), "bias", None) is not None)
    return Prepared(ids, modules)


@dataclass(frozen=True)
class Pass:
    """Rows to score against one segment: `columns` are their places in the table."""

    segment: Segment
    index: int
    rows: Units
    columns: Tensor
    weight: float
    """Times the mean over checkpoints: the loop's loss scale over the number of the stage's rows."""


class Totals:
    """Score columns being added up over segments and checkpoints."""

    def __init__(self, queries: int, width: int, parts: tuple[bool, bool]) -> None:
        self.shape, (self._modules, self._segments) = (queries, width), parts
        self.found: Tensors = {"scores": torch.zeros(self.shape)}

    def add(self, part: Tensors, columns: Tensor, weight: float, segment: int) -> None:
        """Add one shard's scores times `weight` at `columns`."""
        norms = part.get("norms", torch.ones(())).clamp_min(1e-30)
        for key, value in part.items():
            if key == "scores" or (self._modules and key != "norms"):
                self._at(key)[:, columns] += value * (weight / norms)
        if self._segments:
            self._at(f"module/segment/{segment}")[:, columns] += part["scores"] * (weight / norms)

    def _at(self, key: str) -> Tensor:
        return self.found.setdefault(key, torch.zeros(self.shape))


def score_pass(
    one: Pass,
    queries: Prepared,
    job: Callable[[int, Units], Job],
    working: Working,
    shards: list[list[int]],
    plan: Plan,
    mapper: Mapper,
    kept: Store | None,
    totals: Totals,
) -> None:
    """Add one segment's scores of its rows to `totals`: the mean over its checkpoints."""
    sizes = one.rows.sizes if plan.unit == "token" else [1] * len(one.rows)
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    share = one.weight / len(one.segment.checkpoints)
    for k in one.segment.checkpoints:
        fn = partial(score_shard, job(k, one.rows), queries, {}, plan)
        name = f"scores-{one.index:02d}-{k:03d}"
        parts = gathered(name, fn, shards, working.at(k, mapper), kept)
        for shard, part in zip(shards, parts, strict=True):
            totals.add(part, one.columns[starts[shard[0]] : starts[shard[-1] + 1]], share, one.index)


def self_pass(
    raw: Tensors,
    one: Pass,
    spectra: Spectra,
    working: Working,
    job: Callable[[int, Units], Job],
    rows: list[int],
) -> Tensor:
    """Score of each row in `rows` on its own gradient `raw` (as it stands after the segment), `[n]`."""
    asked = {name: spectra[name].seg(V) for name, V in raw.items()}
    total = torch.zeros(len(rows), dtype=torch.float64)
    for k in one.segment.checkpoints:
        working.load(k)
        for name, G in layer_gradients(job(k, one.rows), rows).items():
            total += (asked[name] * G).flatten(1).double().sum(1).cpu()
    return total * one.weight / len(one.segment.checkpoints)


def pooled(stages: Mapping[str, Units]) -> Units:
    """All rows of all stages, each once.

    Raises InputError for an id that names different rows in two stages, and for kinds of rows that cannot be
    put side by side.
    """
    parts = list(stages.values())
    if len(parts) == 1:
        return parts[0]
    seen: dict[str, tuple[str, int]] = {}
    for stage, units in stages.items():
        for i, name in enumerate(units.ids):
            first, j = seen.setdefault(name, (stage, i))
            if first != stage and _content(units, i) != _content(stages[first], j):
                raise InputError(
                    f"the id {name!r} names one row in stage {first!r} and another in {stage!r}",
                    where="stage_data", fix="give rows ids that are their own in all stages",
                )  # fmt: skip
    fresh = [[i for i, n in enumerate(u.ids) if seen[n][0] == stage] for stage, u in stages.items()]
    return _joined(parts, fresh)


def _joined(parts: list[Any], fresh: list[list[int]]) -> Units:
    kept = [part.subset(rows) for part, rows in zip(parts, fresh, strict=True) if rows]
    if all(isinstance(part, TokenUnits) for part in kept):
        rows = [row for part in kept for row in part.rows]
        return TokenUnits(rows, side=kept[0].side, pad_id=kept[0].pad_id)
    if all(isinstance(part, TensorUnits) for part in kept):
        ids = [name for part in kept for name in part.ids]
        inputs, targets = ([getattr(part, key) for part in kept] for key in ("inputs", "targets"))
        return TensorUnits(torch.cat(inputs), torch.cat(targets), ids)
    raise InputError("stages hold different kinds of rows", where="stage_data", fix="give all of one kind")


def _content(units: Any, i: int) -> Any:
    if isinstance(units, TokenUnits):
        return units.rows[i].ids, units.rows[i].labels
    if isinstance(units, TensorUnits):
        return units.inputs[i].tolist(), units.targets[i].tolist()
    raise InputError("rows of this kind cannot come in stages", fix="give TokenUnits or TensorUnits")
