"""`glasshouse lens`: what the model would have answered at every layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.corpora.records import Records
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.internals.tuned_lens.work import Portrait
    from glasshouse.subjects import Subject

DEFAULT_OUT = "glasshouse-lens"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("lens")(lens)


def lens(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a saved model, or organism://NAME.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            help="Text like the model's own: JSONL, CSV, Parquet. Default: text that the model writes.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Show this prompt layer by layer; repeatable."),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option("--lens", metavar="DIR", help="A lens saved before (OUT/lens): evaluate, do not train."),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A lens published for the package tuned-lens, in a local folder."),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the results go.")] = DEFAULT_OUT,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 400,
    tokens_per_step: Annotated[int, typer.Option(help="Tokens of each step.")] = 4096,
    rows: Annotated[int, typer.Option(help="Rows that the model writes where there is no --data.")] = 320,
    length: Annotated[int, typer.Option(help="Tokens of each row.")] = 256,
    loss: Annotated[str, typer.Option(help="kl (to the model's answer) or ce (to the next token).")] = "kl",
    opt: Annotated[str, typer.Option(help="adam, or the paper's sgd.")] = "adam",
    lr_scale: Annotated[
        float, typer.Option(help="Times the optimiser's own rate: 3 for adam, 1 for sgd.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or auto.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost and stop.")] = False,
) -> int:
    """Train a tuned lens: what would the model have answered, had it stopped at layer l?

    \b
    Examples:
      glasshouse lens ./model --data texts.jsonl
      glasshouse lens ./model --data texts.jsonl --prompt "The capital of France is"
      glasshouse lens ./model --lens glasshouse-lens/lens --prompt "one more"
      glasshouse lens ./model --steps 50 --dry-run

    Writes lens/ (for TunedLens.load), lens.parquet (every number with its interval), lens.json and lens.html.
    A fifth of the rows is held out. KL is the distance to the model's own answer: 0 at the last layer. An
    interrupted training goes on when the same command is given again.
    """  # noqa: D301
    from glasshouse.audit.outputs import check_writable
    from glasshouse.internals.tuned_lens.page import write_portrait
    from glasshouse.internals.tuned_lens.work import portray
    from glasshouse.runtime.errors import InputError
    from glasshouse.runtime.progress import Progress

    if load and published:
        raise InputError("two lenses are given", where="--published", fix="leave one of them out")
    maker = {"loss": loss, "steps": steps, "tokens_per_step": tokens_per_step, "opt": opt,
             "lr_scale": lr_scale, "skip_first": 1, "seed": seed}  # fmt: skip
    _check(maker, rows=rows, length=length)
    records = None if data is None else _records(data)
    subject = _open(model, device, dtype)
    fitted = _loaded(subject, load, published)
    _print(_cost(subject, maker, trains=fitted is None))
    if dry_run:
        _print("Nothing was run or written.")
        return 0
    folder = Path(out)
    check_writable(folder)
    with Progress() as progress:
        lines, source, notes = _rows(subject, records, data, rows, length, seed, folder)
        portrait = portray(
            subject, lines, fitted or _maker(maker), source=source, prompts=prompt or (),
            fitted=fitted is not None, store=folder, report=progress.say, notes=notes,
        )  # fmt: skip
    page = write_portrait(folder, portrait)
    _say(portrait)
    _print(f"Report: {page}; lens: {folder / 'lens'}; all numbers: {folder / 'lens.parquet'}")
    return 0


def _maker(options: dict[str, Any]) -> TunedLens:
    from glasshouse.internals.tuned_lens import TunedLens

    return TunedLens(**options)


def _check(options: dict[str, Any], *, rows: int, length: int) -> None:
    from glasshouse.runtime.errors import InputError

    _maker(options)._options()
    for name, value, least in (("--rows", rows, 5), ("--length", length, 2)):
        if value < least:
            raise InputError(f"it is {value}", where=name, fix=f"give at least {least}")


def _records(data: str) -> Records:
    from glasshouse.corpora.records import read_records

    return read_records(data)


def _open(model: str, device: str, dtype: str) -> Subject:
    import glasshouse

    return glasshouse.open(model, device=device, dtype=dtype)


def _loaded(subject: Subject, load: str | None, published: str | None) -> TunedLens | None:
    from glasshouse.internals.tuned_lens import TunedLens

    if load:
        return TunedLens.load(load, subject)
    return TunedLens.load_hf(published, subject) if published else None


def _rows(
    subject: Subject,
    records: Records | None,
    data: str | None,
    rows: int,
    length: int,
    seed: int,
    folder: Path,
) -> tuple[list[list[int]], str, list[str]]:
    from glasshouse.internals.tuned_lens.work import records_rows, written_rows
    from glasshouse.runtime.progress import notice

    if records is not None:
        return records_rows(subject, records, length), f"text of {Path(str(data)).name}", []
    note = "No data were given, so the lens was trained and judged on text that the model wrote itself."
    notice(f"No --data: the model writes {rows} rows of {min(length, subject.context)} tokens to train on.")
    return written_rows(subject, rows, length, seed, folder), "text that the model wrote itself", [note]


def _cost(subject: Subject, options: dict[str, Any], *, trains: bool) -> str:
    """The products of the training, and the size of the lens."""
    d, vocab, layers = subject.d_model, subject.vocab_size, subject.n_layers
    size = layers * d * (d + 1)
    if not trains:
        return f"Cost: no training; a lens of {size:,} numbers."
    tokens = options["steps"] * options["tokens_per_step"]
    flops = 4.0 * tokens * layers * d * (vocab + d)
    return (
        f"Cost: {options['steps']} steps, {tokens:,} tokens through {layers} translators of width {d}: "
        f"{flops:.1e} FLOP besides the model's own passes; a lens of {size:,} numbers."
    )


def _say(portrait: Portrait) -> None:
    from glasshouse.internals.tuned_lens.page import lead, trajectory_lines

    _print(lead(portrait))
    _print("layer  KL tuned  KL logit  (nats per token, held-out rows)")
    for layer in range(portrait.tuned.n_layers):
        a, b = (e.estimate("kl", layer).value for e in (portrait.tuned, portrait.logit))
        _print(f"{layer:5d}  {a:8.3f}  {b:8.3f}")
    for row in range(0 if portrait.prompts is None else len(portrait.prompts)):
        assert portrait.prompts is not None
        for line in trajectory_lines(portrait.prompts, row, portrait.subject.tokenizer, last=6):
            _print("  ".join(f"{cell:>14.14}" for cell in line), 110)


def _print(text: str, limit: int = 2_000) -> None:
    """One line on standard output, nothing in it acting on the terminal."""
    from glasshouse.runtime.text import clean_text

    line = clean_text(" | ".join(text.splitlines()))
    print(line if len(line) <= limit else line[: limit - 1] + "…")
