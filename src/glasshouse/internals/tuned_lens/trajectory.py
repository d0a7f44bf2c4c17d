"""Prediction trajectories: what the lens reads at every layer and position of some rows.

Full distributions [rows, layers, positions, V] are streamed through, not stored: a model with a vocabulary of
128,000 would need tens of gigabytes. What is kept are the statistics below, the top tokens, and the
log-probabilities of a `vocab_subset` (or of everything, where that is small).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.disk import read_settings, read_tensors, write_tensors
from glasshouse.internals.tuned_lens.lens import Lens
from glasshouse.internals.tuned_lens.streams import NONE, Rows, Streams, rows_of, stream
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KEEP_ELEMENTS = 2**25
"""Full log-probabilities are kept up to this many numbers (128 MiB)."""


@dataclass(frozen=True)
class Trajectory:
    """Arrays over N rows, K layers (the last one, L, is the model itself) and n positions, in nats.

    `ids`, `positions` (in the unpadded row), `targets` int64 [N, n]; -1 where there is none. `mask` bool [N,
    n] is False on padding; statistics are NaN there and where a target is missing. `entropy_`, `kl_` (model
    || layer), `js_`, `adjacent_` (next kept layer || this one; NaN at the last), `target_`, `anti_` (their
    log-probabilities) fp32 [N, K, n]; `rank_` (0 is the top, -1 for none) and `argmax_` int64 [N, K, n];
    `top_ids_`, `top_log_probs_` [N, K, n, k]; `log_probs` fp32 [N, K, n, S] over `vocab_ids` [S], or empty
    ([.., 0]) where the full vocabulary would not fit.
    """

    layers: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    entropy_: Tensor
    kl_: Tensor
    js_: Tensor
    adjacent_: Tensor
    target_: Tensor
    anti_: Tensor
    rank_: Tensor
    argmax_: Tensor
    top_ids_: Tensor
    top_log_probs_: Tensor
    log_probs: Tensor
    vocab_ids: Tensor

    @classmethod
    def from_lens(
        cls,
        lens: Lens,
        subject: Any,
        tokens: Any,
        *,
        attention_mask: Tensor | None = None,
        targets: Any = None,
        anti_targets: Any = None,
        vocab_subset: Sequence[int] | None = None,
        positions: Sequence[int] | Sequence[Sequence[int]] | None = None,
        layers: Sequence[int] | None = None,
        top: int = 5,
        batch_tokens: int = 16384,
    ) -> Trajectory:
        """The trajectory of `tokens` (texts, ids, `TokenBatch`, or a tensor [N, T] with its mask).

        `targets` and `anti_targets` are token ids: one for all, one per row, or one list per row along its
        positions; by default a target is the next token of the row. `positions` picks positions of the
        unpadded rows (the same for all or one list per row; negative ones count from the end). `layers` picks
        lens layers, for instance `range(0, L, 4)`; the model's own output is always added.
        """
        from glasshouse.subjects import as_subject

        subject = as_subject(subject)
        lens._fitted()
        rows = rows_of(subject, tokens, attention_mask)
        chosen = _Chosen.of(lens, subject, rows, positions, layers, vocab_subset, top)
        goal = (
            _targets(targets, rows, chosen.places) if targets is not None else _following(rows, chosen.places)
        )
        anti = None if anti_targets is None else _targets(anti_targets, rows, chosen.places)
        kept = [[row[p] for p in at] for row, at in zip(rows, chosen.places, strict=True)]
        found = _Arrays(chosen, goal, anti)
        with torch.no_grad():
            for streams in stream(subject, rows, batch_tokens):
                found.add(lens, streams)
        return cls(
            layers=chosen.layers,
            tokens=tuple(_words(subject, ids) for ids in kept), ids=chosen.grid(kept),
            positions=chosen.grid(chosen.places), mask=chosen.grid(chosen.places) != NONE,
            targets=chosen.grid(goal), vocab_ids=chosen.vocab_ids, **found.arrays,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} rows, layers {self.layers}, {self.ids.shape[1]} positions)"

    def _repr_html_(self) -> str:
        return str(self.to_frame().head(200).to_html(index=False))

    def entropy(self) -> Tensor:
        """Entropy of every layer's prediction [N, K, n]."""
        return self.entropy_

    def kl(self) -> Tensor:
        """KL(model || layer) [N, K, n]."""
        return self.kl_

    def js(self) -> Tensor:
        """Jensen-Shannon divergence between model and layer [N, K, n], in [0, ln 2]."""
        return self.js_

    def rank(self) -> Tensor:
        """Rank of the target [N, K, n], int64; -1 where there is no target."""
        return self.rank_

    def adjacent(self) -> Tensor:
        """KL(next kept layer || this layer) [N, K, n]; NaN at the last layer."""
        return self.adjacent_

    def target(self) -> Tensor:
        """Log-probability of the target [N, K, n]."""
        return self.target_

    def margin(self) -> Tensor:
        """Log-probability of the target minus that of the anti-target [N, K, n]; NaN without one."""
        return self.target_ - self.anti_

    def depth(self) -> Tensor:
        """Prediction depth [N, n]: the first layer from which on the top token stays; -1 on padding."""
        same = self.argmax_ == self.argmax_[:, -1:]  # [N, K, n]
        held = same.flip(1).cumprod(1).sum(1)  # layers at the end that agree, at least 1
        depth = torch.tensor(self.layers)[len(self.layers) - held]
        return torch.where(self.mask, depth, NONE)

    def compare(self, other: Trajectory, measure: Literal["js", "kl"] = "js") -> Tensor:
        """JS or KL(self || other) of two inputs, [N, K, n], layer by layer and position by position.

        Over a vocabulary subset the remaining tokens count as one, so the number is a lower bound. Raises
        InputError when shapes or vocabularies differ, or full log-probabilities were not kept.
        """
        if self.log_probs.shape != other.log_probs.shape or not torch.equal(self.vocab_ids, other.vocab_ids):
            raise InputError(
                f"trajectories of shape {tuple(self.log_probs.shape)} and {tuple(other.log_probs.shape)}",
                fix="give the same rows, positions, layers and vocabulary",
            )
        if not self.log_probs.shape[-1]:
            raise InputError("full log-probabilities were too large to keep", fix="give vocab_subset")
        subset = len(self.vocab_ids) != 0
        a, b = (measures.with_rest(t.log_probs) if subset else t.log_probs for t in (self, other))
        return {"js": measures.js, "kl": measures.kl}[measure](a, b)

    def plot(self, row: int = 0, value: str = "entropy", words: Any = None) -> go.Figure:
        """A heat map, layers by positions, the top token in each cell, more on hover (`plots.heat_map`)."""
        from glasshouse.internals.tuned_lens.plots import heat_map

        return heat_map(self, row, value, words)

    def to_frame(self) -> pd.DataFrame:
        """One line per row, layer and position."""
        from glasshouse.internals.tuned_lens.plots import trajectory_frame

        return trajectory_frame(self)

    def save(self, folder: Path | str) -> Path:
        """Write `trajectory.safetensors`, then `trajectory.json`."""
        folder = Path(folder)
        write_tensors(folder / "trajectory.safetensors", self._tensors(), {"kind": "trajectory"})
        files.write_json(folder / "trajectory.json", {"layers": list(self.layers), "tokens": self.tokens})
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Trajectory:
        """Read what `save` wrote. Raises InputError or RunError for a damaged folder."""
        told = read_settings(Path(folder) / "trajectory.json", keys=("layers", "tokens"))
        tensors, _ = read_tensors(Path(folder) / "trajectory.safetensors")
        words = tuple(tuple(row) for row in told["tokens"])
        return cls(layers=tuple(told["layers"]), tokens=words, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Chosen:
    """Which positions of each row, which layers and which tokens are kept."""

    places: list[list[int]]
    layers: tuple[int, ...]
    vocab_ids: Tensor  # empty: all
    width: int
    subset: int
    top: int

    @classmethod
    def of(
        cls, lens: Lens, subject: Any, rows: Rows, positions: Any, layers: Any, subset: Any, top: int
    ) -> _Chosen:
        places = _places(rows, positions)
        depth, width = lens.n_layers_, max(len(at) for at in places)
        picked = sorted({*(range(depth) if layers is None else layers)})
        if any(not 0 <= layer <= depth for layer in picked):
            raise InputError(f"layers {picked} for a model of {depth} layers", fix="count from 0")
        kept = (*(layer for layer in picked if layer < depth), depth)
        vocab = torch.tensor([] if subset is None else list(subset), dtype=torch.long)
        if subset is not None and (not len(vocab) or vocab.min() < 0 or vocab.max() >= subject.vocab_size):
            raise InputError(f"vocab_subset must lie inside the vocabulary of {subject.vocab_size}")
        full = lens.head_.vocab_size
        fits = len(rows) * len(kept) * width * full <= KEEP_ELEMENTS
        count = len(vocab) if subset is not None else full if fits else 0
        return cls(places, kept, vocab, width, count, min(top, full))

    def grid(self, rows: list[list[int]]) -> Tensor:
        """Numbers of each row as [N, n], -1 where a row has none."""
        return torch.tensor([[*row, *([NONE] * (self.width - len(row)))] for row in rows])


class _Arrays:
    """The arrays of a trajectory, filled batch by batch."""

    def __init__(self, chosen: _Chosen, goal: list[list[int]], anti: list[list[int]] | None) -> None:
        self.chosen = chosen
        self.goal = chosen.grid(goal)
        self.anti = torch.full_like(self.goal, NONE) if anti is None else chosen.grid(anti)
        shape = (len(chosen.places), len(chosen.layers), chosen.width)
        names = ("entropy_", "kl_", "js_", "adjacent_", "target_", "anti_")
        self.arrays = {name: torch.full(shape, math.nan) for name in names}
        self.arrays |= {name: torch.full(shape, NONE) for name in ("rank_", "argmax_")}
        self.arrays["top_ids_"] = torch.full((*shape, chosen.top), NONE)
        self.arrays["top_log_probs_"] = torch.full((*shape, chosen.top), math.nan)
        self.arrays["log_probs"] = torch.full((*shape, chosen.subset), math.nan)
        self.column = [{p: j for j, p in enumerate(at)} for at in chosen.places]

    def add(self, lens: Lens, streams: Streams) -> None:
        """The tokens of one batch that are wanted."""
        pairs = zip(streams.row.tolist(), streams.position.tolist(), strict=True)
        column = torch.tensor([self.column[row].get(position, NONE) for row, position in pairs])
        streams, column = streams.take(column != NONE), column[column != NONE]
        for at in measures.token_blocks(lens, streams):
            self._block(lens, streams, at, column[at])

    def _block(self, lens: Lens, streams: Streams, at: slice, column: Tensor) -> None:
        row, depth = streams.row[at], lens.n_layers_
        final = measures.layer_log_probs(lens, streams, at, depth)
        after = final
        for k in reversed(range(len(self.chosen.layers))):
            layer = self.chosen.layers[k]
            here = final if layer == depth else measures.layer_log_probs(lens, streams, at, layer)
            found = self._measure(here, final, row, column)
            if layer != depth:
                found["adjacent_"] = measures.kl(after, here)
            after = here
            for name, value in found.items():
                self.arrays[name][row, k, column] = value.to(self.arrays[name].dtype).cpu()

    def _measure(self, here: Tensor, final: Tensor, row: Tensor, column: Tensor) -> dict[str, Tensor]:
        top = here.topk(self.chosen.top, -1)
        found = {
            "entropy_": measures.entropy(here),
            "kl_": measures.kl(final, here), "js_": measures.js(final, here),
            "argmax_": here.argmax(-1), "top_ids_": top.indices, "top_log_probs_": top.values,
        }  # fmt: skip
        if self.chosen.subset:
            ids = self.chosen.vocab_ids.to(here.device)
            found["log_probs"] = here[:, ids] if len(ids) else here
        for name, wanted in (("target_", self.goal), ("anti_", self.anti)):
            token = wanted[row, column].to(here.device)
            own = here.gather(-1, token.clamp_min(0)[:, None])[:, 0]
            found[name] = torch.where(token >= 0, own, math.nan)
            if name == "target_":
                found["rank_"] = torch.where(token >= 0, measures.rank(here, token.clamp_min(0)), NONE)
        return found


def _places(rows: Rows, positions: Any) -> list[list[int]]:
    """Positions of each row, counted from its start. Raises InputError for one outside its row."""
    if positions is None:
        return [list(range(len(row))) for row in rows]
    listed = [int(p) if not isinstance(p, Sequence | Tensor) else [int(q) for q in p] for p in positions]
    per_row = bool(listed) and isinstance(listed[0], list)
    if not listed or (per_row and len(listed) != len(rows)):
        raise InputError(f"{len(listed)} lists of positions for {len(rows)} rows", fix="give one per row")
    found = []
    for index, row in enumerate(rows):
        at: Any = listed[index] if per_row else listed
        if not at or any(not -len(row) <= p < len(row) for p in at):
            raise InputError(f"positions {at} of {len(row)} tokens", where=f"row {index}")
        found.append([p % len(row) for p in at])
    return found


def _following(rows: Rows, places: list[list[int]]) -> list[list[int]]:
    return [
        [row[p + 1] if p + 1 < len(row) else NONE for p in at] for row, at in zip(rows, places, strict=True)
    ]


def _targets(targets: Any, rows: Rows, places: list[list[int]]) -> list[list[int]]:
    """One target per kept position of each row."""
    if isinstance(targets, int):
        return [[targets] * len(at) for at in places]
    listed = targets.tolist() if isinstance(targets, Tensor) else list(targets)
    if len(listed) != len(rows):
        raise InputError(f"{len(listed)} targets for {len(rows)} rows", fix="give one per row")
    found = []
    for index, (one, at) in enumerate(zip(listed, places, strict=True)):
        mine = [one] * len(at) if isinstance(one, int) else [int(i) for i in one]
        if len(mine) == len(rows[index]) != len(at):
            mine = [mine[p] for p in at]
        if len(mine) != len(at):
            raise InputError(f"{len(mine)} targets for {len(at)} positions", where=f"row {index}")
        found.append(mine)
    return found


def _words(subject: Any, ids: list[int]) -> tuple[str, ...]:
    """Each token as text; its number where the subject has no tokenizer."""
    if subject.tokenizer is None:
        return tuple(f"#{i}" for i in ids)
    return tuple(str(word) for word in subject.tokenizer.convert_ids_to_tokens(ids))
