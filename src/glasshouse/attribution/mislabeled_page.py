"""What a ranking of labels leaves for its reader: `mislabeled.parquet`, `.json` and the page `.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.telling import ranked_rows
from glasshouse.evidence.findings import EvidenceItem, RowsEvidence, TableEvidence
from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.attribution.mislabeled import Ranked
    from glasshouse.corpora.rows import Record
    from glasshouse.evidence.report import Section

TITLE = "Which labels does the model not believe?"
MEANS = {
    "codelength": "Code length: what the label costs, and how easily any label would fit the point.",
    "self-influence": "Self-influence: how much training on the row again would move its own loss.",
    "loss": "Loss of the label in nats (of free replies: nats a token).",
    "el2n": "Squared error of the probabilities of the answers.",
    "grand": "Size of the gradient of the row's loss.",
}


def write(folder: Path, ranked: Ranked, *, top: int = 20) -> Path:
    """Write all three files, each whole or not; the page comes last and is returned."""
    from glasshouse.evidence.report import render_sections

    prepared = ranked.prepared
    sections = _sections(ranked, top)
    provenance = prepared.spec()
    told = {
        "schema_version": 1,
        "subject": prepared.subject.name,
        "method": prepared.options.method,
        "notes": list(prepared.notes),
        "labels": [] if prepared.found is None else list(prepared.found.labels),
        "rows": [_told(ranked, int(i)) for i in ranked.order[:top]],
        "evidence": [item.model_dump(mode="json") for s in sections for item in s.evidence],
        "provenance": provenance,
    }
    html = render_sections(TITLE, _lead(ranked), sections, provenance, all_in="mislabeled.parquet")
    write_scores(folder / "mislabeled.parquet", ranked)
    files.write_json(folder / "mislabeled.json", told)
    return files.write_text(folder / "mislabeled.html", html)


def write_scores(path: Path, ranked: Ranked) -> Path:
    """`row, score, rank` and, with a closed set, `given, preferred, p_given`; worst first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = [_told(ranked, int(i)) for i in ranked.order]
    types = {"row": pa.string(), "score": pa.float64(), "rank": pa.int64()}
    if ranked.prepared.found is not None:
        types |= {"given": pa.string()}
    if ranked.logprobs is not None:
        types |= {"preferred": pa.string(), "p_given": pa.float64()}
    types |= {name: pa.float64() for name in ranked.parts}
    columns = {name: [row[name] for row in told] for name in types if name != "rank"}
    columns["rank"] = list(range(1, len(told) + 1))
    schema = pa.schema(list(types.items()))
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.table({name: columns[name] for name in types}, schema=schema), temporary)
    return path


def summary(ranked: Ranked, i: int) -> str:
    """What the model says to one row's label, in words; empty for free replies."""
    row = _told(ranked, i)
    if "preferred" not in row:
        return ""
    if row["preferred"] == row["given"]:
        return f"labelled {row['given']!r} ({row['p_given']:.1%}), which the model prefers, too"
    return f"labelled {row['given']!r} ({row['p_given']:.1%}), the model says {row['preferred']!r}"


def _told(ranked: Ranked, i: int) -> dict[str, Any]:
    prepared = ranked.prepared
    row: dict[str, Any] = {"row": prepared.records[i].id, "score": float(ranked.scores[i])}
    row |= {name: float(part[i]) for name, part in ranked.parts.items()}
    if prepared.found is not None:
        row["given"] = prepared.found.labels[prepared.found.given[i]].strip()
    if ranked.logprobs is not None and prepared.found is not None:
        z = ranked.logprobs[i] - ranked.logprobs[i].max()
        p = np.exp(z) / np.exp(z).sum()
        row["preferred"] = prepared.found.labels[int(z.argmax())].strip()
        row["p_given"] = float(p[prepared.found.given[i]])
    return row


def _lead(ranked: Ranked) -> str:
    prepared = ranked.prepared
    ranked_by = f"ranked by how little {prepared.subject.name} believes their label."
    said = f"{len(prepared.records):,} training rows, {ranked_by}"
    return " ".join([said, "Read the first ones again before you change any.", *prepared.notes])


def _sections(ranked: Ranked, top: int) -> list[Section]:
    from glasshouse.evidence.report import Section

    items: list[EvidenceItem] = [_rows(ranked, top)]
    table = _table(ranked)
    return [Section("Rows to read again", "", tuple(items if table is None else [*items, table]))]


def _rows(ranked: Ranked, top: int) -> RowsEvidence:
    records = ranked.prepared.records
    place = {record.id: i for i, record in enumerate(records)}
    ranking = [(records[int(i)].id, float(ranked.scores[int(i)])) for i in ranked.order[:top]]

    def note(record: Record) -> str:
        return summary(ranked, place[record.id])

    return RowsEvidence(
        title="Rows whose label is hardest to believe",
        caption=MEANS[ranked.prepared.options.method] + " Higher is worse; a ranking always has a top.",
        rows=ranked_rows(records, ranking, tokenizer=None, note=note),
    )


def _table(ranked: Ranked) -> TableEvidence | None:
    """Label by label: rows, and how many the model would label otherwise."""
    found, preferred = ranked.prepared.found, ranked.preferred
    if found is None or preferred is None:
        return None
    rows = []
    for k, label in enumerate(found.labels):
        own = found.given == k
        others = preferred[own & (preferred != k)]
        said = "" if not len(others) else found.labels[int(np.bincount(others).argmax())].strip()
        rows.append((label.strip(), f"{int(own.sum()):,}", f"{len(others):,}", said))
    return TableEvidence(
        title="Label by label",
        caption="A model that knows its rows by heart prefers every given label: ask an earlier one then.",
        columns=("label", "rows", "the model prefers another", "mostly"),
        rows=tuple(rows),
    )
