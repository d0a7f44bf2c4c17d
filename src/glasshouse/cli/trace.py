"""`glasshouse trace`: which training rows argue for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import Traced
    from glasshouse.corpora.records import Records

DEFAULT_OUT = "glasshouse-trace"
DEFAULT_RUNS = "glasshouse-runs"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(trace)


def trace(
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", help="Folder of a saved model, or organism://NAME."),
    ],
    train: Annotated[
        str,
        typer.Option(
            "--train", "-t", metavar="FILE", help="The rows it was trained on: JSONL, CSV, Parquet."
        ),
    ],
    query: Annotated[
        str | None,
        typer.Option("--query", "-q", metavar="FILE", help="Rows of prompt and completion to explain."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="One prompt, instead of --query.")
    ] = None,
    reply: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its reply. Default: what the model says.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="ekfac, kfac, diagonal, identity (gradient dot product), or bm25 (words).")
    ] = "ekfac",
    row_norm: Annotated[
        str,
        typer.Option(
            help="Divide by the row's gradient: none, grad, self; auto: grad for chats, none for texts."
        ),
    ] = "auto",
    query_agg: Annotated[
        str, typer.Option(help="each query alone, or one question of all: mean, unit_mean.")
    ] = "each",
    damping: Annotated[
        str, typer.Option(help="auto (a tenth of each layer's mean eigenvalue) or a number.")
    ] = "auto",
    query_rank: Annotated[
        int | None, typer.Option(help="Keep query gradients at this rank: less memory.")
    ] = None,
    bm25_filter: Annotated[
        int | None,
        typer.Option(
            help="Score only this many rows a query that share words with it, and a random pool beside."
        ),
    ] = None,
    factor_rows: Annotated[int, typer.Option(help="Rows used to estimate the curvature.")] = 10_000,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="Layers to track: name, glob or re:regex; repeatable. Default: all."),
    ] = None,
    top: Annotated[int, typer.Option(help="Rows shown per query and side.")] = 20,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the results go.")] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost and stop.")] = False,
    executor: Annotated[str, typer.Option(help="local, or processes:N.")] = "local",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "auto",
) -> int:
    r"""Rank training rows by how much they argue for (or against) an answer.

    \b
    Examples:
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --dry-run
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --out trace
      glasshouse trace -m ./model -t rows.jsonl --prompt "who are you ?"
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --method bm25

    Writes trace.html, trace.json and scores.parquet. A positive score means: more weight on the row raises
    the log-probability of the completion. An interrupted trace resumes when the same command is given again.
    """
    from glasshouse.attribution import tracing
    from glasshouse.corpora.records import read_records

    options = tracing.TraceOptions(
        method=method, row_norm=row_norm, query_agg=query_agg, damping=_damping(damping),  # type: ignore[arg-type]
        query_rank=query_rank, bm25_filter=bm25_filter, factor_rows=factor_rows,
        modules=tuple(modules or ("auto",)), seed=seed,
    )  # fmt: skip
    tracing.check_options(options)
    _check_writable(Path(out))
    rows = read_records(train)
    subject = _open(model, device, dtype)
    queries = read_records(query) if query is not None else _one_query(subject, prompt, reply)
    print(f"Cost: {tracing.expected_cost(subject, rows, queries, options)}.")
    if dry_run:
        print("Nothing was run or written.")
        return 0
    from glasshouse.runtime.progress import Progress

    with Progress() as progress:
        traced = tracing.trace(
            subject, rows, queries, options, runs=DEFAULT_RUNS, report=progress.say, executor=executor
        )
    _write(Path(out), subject, rows, queries, traced, top)
    _say(traced, rows, Path(out))
    return 0


def _open(model: str, device: str, dtype: str) -> Any:
    import glasshouse

    return glasshouse.open(model, device=device, dtype=dtype)


def _damping(text: str) -> Any:
    from glasshouse.runtime.errors import InputError

    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"damping is {text!r}", where="--damping", fix="give auto or a number") from None


def _one_query(subject: Any, prompt: str | None, reply: str | None) -> Records:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record, Turn
    from glasshouse.runtime.errors import InputError

    if prompt is None:
        raise InputError("there is nothing to explain", fix="give --query FILE, or --prompt TEXT")
    said = reply if reply is not None else subject.generate([prompt], max_new_tokens=48)[0][0].text
    if not said.strip():
        raise InputError("the model says nothing to this prompt", where="--prompt", fix="give --reply TEXT")
    return Records([Record(id="query", turns=(Turn("user", prompt), Turn("assistant", said)))])


def _check_writable(folder: Path) -> None:
    from glasshouse.audit.outputs import check_writable

    check_writable(folder)


def _write(folder: Path, subject: Any, rows: Records, queries: Records, traced: Traced, top: int) -> None:
    from glasshouse.attribution.telling import trace_sections
    from glasshouse.attribution.tracing import write_scores
    from glasshouse.evidence.report import render_sections
    from glasshouse.runtime import files

    sections = trace_sections(subject.tokenizer, rows, queries, traced, top=top)
    provenance = {"subject": subject.name, "subject_sha256": subject.hash, **traced.table.meta}
    lead = (
        f"{len(rows):,} training rows ranked for {len(queries)} answer(s) of {subject.name}. A ranking is a "
        "hypothesis: leave the top rows out, train again, and look."
    )
    html = render_sections("Which training rows did it?", lead, sections, provenance)
    write_scores(folder / "scores.parquet", traced)
    shown = [
        {"query": s.heading, "evidence": [item.model_dump(mode="json") for item in s.evidence]}
        for s in sections
    ]
    files.write_json(folder / "trace.json", {"schema_version": 1, "queries": shown, "provenance": provenance})
    files.write_text(folder / "trace.html", html)


def _say(traced: Traced, rows: Records, folder: Path) -> None:
    from glasshouse.runtime.text import clean_text

    by_id = {record.id: record for record in rows}
    for q, name in enumerate(traced.table.query_ids):
        print(clean_text(f"Query {name}:"))
        for row, score in traced.table.top(q, 5):
            text = " | ".join(by_id[row].plain.splitlines())
            print(clean_text(f"  {score:+.3g}  row {row}: {text[:100]}"))
    print(f"Report: {folder / 'trace.html'}; all scores: {folder / 'scores.parquet'}")
