"""Units: what gets a score. Two shapes of data behind one small interface.

`TokenUnits` holds tokenised rows of a language model, `TensorUnits` holds inputs and targets of any module.
Both give batches by index, name their rows, and hash to one content address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from glasshouse.corpora.rows import IGNORE, Record, TokenBatch, TokenRow, pad
from glasshouse.runtime.errors import InputError


@dataclass(frozen=True)
class TensorBatch:
    """Inputs [B, ...] and targets [B] or [B, C] of any module, with their row ids."""

    inputs: Tensor
    targets: Tensor
    row_ids: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def to(self, device: str | torch.device) -> TensorBatch:
        """The same batch on another device."""
        return TensorBatch(self.inputs.to(device), self.targets.to(device), self.row_ids)


Batch: TypeAlias = TokenBatch | TensorBatch


class Units(Protocol):
    """A data set whose rows can be scored."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One unique name per row."""

    @property
    def sizes(self) -> list[int]:
        """Tokens per row (1 for tensor rows), for batching by cost."""

    @property
    def sha256(self) -> str:
        """Content address of rows and ids."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows at `indices`, in that order."""


class TokenUnits:
    """Tokenised rows; refuses rows without a single labelled token, naming them."""

    def __init__(
        self, rows: Sequence[TokenRow], *, side: Literal["left", "right"] = "right", pad_id: int = 0
    ) -> None:
        self.rows, self.side, self.pad_id = list(rows), side, pad_id
        if not self.rows:
            raise InputError("there are no rows to attribute to", fix="give at least one row")
        self.ids = _unique([row.row_id for row in self.rows])
        # The first token is never predicted, so a label there alone carries no loss.
        empty = [
            i for i, row in zip(self.ids, self.rows, strict=True) if all(t == IGNORE for t in row.labels[1:])
        ]
        if empty:
            raise InputError(
                f"{len(empty)} row(s) carry no labelled token: {', '.join(empty[:8])}",
                where="train data or queries",
                fix="drop them, or label at least one token after the first",
            )

    @property
    def sizes(self) -> list[int]:
        """Tokens per row."""
        return [len(row) for row in self.rows]

    @property
    def sha256(self) -> str:
        """Content address of ids, tokens and labels."""
        digest = hashlib.sha256()
        for name, row in zip(self.ids, self.rows, strict=True):
            digest.update(repr((name, row.ids, row.labels)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """A padded batch of the rows at `indices`."""
        rows = [self.rows[i] for i in indices]
        batch = pad(rows, side=self.side, pad_id=self.pad_id)
        names = tuple(self.ids[i] for i in indices)
        return TokenBatch(batch.input_ids, batch.attention_mask, batch.position_ids, batch.labels, names)

    def subset(self, indices: Sequence[int]) -> TokenUnits:
        """The rows at `indices` under their names."""
        rows = [TokenRow(self.rows[i].ids, self.rows[i].labels, self.ids[i]) for i in indices]
        return TokenUnits(rows, side=self.side, pad_id=self.pad_id)


class TensorUnits:
    """Inputs [N, ...] and targets [N] or [N, C]; refuses NaN and infinite inputs, naming the rows."""

    def __init__(self, inputs: Tensor, targets: Tensor, ids: Sequence[str] | None = None) -> None:
        if len(inputs) == 0:
            raise InputError("there are no rows to attribute to", fix="give at least one row")
        if len(inputs) != len(targets):
            raise InputError(
                f"{len(inputs)} inputs but {len(targets)} targets", fix="give one target per row"
            )
        self.inputs, self.targets = inputs, targets
        self.ids = _unique([str(i) for i in range(len(inputs))] if ids is None else list(ids))
        if len(self.ids) != len(inputs):
            raise InputError(f"{len(self.ids)} ids but {len(inputs)} rows", fix="give one id per row")
        if inputs.is_floating_point():
            bad = (~torch.isfinite(inputs).flatten(1).all(1)).nonzero().flatten().tolist()
            if bad:
                names = ", ".join(self.ids[i] for i in bad[:8])
                raise InputError(f"{len(bad)} row(s) hold NaN or infinity: {names}", fix="clean these rows")

    @property
    def sizes(self) -> list[int]:
        """One token per row."""
        return [1] * len(self)

    @property
    def sha256(self) -> str:
        """Content address of ids, inputs and targets."""
        digest = hashlib.sha256(repr(self.ids).encode())
        for part in (self.inputs, self.targets):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Sequence[int]) -> TensorBatch:
        """The rows at `indices`."""
        at = torch.as_tensor(list(indices), dtype=torch.long)
        return TensorBatch(self.inputs[at], self.targets[at], tuple(self.ids[i] for i in indices))

    def subset(self, indices: Sequence[int]) -> TensorUnits:
        """The rows at `indices` under their names."""
        at = torch.as_tensor(list(indices), dtype=torch.long)
        return TensorUnits(self.inputs[at], self.targets[at], [self.ids[i] for i in indices])


def as_units(data: Any, *, tokenizer: Any = None, loss_on: str = "auto") -> Units:
    """Units from TokenRows, Records (these need a tokenizer), an (inputs, targets) pair, or units themselves.

    Raises InputError for anything else, for no rows, and for rows without a labelled token.
    """
    if isinstance(data, TokenUnits | TensorUnits) or hasattr(data, "batch"):
        return data
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorUnits(*data)
    rows = list(data)
    if rows and all(isinstance(row, TokenRow) for row in rows):
        return TokenUnits(rows, pad_id=_pad_id(tokenizer))
    if rows and all(isinstance(row, Record) for row in rows):
        if tokenizer is None:
            raise InputError("records need a tokenizer", fix="pass a Subject, or TokenRows")
        from glasshouse.corpora.tokens import encode_records

        return TokenUnits(encode_records(tokenizer, rows, loss_on=loss_on), pad_id=_pad_id(tokenizer))
    if not rows:
        raise InputError("there are no rows to attribute to", fix="give at least one row")
    kind = type(rows[0]).__name__
    raise InputError(
        f"cannot attribute to rows of type {kind}", fix="give TokenRows, Records or (inputs, targets)"
    )


def cost_batches(sizes: Sequence[int], indices: Sequence[int], tokens: int, most: int) -> list[list[int]]:
    """Indices in batches of similar length: at most `tokens` padded tokens and `most` rows each."""
    batches: list[list[int]] = []
    for i in sorted(indices, key=lambda j: (sizes[j], j)):
        if batches and len(batches[-1]) < most and sizes[i] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _pad_id(tokenizer: Any) -> int:
    value = getattr(tokenizer, "pad_token_id", None)
    return 0 if value is None else int(value)


def _unique(names: list[str]) -> tuple[str, ...]:
    """Row names, with the position where rows have none; duplicates are an error."""
    named = [name or str(i) for i, name in enumerate(names)]
    if len(set(named)) != len(named):
        seen: set[str] = set()
        twice = next(n for n in named if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise InputError(f"the row id {twice!r} appears twice", fix="give every row its own id")
    return tuple(named)
