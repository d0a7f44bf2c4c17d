"""`glasshouse audit`: parse, call, say what came out."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glasshouse.audit.run import AuditResult
    from glasshouse.evidence.findings import Baseline

SUBJECT = typer.Argument(
    metavar="[SUBJECT]",
    help="Folder of a saved model, a hub id, organism://NAME, or inspect:PROVIDER/MODEL for an API. "
    "Default: the flawed model we ship.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit)


def audit(
    subject: Annotated[str | None, SUBJECT] = None,
    train_data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rows it was trained on: JSONL, CSV, Parquet, or a data set."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model to compare with, for instance before fine-tuning."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What to ask: prompts, questions with answers, pairs, chats."),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Its training run, with checkpoint-STEP folders: what was copied?"),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the report goes.")] = "glasshouse-report",
    fail_on: Annotated[
        str, typer.Option(metavar="SEVERITY", help="Exit 1 from: note, low, medium, high or critical.")
    ] = "low",
    baseline: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="An earlier findings.json: only new or worse findings exit 1."),
    ] = None,
    card: Annotated[
        str | None, typer.Option(metavar="FILE", help="A disclosure card (`glasshouse card`) to show beside.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would run, what not and why, and the cost; write nothing."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16, or auto.")] = "auto",
    executor: Annotated[
        str, typer.Option(metavar="NAME", help="local, processes:N, or one that is plugged in.")
    ] = "local",
    max_calls: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most calls that a model behind an API may cost.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask a model behind an API as often as it takes.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of findings.json.")] = False,
) -> int:
    """Ask a model every question its access allows; write report.html and findings.json.

    \b
    Examples:
      glasshouse audit
      glasshouse audit ./model --train-data rows.jsonl --out report
      glasshouse audit ./model --train-data rows.jsonl --checkpoints ./run
      glasshouse audit ./model --reference ./base --fail-on high
      glasshouse audit ./model --baseline last/findings.json
      glasshouse audit inspect:openai/gpt-4o --suite suite.json --max-calls 3000

    An audit that was interrupted resumes when the same command is given again.
    Exit codes: 0 nothing at or above the severity, 1 findings, 2 could not run.
    """  # noqa: D301
    if schema:
        return _print_schema()
    from glasshouse.audit.run import audit as run_audit
    from glasshouse.runtime.executors import get_executor

    if card is not None:
        from glasshouse.governance import read_card

        read_card(card)  # a file that is no card is refused before the model is asked anything
    get_executor(executor)  # an unknown name is refused before anything is opened or written
    result = run_audit(
        subject, train_data=train_data, reference=reference, suite=suite, out=out, fail_on=fail_on,
        baseline=baseline, dry_run=dry_run, seed=seed, device=device, dtype=dtype, executor=executor,
        max_calls=math.inf if yes and max_calls is None else max_calls, checkpoints=checkpoints,
    )  # fmt: skip
    if card is not None and result.findings is not None:
        result = _with_card(result, out, card)
    say_plan(result) if dry_run else say_result(result)
    return result.exit_code


def _with_card(result: AuditResult, out: str, card: str) -> AuditResult:
    from dataclasses import replace

    from glasshouse.audit.card import attach_card

    assert result.findings is not None
    return replace(result, findings=attach_card(out, result.findings, card, graded=result.graded))


def say_plan(result: AuditResult) -> None:
    """What would run, at what cost, and what would not."""
    if result.elicits:
        print(f"first      {result.elicits} calls that ask the model what to ask; none with a --suite")
    for entry in result.plan:
        state = "would run" if entry.runs else "not run  "
        print(f"{state}  {entry.check.slug:<18} {entry.check.title}")
        for line in (entry.cost, *entry.why_not):
            if line:
                print(f"{'':11}{line}")
    print("Nothing was run or written.")


def say_result(result: AuditResult) -> None:
    """The verdict, one line per finding, and where the report is."""
    from glasshouse.evidence.report.words import verdict_words
    from glasshouse.runtime.text import clean_text

    findings = result.findings
    assert findings is not None
    verdict = verdict_words(findings)
    lines = [f"{verdict['headline']}. {verdict['sentence']}"]
    lines += [f"  {f.severity.upper():<9} {f.summary}" for f in findings.findings]
    lines += [f"  not run   {n.check}: {n.why}" for n in findings.not_run]
    if findings.baseline is not None:
        lines += baseline_lines(findings.baseline)
    if result.resumed:
        lines.append("This audit was finished before; its stored answers were used.")
    lines.append(f"Report: {result.report}")
    print(clean_text("\n".join(lines)))


def baseline_lines(baseline: Baseline) -> list[str]:
    """How many findings are new, worse, known, gone and not asked, then each that is not simply known."""
    parts = {
        "new": baseline.new, "worse": baseline.worse, "known": baseline.known, "gone": baseline.gone,
        "not asked": baseline.unasked,
    }  # fmt: skip
    counts = ", ".join(f"{len(keys)} {word}" for word, keys in parts.items())
    told = [f"  {word:<9} {key}" for word, keys in parts.items() if word != "known" for key in keys]
    return [f"Since the baseline: {counts}.", *told]


def _print_schema() -> int:
    from glasshouse.evidence.findings import published_schema

    print(json.dumps(published_schema(), indent=2, sort_keys=True))
    return 0
