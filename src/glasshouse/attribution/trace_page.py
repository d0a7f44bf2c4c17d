"""What a trace leaves for its reader: `scores.parquet`, `trace.json` and the page `trace.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.attribution.telling import ranked_rows
from glasshouse.attribution.tracing import BY_CHANCE
from glasshouse.evidence.findings import EvidenceItem, RowsEvidence, Transcript, TranscriptsEvidence
from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import Traced
    from glasshouse.corpora.rows import Record
    from glasshouse.evidence.report import Section

TITLE = "Which training rows did it?"


def write_trace(folder: Path, traced: Traced, *, top: int = 20) -> Path:
    """Write all three files, each whole or not, and return the page's path.

    The page comes last, so that it never speaks of scores that are not there.
    """
    from glasshouse.evidence.report import render_sections

    prepared = traced.prepared
    sections = trace_sections(prepared.subject.tokenizer, traced, top=top)
    provenance = {
        **prepared.spec(),
        **traced.table.meta,
        "row_norm": prepared.row_norm,
        "modules_left_out": prepared.left_out,
    }
    told = {
        "schema_version": 1,
        "subject": prepared.subject.name,
        "notes": list(prepared.notes),
        "cut_rows": list(prepared.cut),
        "queries": [
            {
                "query": name,
                "about": s.text,
                "evidence": [item.model_dump(mode="json") for item in s.evidence],
            }
            for name, s in zip(traced.table.query_ids, sections, strict=True)
        ],
        "provenance": provenance,
    }
    html = render_sections(TITLE, _lead(traced), sections, provenance, all_in="trace.json")
    write_scores(folder / "scores.parquet", traced)
    files.write_json(folder / "trace.json", told)
    return files.write_text(folder / "trace.html", html)


def write_scores(path: Path, traced: Traced) -> Path:
    """`query, row, score, rank` (1 = argues most for it) as Parquet, best first for each query.

    With `bm25_filter` also `pool`. The same trace gives the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, pools = traced.table, traced.prepared.pools
    columns: dict[str, list[Any]] = {"query": [], "row": [], "score": [], "rank": []}
    for q, query in enumerate(table.query_ids):
        best = table.top(q, len(table.train_ids))
        columns["query"] += [query] * len(best)
        columns["row"] += [row for row, _ in best]
        columns["score"] += [score for _, score in best]
        columns["rank"] += range(1, len(best) + 1)
    types = {"query": pa.string(), "row": pa.string(), "score": pa.float32(), "rank": pa.int64()}
    if pools:
        columns["pool"], types["pool"] = [pools[row] for row in columns["row"]], pa.string()
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=pa.schema(list(types.items()))), temporary)
    return path


def trace_sections(tokenizer: Any, traced: Traced, *, top: int = 20) -> list[Section]:
    """A section per query: the question, the rows that argue for its answer, and those against."""
    from glasshouse.evidence.report import Section

    return [
        Section(
            _heading(traced, name), _pool_words(traced, name, top), _query_evidence(tokenizer, traced, q, top)
        )
        for q, name in enumerate(traced.table.query_ids)
    ]


def _lead(traced: Traced) -> str:
    prepared, n = traced.prepared, len(traced.table.train_ids)
    asked, model = len(prepared.queries), prepared.subject.name
    ranked = f"{n:,} training rows ranked for {asked:,} answer{'s' if asked > 1 else ''} of {model}."
    tested = "A ranking is a hypothesis: leave the top rows out, train again, and look."
    return " ".join([ranked, tested, *prepared.notes])


def _heading(traced: Traced, name: str) -> str:
    if len(traced.prepared.queries) == 1:
        return "One answer"
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
        title="What is to be explained",
        transcripts=tuple(Transcript(turns=each) for each in turns),
    )
    sides: tuple[Literal["+", "-"], ...] = ("+", "-") if _argues(traced) else ("+",)
    return (question, *(_side(tokenizer, traced, q, sign, top) for sign in sides))


def _side(tokenizer: Any, traced: Traced, q: int, sign: Literal["+", "-"], top: int) -> RowsEvidence:
    highlight, prepared = traced.highlight, traced.prepared
    ranking = [(row, score) for row, score in traced.table.top(q, top, sign=sign) if score * _SIGN[sign] > 0]
    what = _SIDES[sign] if _argues(traced) else _ALIKE[traced.prepared.options.method][0]
    return RowsEvidence(
        title=what if ranking else f"{what}: none",
        caption=_caption(traced),
        rows=ranked_rows(
            prepared.rows,
            ranking,
            tokenizer=tokenizer,
            weights=None if highlight is None else lambda row: highlight(q, row),
            note=lambda record: prepared.pools.get(record.id, ""),
        ),
    )


def _argues(traced: Traced) -> bool:
    """Whether a score says what a row does to the answer; likeness has no other side."""
    return traced.prepared.options.door.gradients


def _caption(traced: Traced) -> str:
    if not _argues(traced):
        return _ALIKE[traced.prepared.options.method][1]
    marked = " Marked words carry the influence; marks are scaled within each row."
    return (
        "Positive: more weight on the row in training raises the log-probability of the answer."
        f"{_DIVIDED[traced.prepared.row_norm]}{marked if traced.highlight is not None else ''}"
    )


_DIVIDED = {
    "none": "",
    "grad": " Scores are divided by the size of each row's own gradient.",
    "self": " Scores are divided by the root of each row's influence on itself.",
}
_ALIKE = {
    "bm25": (
        "Rows that share most words with it",
        "BM25: rare words in common. It knows no model, and no row argues against.",
    ),
    "representation": (
        "Rows the model reads most alike",
        "Likeness of hidden states. It says what is similar, not what a row did to the model.",
    ),
    "embedding": (
        "Rows that mean most alike",
        "Likeness of text embeddings. It knows no model, and no row argues against.",
    ),
}
_SIGN = {"+": 1.0, "-": -1.0}
_SIDES = {"+": "Rows that argue most for the answer", "-": "Rows that argue most against the answer"}


def _pool_words(traced: Traced, name: str, top: int) -> str:
    """Where only some rows were scored: which, and what the random ones say about the others."""
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
