"""Training tokens with their hidden states and goals, step by step.

The model is frozen, so states are computed once and kept in memory where they fit (`cache_bytes`); else the
model runs again whenever a row comes round. Rows are put in an order of their own first, so that neither the
order in which they were given nor a kill changes what a step sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.internals.tuned_lens.head import Head
from glasshouse.internals.tuned_lens.kernel import Goal, ce_goal, kl_goal
from glasshouse.internals.tuned_lens.options import Options
from glasshouse.internals.tuned_lens.streams import NONE, Rows, Streams, read
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import track
from glasshouse.runtime.seeds import rng

Part = tuple[Tensor, Goal]
"""Hidden states [L, n, d] and what to predict at these n tokens."""


class Supply:
    """What each training step learns from: `parts(rows)` for the rows that `steps()` names."""

    def __init__(self, subject: Any, head: Head, rows: Rows, options: Options, cache_bytes: int) -> None:
        self.subject, self.head, self.options = subject, head, options
        self.rows = sorted(rows)
        self.counts = [options.counted(len(row)) for row in self.rows]
        self.useful = [i for i, count in enumerate(self.counts) if count]
        if not self.useful:
            raise InputError(
                f"no row is longer than skip_first ({options.skip_first}) tokens", fix="give longer rows"
            )
        self._cache: dict[int, Part] | None = {} if self._bytes() <= cache_bytes else None

    @property
    def cached(self) -> bool:
        """Whether hidden states are kept in memory."""
        return self._cache is not None

    def steps(self) -> Iterator[list[int]]:
        """The rows of each step: at least `tokens_per_step` tokens, epoch after epoch, shuffled by seed."""
        step: list[int] = []
        tokens = 0
        for epoch in range(self.options.steps * len(self.useful)):
            for index in rng(self.options.seed, "epoch", epoch).permutation(len(self.useful)):
                step.append(self.useful[int(index)])
                tokens += len(self.rows[step[-1]])
                if tokens >= self.options.tokens_per_step:
                    yield step
                    step, tokens = [], 0

    def parts(self, rows: list[int]) -> Iterator[Part]:
        """Hidden states and goals of these rows, batch by batch."""
        if self._cache is None:
            for which in self._batches(rows):
                yield self._part(read(self.subject, self.rows, which))
            return
        if not self._cache:
            self._fill()
        for which in self._batches(rows):
            found = [self._cache[i] for i in which]
            yield torch.cat([h for h, _ in found], 1), Goal.cat([goal for _, goal in found])

    def _batches(self, rows: list[int]) -> list[list[int]]:
        lengths = [len(self.rows[i]) for i in rows]
        return [[rows[i] for i in one] for one in length_buckets(lengths, self.options.batch_tokens)]

    def _part(self, streams: Streams) -> Part:
        keep = streams.position >= self.options.skip_first
        if self.options.loss == "ce":
            keep &= streams.next != NONE
        kept = streams.take(keep)
        if self.options.loss == "kl":
            return kept.h[:-1], kl_goal(self.head, kept.h[-1].to(self.head.device))
        return kept.h[:-1], ce_goal(self.head, kept.next.to(self.head.device))

    def _fill(self) -> None:
        assert self._cache is not None
        for which in track(self._batches(self.useful), "reading hidden states"):
            streams = read(self.subject, self.rows, which)
            h, goal = self._part(streams)
            start = 0
            for index in which:
                at = slice(start, start + self.counts[index])
                self._cache[index] = h[:, at].clone(), goal[at]
                start = at.stop

    def _bytes(self) -> int:
        """Memory that the states and goals of all rows would take."""
        state = (
            self.subject.n_layers * self.subject.d_model * torch.empty(0, dtype=self.subject.dtype).itemsize
        )
        return sum(self.counts) * (state + 4 * (self.subject.d_model + 4))
