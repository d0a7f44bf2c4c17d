"""The two shapes of data every layer passes on: records (text) and token batches (tensors).

Shapes: B rows, T positions. Masks and position ids are always explicit: rotary models forgive a missing
position id under left padding, GPT-2 does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""The label of a position that carries no loss."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One row of a data set: a conversation, a plain text, or a prompt with its completion (two turns).

    `id` is the row's own id if the file has one, else its position as text. `fields` keeps the columns that
    were not mapped. `where` is `file:line`, for errors about this row.
    """

    id: str
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    where: str = field(default="", compare=False)

    @property
    def plain(self) -> str:
        """The row as one string, for lexical methods and display."""
        return self.text if self.text is not None else "\n".join(turn.text for turn in self.turns)

    def said(self, role: Role) -> str:
        """What `role` said in this row, turns joined by newlines."""
        return "\n".join(turn.text for turn in self.turns if turn.role == role)


@dataclass(frozen=True)
class TokenRow:
    """One tokenised row. `labels[t]` is the token at t where it carries loss, else -100 (same length)."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    row_id: str = ""

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(
                "the row has no tokens", where=f"row {self.row_id!r}", fix="drop it or give it text"
            )
        if len(self.ids) != len(self.labels):
            raise InputError(
                f"{len(self.ids)} ids but {len(self.labels)} labels", where=f"row {self.row_id!r}"
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch: `input_ids`, `attention_mask`, `position_ids`, `labels`, all int64 [B, T].

    `position_ids` = clamp(cumsum(mask) - 1, 0). `labels` is -100 on padding and wherever there is no loss.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    row_ids: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: str | torch.device) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.position_ids.to(device),
            self.labels.to(device),
            self.row_ids,
        )

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments for a Hugging Face model's forward (no labels)."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def pad(
    rows: Sequence[TokenRow], *, side: Literal["left", "right"] = "right", pad_id: int = 0, multiple: int = 1
) -> TokenBatch:
    """Pad rows to one `TokenBatch`; T is the longest row rounded up to `multiple`.

    Raises InputError for an empty list.
    """
    import torch

    if not rows:
        raise InputError("cannot make a batch of no rows", fix="give at least one row")
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(rows):
        at = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[index, at] = torch.tensor(row.ids)
        mask[index, at] = 1
        labels[index, at] = torch.tensor(row.labels)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return TokenBatch(ids, mask, positions, labels, tuple(row.row_id for row in rows))


def rows_to_padded(positions: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Turn indices into unpadded rows [B, n] into indices into the padded batch [B, n], either side.

    Negative indices count from the end of each row. Raises InputError for an index outside its row.
    """
    import torch

    lengths = batch.attention_mask.sum(1, keepdim=True)
    start = batch.attention_mask.argmax(1, keepdim=True)
    absolute = torch.where(positions < 0, lengths + positions, positions)
    if bool(((absolute < 0) | (absolute >= lengths)).any()):
        raise InputError("a position lies outside its row", fix="check it against the unpadded length")
    return start + absolute


def length_buckets(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices grouped so that rows of similar length share a batch of at most `tokens_per_batch` tokens.

    Padding counts. Every index appears once; a row longer than the budget gets a batch of its own. Order
    inside the result depends only on the lengths, so that scores can be put back by index.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
