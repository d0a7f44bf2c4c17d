"""`Choices`: points of a language model with a closed set of whole answers each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import IGNORE, Record, TokenBatch, TokenRow, pad
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.attribution.label_sets import LabelSet


class Choices:
    """`rows[i][k]`: point i with answer k, loss on the answer only; `given` [n]: which answer i carries.

    All points have the same number C >= 2 of answers; answers may have any number of tokens. A batch of n
    points holds n * C rows, the answers of a point one after the other, all under the point's id.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[TokenRow]],
        given: Sequence[int] | Tensor,
        *,
        labels: Sequence[str] = (),
        ids: Sequence[str] | None = None,
        pad_id: int = 0,
    ) -> None:
        self.rows = [list(row) for row in rows]
        self.given = torch.as_tensor(given, dtype=torch.long)
        self.labels, self.pad_id = tuple(labels), pad_id
        named = [row[0].row_id or str(i) for i, row in enumerate(self.rows)] if ids is None else list(ids)
        self.ids = tuple(named)
        self._check()

    @classmethod
    def from_records(
        cls, subject: Any, records: Sequence[Record], labels: Sequence[str] | LabelSet | None = None
    ) -> Choices:
        """The rows that carry one of a closed set of answers (found in them, or the `labels` given).

        Each row is encoded as in training (chat template, end token), once with every answer. Raises
        InputError where there is no closed set or a row is longer than the model's context.
        """
        from glasshouse.attribution.label_sets import LabelSet, candidates, find_labels

        found = labels if isinstance(labels, LabelSet) else find_labels(records, labels)
        kept = [records[int(i)] for i in found.places]
        rows = candidates(subject, kept, found.labels)
        long = [r.id for r, row in zip(kept, rows, strict=True) if max(map(len, row)) > subject.context]
        if long:
            raise InputError(
                f"{len(long)} rows are longer than the model's context of {subject.context} tokens "
                f"(first: {long[0]})", fix="shorten them, or leave them out",
            )  # fmt: skip
        pad_id = getattr(subject.tokenizer, "pad_token_id", None) or 0
        return cls(rows, found.given, labels=found.labels, ids=[r.id for r in kept], pad_id=pad_id)

    @property
    def width(self) -> int:
        """C, the number of answers."""
        return len(self.rows[0])

    @property
    def sizes(self) -> list[int]:
        """Padded tokens of each point, over all its answers."""
        return [self.width * max(len(one) for one in row) for row in self.rows]

    @property
    def sha256(self) -> str:
        """Content address of ids, answers and which was given."""
        digest = hashlib.sha256()
        for name, row, given in zip(self.ids, self.rows, self.given.tolist(), strict=True):
            digest.update(repr((name, given, [(one.ids, one.labels) for one in row])).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """The points at `indices`, C rows each."""
        flat = [one for i in indices for one in self.rows[i]]
        batch = pad(flat, pad_id=self.pad_id)
        names = tuple(self.ids[i] for i in indices for _ in range(self.width))
        return TokenBatch(batch.input_ids, batch.attention_mask, batch.position_ids, batch.labels, names)

    def subset(self, indices: Sequence[int]) -> Choices:
        """The points at `indices` under their names."""
        at = list(indices)
        return Choices(
            [self.rows[i] for i in at], self.given[at], labels=self.labels,
            ids=[self.ids[i] for i in at], pad_id=self.pad_id,
        )  # fmt: skip

    def _check(self) -> None:
        if not self.rows:
            raise InputError("there are no rows to attribute to", fix="give at least one row")
        if len(self.given) != len(self.rows) or len(self.ids) != len(self.rows):
            raise InputError(
                f"{len(self.rows)} rows but {len(self.given)} given answers", fix="give one each"
            )
        if len(set(self.ids)) != len(self.ids):
            raise InputError("a row id appears twice", fix="give every row its own id")
        C = len(self.rows[0])
        if C < 2 or any(len(row) != C for row in self.rows):
            raise InputError(
                "the points have unequal numbers of answers, or one", fix="give the same two or more"
            )
        wrong = [self.ids[i] for i, y in enumerate(self.given.tolist()) if not 0 <= y < C]
        if wrong:
            raise InputError(f"{len(wrong)} labels are not among the {C} answers (first: row {wrong[0]!r})")
        empty = [i for i, row in zip(self.ids, self.rows, strict=True)
                 if any(all(t == IGNORE for t in one.labels[1:]) for one in row)]  # fmt: skip
        if empty:
            raise InputError(
                f"an answer of row {empty[0]!r} carries no labelled token", fix="label its tokens"
            )
