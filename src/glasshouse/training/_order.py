"""Which rows meet in which batch: the one sampler of every training engine.

The order is a function of (number of rows, lengths, batch size, seed, epoch) alone. No generator is carried
from step to step, so the data cursor of a resumed training is its step number and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


@dataclass(frozen=True)
class BatchOrder:
    """Row indices of every step: an epoch visits each row once, `batch_size` a step (one step may get fewer).

    With `lengths`, rows of similar length share a batch: rows are shuffled, sorted by length (ties stay
    shuffled), cut, and the batches shuffled. Without, a plain shuffle is cut.
    """

    n: int
    batch_size: int
    seed: int
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("there are no rows to train on", fix="give at least one row")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}", fix="give at least 1")
        if self.lengths is not None and len(self.lengths) != self.n:
            raise InputError(f"{len(self.lengths)} lengths for {self.n} rows", fix="give one length per row")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the rows."""
        return -(-self.n // self.batch_size)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of epoch `number` (from 0), each an int64 array of at most `batch_size` row indices."""
        draw = rng(self.seed, "batches", number)
        rows = draw.permutation(self.n)
        if self.lengths is None:
            return [rows[at : at + self.batch_size] for at in range(0, self.n, self.batch_size)]
        rows = rows[np.argsort(np.asarray(self.lengths)[rows], kind="stable")]
        sizes = np.full(self.steps_per_epoch, self.batch_size)
        # The short batch gets any place: always the longest rows would make these weigh more than others.
        sizes[draw.integers(len(sizes))] -= int(sizes.sum()) - self.n
        batches = np.split(rows, sizes.cumsum()[:-1])
        return [batches[i] for i in draw.permutation(len(batches))]

    def walk(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The batches of steps `start` (inclusive) to `stop` (exclusive)."""
        at = start
        while at < stop:
            number, skip = divmod(at, self.steps_per_epoch)
            for rows in self.epoch(number)[skip : skip + stop - at]:
                yield rows
                at += 1


def count_steps(order: BatchOrder, *, steps: int | None, epochs: float | None) -> int:
    """The number of optimizer steps for exactly one of `steps` and `epochs`."""
    if (steps is None) == (epochs is None):
        raise InputError(f"steps={steps} and epochs={epochs}", fix="give exactly one of the two")
    total = steps if steps is not None else round(order.steps_per_epoch * (epochs or 0.0))
    if total < 1:
        raise InputError(f"the training has {total} steps", fix="give at least one step")
    return total
