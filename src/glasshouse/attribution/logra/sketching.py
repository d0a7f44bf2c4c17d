"""From rows to stored lines: one backward pass a batch, projected at once, one contiguous block a shard."""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glasshouse.attribution.logra.layout import Block, Layout
from glasshouse.attribution.logra.number import Dtype, Scaling, check_overflow, pack, to_numpy
from glasshouse.attribution.logra.projection import Projection, Projections
from glasshouse.attribution.stages import guards
from glasshouse.attribution.stages.passes import gram_
from glasshouse.attribution.stages.steps import Job, Step, steps
from glasshouse.attribution.store import Tensors
from glasshouse.corpora.rows import TokenBatch
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import Pair

Piece = tuple[int, Sequence[int]]
"""A shard: its number, and its rows (contiguous)."""


@dataclass(frozen=True)
class Recipe:
    """What a logging pass keeps. With `folder` shards are written there by whoever computes them."""

    projections: Projections
    layout: Layout
    dtype: Dtype
    scaling: Scaling
    covariance: bool = False
    folder: str | None = None


class Noted:
    """A loss that remembers what it said last, so that the log can hold every row's loss."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.last = loss, torch.empty(0)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss itself."""
        values: Tensor = self.loss(model, batch)
        self.last = values.detach().float().cpu()
        return values


def row_sketches(job: Job, projections: Projections, layout: Layout, indices: Sequence[int]) -> Tensor:
    """Sketches [len(indices), width] in float32, in the order of `indices`: for queries and candidates."""
    place = {row: k for k, row in enumerate(indices)}
    plain, found = replace(layout, unit="row"), torch.zeros(len(indices), layout.width)
    for step, lines in _walk(job, projections, plain, indices):
        found[torch.tensor([place[i] for i in step.at])] = lines
    return found


def log_shard(job: Job, recipe: Recipe, piece: Piece) -> Tensors:
    """Log the rows of one shard: `exponents` and `loss`, `tokens`, `lines` of each row, and the `sketches`.

    With a folder the sketches are in its `shard-00000.npy` and only `bytes` comes back. `A/<block>`,
    `S/<block>` and `count/<block>` are sums over projected pairs, where the recipe wants them.
    """
    number, indices = piece
    sizes = job.units.sizes
    lines = [sizes[i] if recipe.layout.unit == "token" else 1 for i in indices]
    start = dict(zip(indices, np.cumsum([0, *lines]).tolist(), strict=False))
    stored = torch.empty(sum(lines), recipe.layout.stored, dtype=getattr(torch, recipe.dtype))
    found = {
        "exponents": torch.zeros(len(stored), dtype=torch.int16),
        "loss": torch.full((len(indices),), torch.nan),
        "tokens": torch.tensor([sizes[i] for i in indices]),
        "lines": torch.tensor(lines),
    }
    grams: Tensors = {}
    noted = Noted(job.loss)
    summed = grams if recipe.covariance else None
    with closing(_walk(replace(job, loss=noted), recipe.projections, recipe.layout, indices, summed)) as walk:
        for step, block in walk:
            where, names = _places(step, start, recipe.layout.unit)
            if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
                walk.close()  # the model is free for the pass that names the culprit
                guards.locate_nan(job, indices)
            check_overflow(block, names, recipe.layout, recipe.dtype, recipe.scaling)
            stored[where], found["exponents"][where] = pack(block, recipe.dtype, recipe.scaling)
            if len(noted.last.shape) == 1:
                found["loss"][torch.tensor([i - indices[0] for i in step.at])] = noted.last
    if recipe.folder is None:
        return {**found, **grams, "sketches": stored}
    size = write_shard(Path(recipe.folder), number, stored)
    return {**found, **grams, "bytes": torch.tensor([size])}


def write_shard(folder: Path, number: int, stored: Tensor) -> int:
    """Write `shard-00000.npy` atomically; returns its bytes."""
    buffer = io.BytesIO()
    np.save(buffer, to_numpy(stored), allow_pickle=False)
    path = files.write_bytes(folder / shard_name(number), buffer.getbuffer())
    return path.stat().st_size


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.npy"


def add_grams(grams: Tensors, block: Block, half: Pair, tokens: float) -> None:
    """Add upper triangles of `sum P_i a (P_i a)^T`, `sum P_o g (P_o g)^T`, and the tokens summed over."""
    for key, x in ((f"A/{block.name}", half.a), (f"S/{block.name}", half.g)):
        total = grams.setdefault(key, torch.zeros(x.shape[-1], x.shape[-1]))
        gram_(total, x.flatten(0, -2).cpu())
    count = grams.setdefault(f"count/{block.name}", torch.zeros(1, dtype=torch.float64))
    count += tokens


def _walk(
    job: Job, projections: Projections, layout: Layout, indices: Sequence[int], grams: Tensors | None = None
) -> Generator[tuple[Step, Tensor], None, None]:
    """Each backward pass with its lines: [rows, width] for sketches, [tokens, stored] for halves."""
    device = next(job.model.parameters()).device
    placed: dict[str, Projection] = {name: p.to(device) for name, p in projections.items()}
    with closing(steps(job, indices)) as walk:
        for step in walk:
            yield step, _lines(step, placed, layout, grams)


def _lines(step: Step, projections: Projections, layout: Layout, grams: Tensors | None) -> Tensor:
    rows, device = len(step.at), next(iter(step.pairs.values())).a.device
    lines = torch.zeros(_count(step, layout), layout.stored, device=device)
    for block in layout.blocks:
        for name in block.members:
            half = projections[name].halves(step.pairs[name])
            if grams is not None:
                add_grams(grams, block, _masked(half, step), step.tokens(name))
            if layout.unit == "row":
                _add_outer(lines[:, block.columns].view(rows, block.out, block.inn), half)
            else:
                _put_halves(lines, block, half, step)
    return lines


def _add_outer(total: Tensor, half: Pair) -> None:
    """Add `sum_t g_t a_t^T` to `total` [B, r_o, r_i], a view into the lines."""
    if half.a.shape[1] == 1:
        total.addcmul_(half.g.mT, half.a)
    else:
        total += torch.bmm(half.g.mT, half.a)


def _masked(half: Pair, step: Step) -> Pair:
    """Zeros at padding on the input side too, where an unstored one was projected."""
    if step.valid is None or half.a.shape[1] % step.valid.shape[1]:
        return half
    hidden = ~step.valid.repeat(1, half.a.shape[1] // step.valid.shape[1]).unsqueeze(-1)
    return Pair(half.a.masked_fill(hidden, 0), half.g)


def _put_halves(lines: Tensor, block: Block, half: Pair, step: Step) -> None:
    T = step.valid.shape[1] if step.valid is not None else _tokens(step)
    if half.a.shape[1] != T:
        raise InputError(
            f"it sees {half.a.shape[1]} positions for {T} tokens", where=f"module {block.name!r}",
            fix='leave it out, or use unit="row"',
        )  # fmt: skip
    both = torch.cat([half.g, half.a], 2)
    kept = both.flatten(0, 1) if step.valid is None else both[step.valid]
    lines[:, block.line : block.line + block.out + block.inn] = kept


def _tokens(step: Step) -> int:
    return step.batch.input_ids.shape[1] if isinstance(step.batch, TokenBatch) else 1


def _count(step: Step, layout: Layout) -> int:
    if layout.unit == "row":
        return len(step.at)
    return len(step.at) * _tokens(step) if step.valid is None else int(step.valid.sum())


def _places(step: Step, start: dict[int, int], unit: str) -> tuple[Tensor, list[str]]:
    """Where the lines of a pass go in the shard, and the row each belongs to."""
    first = torch.tensor([start[i] for i in step.at])
    names = list(step.batch.row_ids)
    if unit == "row" or not isinstance(step.batch, TokenBatch):
        return first, names
    valid = step.batch.attention_mask.bool().cpu()
    where = (first[:, None] + step.batch.position_ids.cpu())[valid]
    return where, [names[b] for b in valid.nonzero()[:, 0].tolist()]
