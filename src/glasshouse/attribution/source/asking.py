"""Queries carried back through the segments, and the passes over each segment's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.source.curvature import Working
from glasshouse.attribution.source.segments import Segment
from glasshouse.attribution.source.spectral import Spectrum
from glasshouse.attribution.stages.contract import Query, low_rank
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.stages.scoring import Plan, Prepared, Unit, aggregate, score_shard
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Store, gathered
from glasshouse.attribution.units import Units
from glasshouse.runtime.seeds import derive

if TYPE_CHECKING:
    from glasshouse.attribution.source.method import SOURCE

SELF_FLOATS = 1 << 28
"""Numbers of layer gradients that `self_scores` holds at once."""

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


def passes_over(method: SOURCE, rows: Units, stages: Sequence[str], unit: Unit, *, alike: bool) -> list[Pass]:
    """Which rows of the table meet which segment of `stages`; with `alike` all rows meet all of them."""
    sizes = rows.sizes if unit == "token" else [1] * len(rows)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    place = {n: torch.arange(e - s, e) for n, s, e in zip(rows.ids, sizes, ends, strict=True)}
    found = []
    for index, segment in enumerate(method.segments_):
        if segment.stage in stages:
            trained = method.stages_[segment.stage]
            own = rows if alike else trained
            columns = torch.cat([place[name] for name in own.ids])
            found.append(Pass(segment, index, own, columns, method.scales_[segment.stage] / len(trained)))
    return found


def scored(
    method: SOURCE,
    rows: Units,
    todo: Sequence[Pass],
    plan: Plan,
    mapper: Mapper,
    *,
    per_segment: bool = False,
    store: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[Tensors, tuple[str, ...]]:
    """Scores of `rows` on the queries of the last `score` call, and the names of the queries."""
    asked, f, how, _ = method.asked_
    of = {"of_stage" if key == "stage" else key: value for key, value in (about or {}).items()}
    kept = method._store(store, "score", rows, queries=asked.sha256, per_module=plan.per_module, **of)
    raw, ids = aggregate(layer_gradients(method._job(asked, f), range(len(asked))), asked.ids, how)
    width = sum(rows.sizes) if plan.unit == "token" else len(rows)
    totals = Totals(len(ids), width, (plan.per_module, per_segment))
    working, by_index = method._copy(), {one.index: one for one in todo}
    job = method._row_job(working)
    for index, found in carried(raw, method.spectra_, list(by_index)):
        one = by_index[index]
        ready = prepared(found, ids, method.model_, method.query_rank, method.svd, method.seed)
        score_pass(one, ready, job, working, method._shards(one.rows), plan, mapper, kept, totals)
    return totals.found, ids


def self_scores(method: SOURCE, rows: Units, todo: Sequence[Pass]) -> Tensor:
    """Each row's score on its own negative loss at the end of training, `[N]`."""
    total, working = torch.zeros(len(rows), dtype=torch.float64), method._copy()
    final, job = method._job(rows, method.objective_), method._row_job(working)
    size = max(1, SELF_FLOATS // sum(m.out_features * m.in_features for m in method.tracked_))
    for one in todo:
        places = one.columns.tolist()
        for start in range(0, len(places), size):
            at = places[start : start + size]
            raw = layer_gradients(final, at)
            for later in reversed(method.spectra_[one.index + 1 :]):
                raw = {name: later[name].back(V) for name, V in raw.items()}
            own = list(range(start, start + len(at)))
            total[at] += self_pass(raw, one, method.spectra_[one.index], working, job, own)
    return total.float()
