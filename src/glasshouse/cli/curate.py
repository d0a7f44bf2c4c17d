"""`glasshouse curate`: which training queries to collect more examples of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization.curating import Curated

DEFAULT_OUT = "glasshouse-curate"
DEFAULT_RUNS = "glasshouse-runs"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("curate")(curate)


def curate(
    train: Annotated[
        str,
        typer.Option("--train", "-t", metavar="FILE", help="Rows it was trained on: prompt and completion."),
    ],
    budget: Annotated[int, typer.Option(metavar="N", help="How many new examples can be collected.")],
    checkpoints: Annotated[
        str | None,
        typer.Option("--checkpoints", "-c", metavar="DIR", help="The run: checkpoint-STEP folders."),
    ] = None,
    trajectory: Annotated[
        str | None, typer.Option(metavar="FILE", help="A recorded .npz, instead of --checkpoints.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which run of a --trajectory that holds several.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="Test rows, to see how good the prediction was.")
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="X", help="log(log p) of memorization, or flat. Default: -2.3 (GSM8K, Llama-3)."
        ),
    ] = None,
    cutoff: Annotated[float, typer.Option(help="Collect near queries whose accuracy was below this.")] = 0.75,
    group: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Sum the quotas up by this field of the rows.")
    ] = None,
    k: Annotated[int, typer.Option("--samples", "-k", help="Samples of each row and checkpoint.")] = 5,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Of sampling.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(help="Longest solution.")] = 512,
    stop: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A text that ends a solution, cut off.")
    ] = None,
    match: Annotated[str, typer.Option(help="final answers ('#### 7'), whole replies, or auto.")] = "auto",
    by: Annotated[
        str, typer.Option(help="perplexity, or overlap: copies among samples, without log-probabilities.")
    ] = "perplexity",
    skip: Annotated[
        bool, typer.Option(help="Sample copied rows only for an audit of 5 %: far fewer tokens.")
    ] = True,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the results go.")] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost and stop.")] = False,
    executor: Annotated[str, typer.Option(help="local, or processes:N.")] = "local",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> int:
    """Follow training rows through a run: what was learned, what was copied, what to collect more of.

    \b
    Examples:
      glasshouse curate -c run/ -t train.jsonl --budget 500 --dry-run
      glasshouse curate -c run/ -t train.jsonl --budget 500 --out curate
      glasshouse curate --trajectory trajectory.npz -t train.jsonl --budget 500 --threshold -1.7

    Writes curate.html, curate.json, rows.parquet (each row's quota) and trajectory.npz. An interrupted one
    resumes when the same command is given again.
    """  # noqa: D301
    from glasshouse.attribution.pre_memorization import curating
    from glasshouse.attribution.pre_memorization.curate_page import write_curation
    from glasshouse.corpora.records import read_records
    from glasshouse.runtime.executors import get_executor
    from glasshouse.runtime.progress import Progress

    mapper = get_executor(executor)
    options = curating.CurateOptions(
        budget=budget, cutoff=cutoff, threshold=_threshold(threshold), k=k, temperature=temperature,
        top_p=top_p, max_new_tokens=max_new_tokens, stop=stop, match=match, by=by, skip=skip, group=group,  # type: ignore[arg-type]
        seed=seed,
    )  # fmt: skip
    if not dry_run:
        _check_writable(out, DEFAULT_RUNS)
    prepared = curating.prepare(
        read_records(train), options, checkpoints=checkpoints, trajectory=trajectory, run=run,
        test=None if test is None else read_records(test),
    )  # fmt: skip
    print(f"Cost: {prepared.cost}.")
    if dry_run:
        print("Nothing was run or written.")
        return 0
    with Progress() as progress:
        found = curating.curate(prepared, runs=DEFAULT_RUNS, report=progress.say, executor=mapper)
    if found.stored:
        print("An earlier run of the same curation is complete: its measurements are used.")
    page = write_curation(Path(out), found)
    _say(found, page)
    return 0


def _threshold(text: str | None) -> Any:
    from glasshouse.runtime.errors import InputError

    if text is None or text == "flat":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"it is {text!r}", where="--threshold", fix="give log(log p), or flat") from None


def _check_writable(*folders: str) -> None:
    from glasshouse.audit.outputs import check_writable

    for folder in folders:
        check_writable(Path(folder))


def _say(found: Curated, page: Path) -> None:
    from glasshouse.runtime.text import clean_text

    p = found.predicted
    print(f"Expected accuracy on new questions: {p.value:.3f} [{p.low:.3f}, {p.high:.3f}].")
    print(f"Merely copied: {len(found.fragile)} of {len(found.trajectory.trained)} rows.")
    if found.plan is not None:
        wanted = int((found.plan.quotas > 0).sum())
        print(f"Collect {found.plan.budget} examples near {wanted} queries: {page.parent / 'rows.parquet'}")
    for sentence in found.sentences:
        print(clean_text(f"Note: {sentence}"))
    print(f"Report: {page}")
