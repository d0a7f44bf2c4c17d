"""Rankings as evidence: rows with the tokens that carry the influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.findings import RankedRow, RowsEvidence, Token

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import Traced
    from glasshouse.corpora.rows import Record
    from glasshouse.evidence.report import Section

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

    `weights(row_id)` gives one number per token of the encoded row; they are scaled to [-1, 1] per row.
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
    scaled = np.asarray(weights, dtype=float)[: len(offsets)]
    largest = float(np.abs(scaled).max(initial=0.0))
    scaled = scaled / largest if largest > 0 else scaled
    turns, cursor = [], 0
    for role, text in parts:
        at = rendered.find(text, cursor)
        if at < 0:
            return plain
        cursor = at + len(text)
        turns.append((role, _cut(rendered, offsets, scaled, at, cursor)))
    return tuple(turns)


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
    encoded = tokenizer(rendered, add_special_tokens=special, return_offsets_mapping=True)
    return rendered, list(encoded["offset_mapping"])


def _apart(tokenizer: Any, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    spans: list[tuple[int, int]] = []
    start = 0
    for index, text in enumerate(texts):
        encoded = tokenizer(text, add_special_tokens=index == 0, return_offsets_mapping=True)
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


def trace_sections(
    tokenizer: Any, rows: Sequence[Record], queries: Sequence[Record], traced: Traced, *, top: int = 20
) -> list[Section]:
    """A section per query: the question, the rows that argue for its answer, and those against."""
    from glasshouse.evidence.report import Section

    table, asked = traced.table, {record.id: record for record in queries}
    sections = []
    for q, name in enumerate(table.query_ids):
        record = asked.get(name)
        text = f"All queries as one question ({name})." if record is None else _quoted(record)
        both = (("for", "+"), ("against", "-")) if traced.highlight is not None else (("for", "+"),)
        evidence = tuple(_side(tokenizer, rows, traced, q, side, sign, top) for side, sign in both)
        sections.append(Section(f"Query {name}", text, evidence))
    return sections


def _side(
    tokenizer: Any, rows: Sequence[Record], traced: Traced, q: int, side: str, sign: Any, top: int
) -> RowsEvidence:
    highlight = traced.highlight
    ranking = traced.table.top(q, top, sign=sign)
    return RowsEvidence(
        title=f"Rows that argue most {side} the answer",
        caption=traced.table.meta["convention"],
        rows=ranked_rows(
            rows,
            ranking,
            tokenizer=tokenizer,
            weights=None if highlight is None else lambda row: highlight(q, row),
            note=lambda record: traced.pools.get(record.id, ""),
        ),
    )


def _quoted(record: Record) -> str:
    return " → ".join(turn.text for turn in record.turns)
