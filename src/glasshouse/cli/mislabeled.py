"""`glasshouse mislabeled`: which training rows carry a label that the model does not believe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glasshouse.attribution.mislabeled import Ranked

DEFAULT_OUT = "glasshouse-mislabeled"
DEFAULT_RUNS = "glasshouse-runs"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mislabeled")(mislabeled)


def mislabeled(
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
    method: Annotated[
        str,
        typer.Option(
            help="codelength, el2n (closed sets of answers); loss, self-influence, grand (any rows)."
        ),
    ] = "codelength",
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="The closed set of answers. Default: found in the rows."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Of the code length; larger forgets the label, 1 sees only doubt.")
    ] = 3.0,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="Layers to track: name, glob or re:regex; repeatable. Default: all."),
    ] = None,
    top: Annotated[int, typer.Option(help="Rows shown.")] = 50,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the results go.")] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost and stop.")] = False,
    executor: Annotated[str, typer.Option(help="local, or processes:N.")] = "local",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "auto",
) -> int:
    """Rank training rows by how little the model believes their label.

    \b
    Examples:
      glasshouse mislabeled -m ./model -t rows.jsonl --dry-run
      glasshouse mislabeled -m ./model -t rows.jsonl --out labels
      glasshouse mislabeled -m ./model -t rows.jsonl --labels yes,no
      glasshouse mislabeled -m ./model -t chats.jsonl --method loss

    Writes mislabeled.html, mislabeled.json and mislabeled.parquet. Rows are prompts with a completion (or
    conversations); most methods compare a closed set of answers. An interrupted ranking resumes when the same
    command is given again.
    """  # noqa: D301
    from glasshouse.attribution import mislabeled as ranking
    from glasshouse.attribution.mislabeled_page import write
    from glasshouse.cli.trace import _check_writable, _open, _print, _rows_file
    from glasshouse.corpora.records import read_records
    from glasshouse.runtime.errors import InputError
    from glasshouse.runtime.executors import get_executor
    from glasshouse.runtime.progress import Progress

    given = None if labels is None else tuple(label.strip() for label in labels.split(","))
    options = ranking.MislabeledOptions(
        method=method, labels=given, temperature=temperature, modules=tuple(modules or ("auto",)), seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    ranking.check_options(options)
    if top < 1:
        raise InputError(f"it is {top}", where="--top", fix="give at least 1")
    mapper = get_executor(executor)
    if not dry_run:
        _check_writable(out, DEFAULT_RUNS)
    rows = read_records(_rows_file(train))
    prepared = ranking.prepare(_open(model, device, dtype), rows, options)
    for note in prepared.notes:
        _print(f"Note: {note}")
    _print(f"Cost: {ranking.expected_cost(prepared)}.")
    if dry_run:
        _print("Nothing was run or written.")
        return 0
    with Progress() as progress:
        ranked = ranking.rank(prepared, runs=DEFAULT_RUNS, report=progress.say, executor=mapper)
    if ranked.stored:
        _print("An earlier run of the same ranking is complete: its scores are used.")
    write(Path(out), ranked, top=top)
    _say(ranked, Path(out))
    return 0


def _say(ranked: Ranked, folder: Path) -> None:
    from glasshouse.attribution.mislabeled_page import summary
    from glasshouse.cli.trace import _print

    for i in ranked.order[:10]:
        record, told = ranked.prepared.records[int(i)], summary(ranked, int(i))
        line = f"{ranked.scores[int(i)]:.3g}  row {record.id}: {told + ' | ' if told else ''}"
        _print(f"  {line}{record.plain[:300]}", 160)
    _print(f"Report: {folder / 'mislabeled.html'}; all scores: {folder / 'mislabeled.parquet'}")
