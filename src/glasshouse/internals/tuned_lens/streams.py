"""Residual streams of many rows: which rows are meant, and the states of every layer, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import TokenBatch, TokenRow, length_buckets, pad
from glasshouse.corpora.tokens import plain_ids
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.subjects import Site
from glasshouse.subjects.batches import check_rows
from glasshouse.subjects.prompts import need_tokenizer

Rows = list[list[int]]
NONE = -1
"""`next` of a row's last token: nothing follows."""


def rows_of(subject: Any, tokens: Any, attention_mask: Tensor | None = None) -> Rows:
    """Unpadded token ids of `tokens`: texts, turns, ids, `TokenRow`s, a `TokenBatch`, or a tensor [N, T].

    Raises InputError for no rows, an empty row, a row beyond the context, ids outside the vocabulary, and a
    tensor that looks padded but has no mask.
    """
    if isinstance(tokens, TokenBatch):
        tokens, attention_mask = tokens.input_ids, tokens.attention_mask
    if isinstance(tokens, Tensor):
        rows = _unpadded(subject, tokens, attention_mask)
    elif attention_mask is not None:
        raise InputError("a mask was given for rows that are lists", fix="give a tensor [N, T], or no mask")
    else:
        listed = list(tokens) if not isinstance(tokens, str) else tokens
        rows = subject.encode_all([list(r.ids) if isinstance(r, TokenRow) else r for r in listed])
    if not rows:
        raise InputError("there are no rows", fix="give at least one text")
    check_rows(rows, context=subject.context, vocab_size=subject.vocab_size)
    return rows


def chunked(subject: Any, texts: Sequence[str], length: int) -> Rows:
    """Texts joined by the end token and cut into rows of `length` tokens; the short rest is dropped.

    The paper's own training data (2048 tokens there). No chat template is applied. Raises InputError when not
    one row is full.
    """
    tokenizer = need_tokenizer(subject.tokenizer)
    return joined(subject, [plain_ids(tokenizer, text) for text in texts], length)


def joined(subject: Any, documents: Rows, length: int) -> Rows:
    """Token ids of documents joined by the end token and cut as `chunked` does."""
    stop = subject.stop_ids[:1]
    flow = [i for ids in documents for i in (*ids, *stop)]
    length = min(length, subject.context)
    rows = [flow[k : k + length] for k in range(0, len(flow) - length + 1, length)]
    if not rows:
        raise InputError(
            f"the texts hold {len(flow)} tokens, less than one row of {length}", fix="give more text"
        )
    return rows


@dataclass(frozen=True)
class Streams:
    """Tokens of some rows, flat: h [L+1, n, d] (resid_pre.0 .. resid_pre.L-1, final_norm_in).

    `row`, `position` (unpadded), `ids` and `next` (the following id, -1 at the end of a row) are int64 [n].
    """

    h: Tensor
    row: Tensor
    position: Tensor
    ids: Tensor
    next: Tensor

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def take(self, which: Tensor) -> Streams:
        """The tokens at `which` (indices or a mask)."""
        return Streams(
            self.h[:, which], self.row[which], self.position[which], self.ids[which], self.next[which]
        )


def sites_of(n_layers: int) -> list[Site]:
    """The L + 1 streams that a lens reads; the last is before the final norm."""
    return [*(Site("resid_pre", layer) for layer in range(n_layers)), Site("final_norm_in")]


def read(subject: Any, rows: Rows, which: Sequence[int]) -> Streams:
    """One forward pass over some of the rows. Raises NumericalError naming a row with NaN or infinity."""
    batch = pad([TokenRow(tuple(rows[i]), tuple(rows[i]), str(i)) for i in which])
    acts = subject.run(batch, read=sites_of(subject.n_layers), logits=False).acts
    real = batch.attention_mask.bool()
    sites = sites_of(subject.n_layers)
    last = acts[sites[-1]].device  # layers of a split model lie on several devices
    h = torch.stack([acts[site][real.to(acts[site].device)].to(last) for site in sites])
    following = torch.full_like(batch.input_ids, NONE)
    following[:, :-1] = torch.where(real[:, 1:], batch.input_ids[:, 1:], NONE)
    row = torch.tensor(list(which))[:, None].expand_as(real)[real]
    _check_finite(h, row)
    return Streams(h, row, batch.position_ids[real], batch.input_ids[real], following[real])


def stream(subject: Any, rows: Rows, batch_tokens: int) -> Iterator[Streams]:
    """All rows, batches of similar length one after the other; never more than one batch is held."""
    for which in length_buckets([len(row) for row in rows], batch_tokens):
        yield read(subject, rows, which)


def _unpadded(subject: Any, ids: Tensor, mask: Tensor | None) -> Rows:
    if ids.ndim != 2 or ids.is_floating_point():
        raise InputError(f"token ids of shape {tuple(ids.shape)} {ids.dtype}", fix="give integers [N, T]")
    if mask is None:
        _refuse_padding(subject, ids)
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise InputError(f"a mask {tuple(mask.shape)} for token ids {tuple(ids.shape)}")
    rows = [one[keep].tolist() for one, keep in zip(ids, mask.bool(), strict=True)]
    for index, row in enumerate(rows):
        if not row:
            raise InputError("the mask leaves no token", where=f"row {index}", fix="drop the row")
    return rows


def _refuse_padding(subject: Any, ids: Tensor) -> None:
    """Two pad tokens at an end are padding; a lens trained on them would learn to predict padding."""
    padding = getattr(subject.tokenizer, "pad_token_id", None)
    if padding is None or ids.shape[1] < 2:
        return
    ends = (ids[:, -2:] == padding).all(1) | (ids[:, :2] == padding).all(1)
    if bool(ends.any()):
        raise InputError(
            "the row ends in padding and there is no mask",
            where=f"row {int(ends.int().argmax())}",
            fix="give attention_mask, a TokenBatch, or lists of ids",
        )


def _check_finite(h: Tensor, row: Tensor) -> None:
    flat = h.float().sum(-1)
    if not bool(torch.isfinite(flat).all()):
        layer, token = (int(i) for i in (~torch.isfinite(flat)).nonzero()[0])
        raise NumericalError(
            f"the stream of layer {layer} holds NaN or infinity",
            where=f"row {int(row[token])}",
            fix="look at the weights of the model",
        )
