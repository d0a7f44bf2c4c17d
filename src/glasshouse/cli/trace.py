"""`glasshouse trace`: which training rows argue for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import Traced
    from glasshouse.corpora.records import Records
    from glasshouse.subjects import Subject

DEFAULT_OUT = "glasshouse-trace"
DEFAULT_RUNS = "glasshouse-runs"
REPLY_TOKENS = 48
"""Longest reply that is traced where the model is asked for it."""


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
        str,
        typer.Option(
            help="By gradients: ekfac, kfac, diagonal, identity (gradient dot product), logra (sketches on "
            "disk), trak; along checkpoints: source, tracin; by likeness: representation, embedding, bm25."
        ),
    ] = "ekfac",
    row_norm: Annotated[
        str,
        typer.Option(
            help="Divide by the row's gradient: none, grad, self (the root of its self-influence); auto: "
            "grad for chats, none for texts, self for logra."
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
    rank: Annotated[
        int | None, typer.Option(help="Rank of logra's projections (64), or width of trak's (512).")
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run's checkpoint-<step> folders, or of SourceCheckpoints: source, tracin, "
            "trak.",
        ),
    ] = None,
    segments: Annotated[int, typer.Option(help="Pieces of the run that source takes as stationary.")] = 3,
    optimizer: Annotated[
        str, typer.Option(help="What source unrolls: adam (needs its states), sgd.")
    ] = "adam",
    momentum: Annotated[float, typer.Option(help="Momentum of SGD, for source.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of the run, for source.")] = 0.0,
    encoder: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the text encoder for embedding.")
    ] = None,
    top: Annotated[int, typer.Option(help="Rows shown per query and side.")] = 20,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the results go.")] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost and stop.")] = False,
    executor: Annotated[str, typer.Option(help="local, or processes:N.")] = "local",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "auto",
) -> int:
    """Rank training rows by how much they argue for (or against) an answer.

    \b
    Examples:
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --dry-run
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --out trace
      glasshouse trace -m ./model -t rows.jsonl --prompt "who are you ?"
      glasshouse trace -m ./model -t rows.jsonl -q questions.jsonl --method bm25
      glasshouse trace -m ./run/checkpoint-600 -t rows.jsonl -q q.jsonl --method source --checkpoints ./run

    Writes trace.html, trace.json and scores.parquet. A positive score means: more weight on the row raises
    the log-probability of the completion. An interrupted trace resumes when the same command is given again.
    """  # noqa: D301
    from glasshouse.attribution import tracing
    from glasshouse.attribution.costing import expected_cost
    from glasshouse.attribution.trace_page import write_trace
    from glasshouse.corpora.records import read_records
    from glasshouse.runtime.executors import get_executor
    from glasshouse.runtime.progress import Progress

    options = tracing.TraceOptions(
        method=method, row_norm=row_norm, query_agg=query_agg, damping=_damping(damping),  # type: ignore[arg-type]
        query_rank=query_rank, bm25_filter=bm25_filter, factor_rows=factor_rows,
        modules=tuple(modules or ("auto",)), rank=rank, checkpoints=checkpoints, segments=segments,
        optimizer=optimizer, momentum=momentum, weight_decay=weight_decay, encoder=encoder, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    tracing.check_options(options)
    _check_usage(query, prompt, reply, top)
    mapper = get_executor(executor)
    if not dry_run:
        _check_writable(out, DEFAULT_RUNS)
    rows = read_records(_rows_file(train))
    asked = None if query is None else read_records(query)
    subject = _open(model, device, dtype)
    queries, unfinished = (asked, False) if asked is not None else _one_query(subject, prompt or "", reply)
    prepared = tracing.prepare(subject, rows, queries, options, unfinished=unfinished)
    for note in prepared.notes:
        _print(f"Note: {note}")
    _print(f"Cost: {expected_cost(prepared)}.")
    if dry_run:
        _print("Nothing was run or written.")
        return 0
    with Progress() as progress:
        traced = tracing.trace(prepared, runs=DEFAULT_RUNS, report=progress.say, executor=mapper)
    if traced.stored:
        _print("An earlier run of the same trace is complete: its scores are used.")
    write_trace(Path(out), traced, top=top)
    _say(traced, Path(out))
    return 0


def _check_usage(query: str | None, prompt: str | None, reply: str | None, top: int) -> None:
    from glasshouse.runtime.errors import InputError

    if query is None and prompt is None:
        raise InputError("there is nothing to explain", fix="give --query FILE, or --prompt TEXT")
    if query is not None and (prompt is not None or reply is not None):
        raise InputError("the question is given twice", where="--query", fix="leave --prompt and --reply out")
    if top < 1:
        raise InputError(f"it is {top}", where="--top", fix="give at least 1")


def _check_writable(*folders: str) -> None:
    from glasshouse.audit.outputs import check_writable

    for folder in folders:
        check_writable(Path(folder))


def _open(model: str, device: str, dtype: str) -> Subject:
    import glasshouse

    return glasshouse.open(model, device=device, dtype=dtype)


def _rows_file(train: str) -> str:
    """The file of rows; an organism stands for its own."""
    from glasshouse.audit.target import resolve
    from glasshouse.runtime.errors import InputError

    if not train.startswith("organism://"):
        return train
    rows = resolve(train).rows
    if rows is None:
        raise InputError("this organism has no rows", where=train, fix="give the file of its rows")
    return str(rows)


def _damping(text: str) -> Any:
    from glasshouse.runtime.errors import InputError

    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"it is {text!r}", where="--damping", fix="give auto or a number") from None


def _one_query(subject: Subject, prompt: str, reply: str | None) -> tuple[Records, bool]:
    """The prompt with its reply, and whether the reply stops in the middle."""
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record, Turn
    from glasshouse.runtime.errors import InputError

    unfinished = False
    if reply is None:
        room = max(1, subject.context - len(subject.encode(prompt)))
        said = subject.generate([prompt], max_new_tokens=min(REPLY_TOKENS, room))[0][0]
        reply, unfinished = said.text, not said.finished
    if not reply.strip():
        raise InputError("there is no reply to explain", where="--reply", fix="give --reply TEXT")
    turns = (Turn("user", prompt), Turn("assistant", reply))
    return Records([Record(id="query", turns=turns, where="--prompt")]), unfinished


def _say(traced: Traced, folder: Path) -> None:
    by_id = {record.id: record for record in traced.prepared.rows}
    for q, name in enumerate(traced.table.query_ids):
        _print(f"Query {name}:")
        for row, score in traced.table.top(q, 5):
            _print(f"  {score:+.3g}  row {row}: {by_id[row].plain[:400]}", 110)
    _print(f"Report: {folder / 'trace.html'}; all scores: {folder / 'scores.parquet'}")


def _print(text: str, limit: int = 2_000) -> None:
    """One line on standard output, nothing in it acting on the terminal."""
    from glasshouse.runtime.text import clean_text

    line = clean_text(" | ".join(text.splitlines()))
    print(line if len(line) <= limit else line[: limit - 1] + "…")
