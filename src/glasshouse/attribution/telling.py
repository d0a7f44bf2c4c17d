"""Rankings as evidence: rows with the tokens that carry the influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.findings import RankedRow, Token

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record

Weights = Sequence[float] | np.ndarray


def ranked_rows(
    records: Sequence[Record],
    ranking: Sequence[tuple[str, float]],
    *,
    tokenizer: Any,
    weights: Callable[[str], Weights] | None = None,
    highlighted: int = 10,
    note: Callable[[Record], str] | None = None,
) -> tuple[RankedRow, ...]:
    """Evidence rows of a ranking [(row id, score)]; the first `highlighted` get token weights.

    `weights(row_id)` gives one number per token of the encoded row; they are scaled to [-1, 1] by the
    heaviest one that is shown in its row.
    """
    by_id = {record.id: record for record in records}
    rows = []
    for place, (row_id, score) in enumerate(ranking):
        record = by_id[row_id]
        given = weights(row_id) if weights is not None and place < highlighted else None
        turns = highlighted_turns(tokenizer, record, given)
        rows.append(RankedRow(row_id=row_id, score=score, turns=turns, note=note(record) if note else ""))
    return tuple(rows)


def highlighted_turns(
    tokenizer: Any, record: Record, weights: Weights | None
) -> tuple[tuple[str, tuple[Token, ...]], ...]:
    """(role, tokens) of each turn; plain text where the tokens cannot be told apart in the rendered row."""
    parts = [("text", record.text)] if record.text is not None else [(t.role, t.text) for t in record.turns]
    plain = tuple((role, (Token(text=text),)) for role, text in parts)
    if weights is None:
        return plain
    pieces = _pieces(tokenizer, record)
    if pieces is None:
        return plain
    rendered, offsets = pieces
    spans, cursor = [], 0
    for _, text in parts:
        at = rendered.find(text, cursor)
        if at < 0:
            return plain
        cursor = at + len(text)
        spans.append((at, cursor))
    scaled = _scaled(np.asarray(weights, dtype=float)[: len(offsets)], offsets, spans)
    return tuple(
        (role, _cut(rendered, offsets, scaled, *span)) for (role, _), span in zip(parts, spans, strict=True)
    )


def _scaled(
    weights: np.ndarray, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Weights in [-1, 1], 1 being the heaviest token that is shown (a template's own tokens are not)."""
    shown = [
        any(a < stop and b > start and b > a for start, stop in spans) for a, b in offsets[: len(weights)]
    ]
    largest = float(np.abs(weights[shown]).max(initial=0.0))
    return np.clip(weights / largest, -1.0, 1.0) if largest > 0 else weights


def _pieces(tokenizer: Any, record: Record) -> tuple[str, list[tuple[int, int]]] | None:
    """The rendered row and the character span of each of its tokens, as training saw them."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    if record.text is not None:
        rendered, special = record.text, True
    elif getattr(tokenizer, "chat_template", None):
        from glasshouse.corpora.tokens import render

        rendered, special = render(tokenizer, record.turns), False
    else:  # prompt and completion are tokenised apart
        return _apart(tokenizer, [turn.text for turn in record.turns])
    encoded = tokenizer(rendered, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return rendered, list(encoded["offset_mapping"])


def _apart(tokenizer: Any, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    spans: list[tuple[int, int]] = []
    start = 0
    for index, text in enumerate(texts):
        encoded = tokenizer(text, add_special_tokens=index == 0, return_offsets_mapping=True, verbose=False)
        spans += [(a + start, b + start) for a, b in encoded["offset_mapping"]]
        start += len(text)
    return "".join(texts), spans


def _cut(
    rendered: str, offsets: Sequence[tuple[int, int]], weights: np.ndarray, start: int, stop: int
) -> tuple[Token, ...]:
    """The tokens that fall into [start, stop), with the characters no token covers in between."""
    tokens, at = [], start
    for (a, b), weight in zip(offsets, weights.tolist(), strict=False):
        a, b = max(a, at), min(b, stop)
        if a >= b:
            continue
        if a > at:
            tokens.append(Token(text=rendered[at:a]))
        tokens.append(Token(text=rendered[a:b], weight=weight))
        at = b
    if at < stop:
        tokens.append(Token(text=rendered[at:stop]))
    return tuple(tokens)
