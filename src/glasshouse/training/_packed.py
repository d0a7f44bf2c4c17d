"""Token rows in flat tensors, so that a batch is one gather and no Python touches a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.errors import InputError


@dataclass(frozen=True)
class PackedRows:
    """All rows of a training, tokens end to end.

    `ids` [total tokens]; `targets` [total tokens] holds the label of the *next* position, -100 at each
    row's end; `starts` and `counts` [N] locate the rows.
    """

    ids: Tensor
    targets: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Sequence[TokenRow], *, device: torch.device | str = "cpu") -> PackedRows:
        """Pack rows; raises InputError naming the first row that has nothing to predict."""
        if not rows:
            raise InputError("there are no rows to train on", fix="give at least one row")
        for index, row in enumerate(rows):
            # The label of the first token is never predicted: nothing precedes it.
            if all(label == IGNORE for label in row.labels[1:]):
                raise InputError(
                    "no token of the row carries a label that can be predicted",
                    where=f"row {row.row_id or index!r}",
                    fix="give it a non-empty completion, or drop it",
                )
        counts = torch.tensor([len(row) for row in rows])
        return cls(
            torch.tensor([i for row in rows for i in row.ids], device=device),
            torch.tensor([i for row in rows for i in (*row.labels[1:], IGNORE)], device=device),
            (counts.cumsum(0) - counts).to(device),
            counts.to(device),
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per row."""
        return tuple(int(count) for count in self.counts)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Right-padded ids and targets, both int64 [B, T]; padding has id 0 and target -100."""
        counts = self.counts[rows]
        at = torch.arange(int(counts.max()), device=rows.device)
        inside = at < counts[:, None]
        flat = torch.where(inside, self.starts[rows, None] + at, 0)
        ids = torch.where(inside, self.ids[flat], 0)
        return ids, torch.where(inside, self.targets[flat], IGNORE)
