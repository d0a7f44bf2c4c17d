"""Rows of token ids as padded tensors, and the checks every row passes before it reaches the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.corpora.rows import TokenBatch
from glasshouse.runtime.errors import InputError

Ids = Sequence[int]


@dataclass(frozen=True)
class Padded:
    """`ids` [B, T]; `mask` and `positions` [B, T], or None when no row is padded; `lengths`, `starts` [B]."""

    ids: Tensor
    mask: Tensor | None
    positions: Tensor | None
    lengths: Tensor
    starts: Tensor


def pad_right(rows: Sequence[Ids], device: str) -> Padded:
    """Rows from column 0. No mask: a causal model never looks right, so no token sees the padding."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    # Repeating the last token keeps clear of a pad token the model may treat in its own way.
    ids = torch.tensor([[*row, *([row[-1]] * (width - len(row)))] for row in rows])
    return Padded(ids.to(device), None, None, lengths.to(device), torch.zeros_like(lengths).to(device))


def pad_left(rows: Sequence[Ids], device: str) -> Padded:
    """Rows up to the last column, with mask and position ids (GPT-2 needs them, rotary models do not)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*([row[0]] * (width - len(row))), *row] for row in rows])
    starts = width - lengths
    if not bool(starts.any()):
        return Padded(ids.to(device), None, None, lengths.to(device), starts.to(device))
    columns = torch.arange(width)
    mask = (columns >= starts[:, None]).long()
    positions = (columns - starts[:, None]).clamp_min(0)
    return Padded(
        ids.to(device), mask.to(device), positions.to(device), lengths.to(device), starts.to(device)
    )


def check_rows(rows: Sequence[Ids], *, context: int, vocab_size: int, more: int = 0) -> None:
    """Raise InputError naming the first row with an unknown token or no room for `more` in the context."""
    for index, row in enumerate(rows):
        if len(row) + more > context:
            new = f" and {more} more are asked for" if more else ""
            raise InputError(
                f"the row has {len(row)} tokens{new}, but the model's context holds {context}",
                where=f"row {index}",
                fix="shorten it",
            )
        if row and (max(row) >= vocab_size or min(row) < 0):
            bad = next(i for i in row if not 0 <= i < vocab_size)
            raise InputError(
                f"token {bad} is outside the vocabulary of {vocab_size}",
                where=f"row {index}",
                fix="encode it with the subject's own tokenizer",
            )


def check_batch(batch: TokenBatch, *, context: int, vocab_size: int) -> None:
    """`check_rows` for a padded batch. Raises InputError naming the first bad row."""
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    check_rows(rows, context=context, vocab_size=vocab_size)
