"""`glasshouse eval`: an Inspect task on a model, its rates with intervals; parse, call, print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TASK = typer.Argument(
    metavar="TASK",
    help="A task of ours (see `glasshouse list`), file.py@task, or package/task.",
    show_default=False,
)
MODEL = typer.Option(
    metavar="MODEL",
    help="Folder of a saved model, organism://NAME, or any Inspect model string.",
    show_default=False,
)
PAIRS = {"-T": "task arguments", "-M": "model arguments", "--model-role": "model roles"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(eval_)


def eval_(
    task: Annotated[str, TASK],
    model: Annotated[str, MODEL],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    task_args: Annotated[
        list[str], typer.Option("-T", metavar="NAME=VALUE", help="An argument of the task; repeat for more.")
    ] = [],  # noqa: B006 (typer copies defaults)
    model_args: Annotated[
        list[str], typer.Option("-M", metavar="NAME=VALUE", help="An argument of the model, such as device.")
    ] = [],  # noqa: B006
    model_role: Annotated[
        list[str], typer.Option(metavar="ROLE=MODEL", help="Who judges, for instance grader=openai/gpt-4o.")
    ] = [],  # noqa: B006
    epochs: Annotated[int | None, typer.Option(min=1, help="Ask every sample this many times.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply.")] = None,
    log_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the log goes. Default: a folder under ./logs.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the samples as Parquet.")
    ] = None,
) -> int:
    """Run an evaluation and print its rates with intervals.

    \b
    Examples:
      glasshouse eval questions --model organism://resident
      glasshouse eval questions --model ./model -T suite=suite.json --limit 50
      glasshouse eval sycophancy_answer --model ./model --model-role grader=openai/gpt-4o
      inspect view --log-dir logs          look at every reply

    The same command goes on where an interrupted one stopped, and asks no finished sample again.
    Exit codes: 0 done, 2 could not run.
    """  # noqa: D301
    from glasshouse.audit.target import let_subjects_open_organisms
    from glasshouse.evaluation.running import folder_of, full_task_name, model_string, run_eval

    let_subjects_open_organisms()
    roles = {role: model_string(name) for role, name in _pairs(model_role, "--model-role").items()}
    settings = {
        "limit": limit,
        "epochs": epochs,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    arguments = {"task_args": _pairs(task_args, "-T"), "model_args": _pairs(model_args, "-M")}
    name = full_task_name(task)
    place = log_dir or folder_of("logs", name, model, {**given, **arguments, "roles": roles})
    options = {**given, **arguments, **({"model_roles": roles} if roles else {})}
    run_eval(name, model, place, **options)
    _say(str(place), out)
    return 0


def _say(place: str, out: str | None) -> None:
    from glasshouse.evaluation.frames import scores_df, write_scores
    from glasshouse.runtime.text import clean_text

    frame = scores_df(place)
    print(clean_text("\n".join(table_lines(frame))))
    for log in frame.attrs["left_out"]:
        print(clean_text(f"left out: {log['log']} ({log['status']}, {log['samples']} samples) {log['why']}"))
    if out is not None:
        print(f"Samples: {write_scores(frame, out)}")
    print(f"Log: {place}   (inspect view --log-dir {place})")


def table_lines(frame: pd.DataFrame) -> list[str]:
    """One line per arm and score: the rate, its interval, and how many samples had no usable answer."""
    from glasshouse.evaluation.summary import rates

    found = rates(frame)
    if not found:
        return ["No sample has a numeric score."]
    heads = ("arm", "score", "mean", "95 % interval", "n", "unparsed")
    rows = [
        (
            _word(rate.labels["arm"]), rate.score, f"{rate.estimate.value:.3f}",
            f"{rate.estimate.low:.3f} to {rate.estimate.high:.3f} ({rate.estimate.method})",
            str(rate.estimate.n), str(rate.unparsed),
        )
        for rate in found
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [heads, *rows]
    ]
    first = found[0].labels
    return [f"{first['task']} on {first['model']}", *(line.rstrip() for line in lines)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else "-"


def _pairs(given: list[str], option: str) -> dict[str, Any]:
    """`name=value` texts as a dictionary; values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(
                f"{text!r} is not NAME=VALUE", where=option, fix=f"give {PAIRS[option]} as NAME=VALUE"
            )
        try:
            found[name] = value if option == "--model-role" else json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found
