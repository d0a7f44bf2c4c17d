"""Batched generation with a key-value cache. Rows never influence one another: a row's text,
log-probability and random draws are those it would have alone.

Rows are left-padded within buckets of similar length, with explicit masks and position ids; random numbers
come from one stream per (seed, row, sample), so batch size and order change nothing but the last float digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.runtime.seeds import rng
from glasshouse.subjects.batches import Ids, pad_left


@dataclass(frozen=True)
class Completion:
    """What the model said after a prompt.

    `ids` end with the stop token when `finished`; `text` leaves it out. `logprob` is the sum of the ids'
    log-probabilities in nats under the model itself (temperature 1, all tokens).
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How to choose each token; temperature 0 takes the most likely one."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    seed: int


@dataclass
class Sample:
    """One row being generated: prompt `row`, `sample` of n."""

    row: int
    sample: int
    ids: list[int]
    logprob: float = 0.0
    finished: bool = False


Place = Callable[[Tensor, Tensor, Tensor], None]
"""Tells active patches which row, start column and prompt length each line of the batch has."""


def generate_rows(
    base: Any,
    unembed: Any,
    rows: Sequence[Ids],
    n: int,
    how: Sampling,
    *,
    batch_tokens: int,
    place: Place,
    device: str,
) -> list[list[Sample]]:
    """The n samples of each row of token ids, in order."""
    found: list[list[Sample]] = [[Sample(i, k, []) for k in range(n)] for i in range(len(rows))]
    longest = [len(row) + how.max_new_tokens for row in rows]
    for bucket in length_buckets([size * n for size in longest], batch_tokens):
        _generate_bucket(base, unembed, rows, [found[i] for i in bucket], how, place, device)
    return found


def _generate_bucket(
    base: Any,
    unembed: Any,
    rows: Sequence[Ids],
    samples: list[list[Sample]],
    how: Sampling,
    place: Place,
    device: str,
) -> None:
    from transformers import DynamicCache

    padded = pad_left([rows[group[0].row] for group in samples], device)
    index = torch.tensor([group[0].row for group in samples], device=device)
    place(index, padded.starts, padded.lengths)
    cache = DynamicCache(config=base.config)
    out = base(
        input_ids=padded.ids,
        attention_mask=padded.mask,
        position_ids=padded.positions,
        past_key_values=cache,
        use_cache=True,
    )
    n = len(samples[0])
    state = _State(
        [one for group in samples for one in group], cache, padded.mask, padded.lengths, padded.starts
    )
    logits = unembed(out.last_hidden_state[:, -1:])[:, 0]
    if n > 1:
        state.repeat(n)
        logits = logits.repeat_interleave(n, 0)
    uniforms = _uniforms(state.live, how)
    for step in range(how.max_new_tokens):
        tokens = _choose(state.live, logits, how, None if uniforms is None else uniforms[state.lines, step])
        if step + 1 == how.max_new_tokens or not state.keep_unfinished():
            break
        tokens = tokens[state.kept] if state.kept is not None else tokens
        lines = torch.tensor([one.row for one in state.live], device=device)
        place(lines, state.starts, state.lengths - state.grown)
        out = base(
            input_ids=tokens[:, None].to(device),
            attention_mask=state.mask,
            position_ids=None if state.mask is None else state.lengths[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        state.lengths = state.lengths + 1
        state.grown += 1
        logits = unembed(out.last_hidden_state[:, -1:])[:, 0]


class _State:
    """The lines of the batch still being generated, and the cache that belongs to them."""

    def __init__(
        self, live: list[Sample], cache: Any, mask: Tensor | None, lengths: Tensor, starts: Tensor
    ) -> None:
        self.live, self.cache, self.mask, self.lengths, self.starts = live, cache, mask, lengths, starts
        self.lines = torch.arange(len(live))  # their rows in the table of uniforms
        self.kept: Tensor | None = None
        self.grown = 0

    def repeat(self, n: int) -> None:
        self.cache.batch_repeat_interleave(n)
        self.lengths, self.starts = (t.repeat_interleave(n, 0) for t in (self.lengths, self.starts))
        if self.mask is not None:
            self.mask = self.mask.repeat_interleave(n, 0)

    def keep_unfinished(self) -> bool:
        """Drop finished lines once they are a fifth of the batch; grow the mask. False when none is left."""
        going = [i for i, one in enumerate(self.live) if not one.finished]
        self.kept = None
        if len(going) <= 0.8 * len(self.live):
            self.kept = torch.tensor(going, dtype=torch.long)
            self._select(self.kept)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return bool(going)

    def _select(self, kept: Tensor) -> None:
        self.live = [self.live[i] for i in kept.tolist()]
        self.lines = self.lines[kept]
        if not self.live:
            return
        there = kept.to(self.lengths.device)
        self.cache.batch_select_indices(there)
        self.lengths, self.starts = self.lengths[there], self.starts[there]
        self.mask = None if self.mask is None else self.mask[there]


def _choose(live: list[Sample], logits: Tensor, how: Sampling, uniforms: Tensor | None) -> Tensor:
    """Pick one token per line and write it into the lines that are still going."""
    logprobs = logits.float().log_softmax(-1)
    tokens = logits.argmax(-1) if uniforms is None else _draw(logprobs, uniforms, how)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    for one, token, logprob in zip(live, tokens.tolist(), chosen, strict=True):
        if not one.finished:
            one.ids.append(token)
            one.logprob += logprob
            one.finished = token in how.stop_ids
    return tokens


def _draw(logprobs: Tensor, uniforms: Tensor, how: Sampling) -> Tensor:
    """Inverse-CDF sampling: line b takes the token where the cumulative probability passes uniforms[b]."""
    probs = (logprobs.double() / how.temperature).softmax(-1)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    if how.top_p < 1.0:
        # The smallest set of most likely tokens whose mass reaches top_p.
        probs = probs * (probs.cumsum(-1) - probs < how.top_p)
    mass = probs.cumsum(-1)
    target = uniforms.to(mass.device)[:, None] * mass[:, -1:]
    at = torch.searchsorted(mass, target, right=True).clamp_max((probs > 0).sum(-1, keepdim=True) - 1)
    return order.gather(1, at)[:, 0]


def _uniforms(live: list[Sample], how: Sampling) -> Tensor | None:
    """[lines, steps] uniform draws, each line from its own stream; None for greedy."""
    if how.temperature == 0:
        return None
    draws = [rng(how.seed, "generate", one.row, one.sample).random(how.max_new_tokens) for one in live]
    return torch.stack([torch.from_numpy(draw) for draw in draws])


def texts(
    samples: Sequence[Sequence[Sample]], decode: Callable[[list[list[int]]], list[str]]
) -> list[list[Completion]]:
    """Samples with their text, decoded together."""
    flat = [one for group in samples for one in group]
    said = iter(decode([one.ids[:-1] if one.finished else one.ids for one in flat]))
    return [list(_completions(group, said)) for group in samples]


def _completions(group: Sequence[Sample], said: Iterator[str]) -> Iterator[Completion]:
    for one in group:
        yield Completion(next(said), tuple(one.ids), one.logprob, one.finished)
