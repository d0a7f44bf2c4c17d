"""Rankings as evidence: rows with the tokens that carry the influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.evidence.findings import (
    EvidenceItem,
    RankedRow,
    RowsEvidence,
    Token,
    Transcript,
    TranscriptsEvidence,
)

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


def trace_sections(tokenizer: Any, traced: Traced, *, top: int = 20) -> list[Section]:
    """A section per query: the question, the rows that argue for its answer, and those against."""
    from glasshouse.evidence.report import Section

    return [
        Section(
            _heading(traced, name), _pool_words(traced, name, top), _query_evidence(tokenizer, traced, q, top)
        )
        for q, name in enumerate(traced.table.query_ids)
    ]


def _heading(traced: Traced, name: str) -> str:
    return (
        f"Query {name}"
        if _of(traced, name)
        else f"All {len(traced.prepared.queries)} queries as one question"
    )


def _of(traced: Traced, name: str) -> list[Record]:
    """The query called so; none where all were asked as one (whose name a query might bear by chance)."""
    if traced.prepared.options.query_agg != "each":
        return []
    return [record for record in traced.prepared.queries if record.id == name]


def _query_evidence(tokenizer: Any, traced: Traced, q: int, top: int) -> tuple[EvidenceItem, ...]:
    asked = _of(traced, traced.table.query_ids[q]) or list(traced.prepared.queries)
    turns = [tuple((turn.role, turn.text) for turn in record.turns) for record in asked]
    question = TranscriptsEvidence(
        title="The answer to explain" if len(asked) == 1 else "The answers to explain",
        transcripts=tuple(Transcript(turns=each) for each in turns),
    )
    sides: tuple[Literal["+", "-"], ...] = ("+", "-") if traced.highlight is not None else ("+",)
    return (question, *(_side(tokenizer, traced, q, sign, top) for sign in sides))


def _side(tokenizer: Any, traced: Traced, q: int, sign: Literal["+", "-"], top: int) -> RowsEvidence:
    highlight, prepared = traced.highlight, traced.prepared
    ranking = [(row, score) for row, score in traced.table.top(q, top, sign=sign) if score * _SIGN[sign] > 0]
    what = _SIDES[sign] if highlight is not None else "Rows that share most words with it"
    return RowsEvidence(
        title=what if ranking else f"{what}: none",
        caption=traced.table.meta["convention"][:1].upper() + traced.table.meta["convention"][1:] + ".",
        rows=ranked_rows(
            prepared.rows,
            ranking,
            tokenizer=tokenizer,
            weights=None if highlight is None else lambda row: highlight(q, row),
            note=lambda record: prepared.pools.get(record.id, ""),
        ),
    )


_SIGN = {"+": 1.0, "-": -1.0}
_SIDES = {"+": "Rows that argue most for the answer", "-": "Rows that argue most against the answer"}


def _pool_words(traced: Traced, name: str, top: int) -> str:
    """Where only some rows were scored: which, and what the random ones say about the others."""
    from glasshouse.attribution.tracing import BY_CHANCE

    pools = traced.prepared.pools
    if not pools:
        return ""
    chance = sum(why == BY_CHANCE for why in pools.values())
    best = [row for row, _ in traced.table.top(name, top)]
    among = sum(pools[row] == BY_CHANCE for row in best)
    return (
        f"Only {len(pools):,} of {len(traced.prepared.rows):,} rows were scored: {len(pools) - chance:,} "
        f"share words with a query, {chance:,} are random others. Of the first {len(best)}, {among} are "
        "random; where many are, words do not find the causes: score all rows."
    )
