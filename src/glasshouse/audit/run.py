"""`audit`: ask a subject every question its access allows, and write what came out.

    resolve -> plan -> ask (journalled) -> correct and rank -> findings.json -> report.html -> (grade)

A killed audit resumes at the step it was in. `findings.json` holds no time and no path, so the same audit
gives the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.audit.budget import calls_to_elicit, metered
from glasshouse.audit.checkpoints import TrainedQuestion
from glasshouse.audit.grade import grade
from glasshouse.audit.inputs import (
    Inputs,
    gather,
    pack_suite,
    read_baseline,
    read_severity,
    unpack_suite,
)
from glasshouse.audit.outputs import check_writable, write_graded, write_outputs
from glasshouse.audit.plan import Planned, installed_checks, plan
from glasshouse.audit.rank import LEVEL, rank
from glasshouse.audit.self_test import SELF_TEST, self_test_answer
from glasshouse.evidence.checks import Answer, Check, Question
from glasshouse.evidence.findings import Clean, Finding, Findings, NotRun, Severity
from glasshouse.runtime.devices import torch_threads
from glasshouse.runtime.errors import AccessError, GlasshouseError, MissingDependency
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.runs import Run

if TYPE_CHECKING:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.suites import Suite
    from glasshouse.runtime.executors import Executor

DEFAULT_OUT = "glasshouse-report"
DEFAULT_RUNS = "glasshouse-runs"


@dataclass(frozen=True)
class AuditResult:
    """What an audit leaves behind; for a dry run only `plan` is filled and the exit code is 0."""

    plan: tuple[Planned, ...]
    exit_code: int = 0
    findings: Findings | None = None
    report: Path | None = None
    graded: Mapping[str, Any] | None = None
    resumed: bool = field(default=False, compare=False)
    """Whether the answers were stored by an earlier, finished run of the same audit."""
    elicits: int = 0
    """Of a dry run: calls in which a model behind an API would first be asked what to ask."""


def audit(
    subject: Any = None,
    *,
    train_data: str | Path | Records | None = None,
    reference: Any = None,
    suite: Any = None,
    out: str | Path = DEFAULT_OUT,
    fail_on: str = "low",
    baseline: str | Path | None = None,
    dry_run: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    runs: str | Path = DEFAULT_RUNS,
    max_calls: float | None = None,
    executor: str | Executor = "local",
    checkpoints: str | Path | None = None,
) -> AuditResult:
    """Audit `subject` (a folder, a model, `organism://NAME`; default: the embedded organism with its rows).

    Writes `findings.json` and `report.html` into `out`; for an organism also `graded.json`. `exit_code` is 1
    when a finding (a new or worse one, where `baseline` is given) is at least as severe as `fail_on`, else 0.
    `max_calls` bounds what a model behind an API is asked, and must be given (`math.inf` for as many as it
    takes) where nothing says what to ask it. `executor` is where checks run what comes in shards.
    `checkpoints`: the folder of the subject's own training, with its `checkpoint-<step>` folders.
    Raises GlasshouseError, before anything is written, when an input cannot be used or the model is misread.
    """
    limit = read_severity(fail_on)
    earlier = None if baseline is None else read_baseline(Path(baseline))
    folder, root = Path(out), Path(runs)
    if not dry_run:
        check_writable(folder)
        check_writable(root)
    checks = installed_checks()
    inputs = gather(
        subject,
        train_data=train_data,
        reference=reference,
        suite=suite,
        seed=seed,
        device=device,
        dtype=dtype,
        checkpoints=checkpoints,
    )
    if dry_run:
        question = _question(inputs, inputs.suite(elicit=False))
        return AuditResult(tuple(plan(checks, question, with_cost=True)), elicits=calls_to_elicit(inputs))
    inputs = metered(inputs, max_calls)
    started = time.monotonic()
    with torch_threads(inputs.threads), Run.open(root, "audit", inputs.spec(checks)) as run:
        stored = run.finished
        planned, answers, sources = _ask(run, inputs, checks, executor)
        run.finish()
    findings = _findings(inputs, planned, answers, sources)
    if earlier is not None:
        findings = findings.against(earlier)
    provenance = {"run": str(run.path), "seconds": round(time.monotonic() - started, 1)}
    report = write_outputs(folder, findings, provenance)
    graded = None
    if inputs.target.truth is not None:
        graded = grade(findings, inputs.target.truth)
        write_graded(folder, findings, graded, provenance)
    return AuditResult(tuple(planned), _exit_code(findings, limit), findings, report, graded, stored)


def _ask(
    run: Run, inputs: Inputs, checks: Sequence[Check], executor: str | Executor
) -> tuple[list[Planned], list[Answer], dict[str, str]]:
    """The self-test, then every check that can be asked, in order; each answer is journalled.

    Returns the plan, the answers, and where each part of the suite came from.
    """
    with Progress() as progress:
        suite = unpack_suite(run.step("suite", lambda: pack_suite(inputs.suite(elicit=True))))
        question = _question(
            inputs, suite, step=run.step, folder=run.folder, report=progress.say, executor=executor
        )
        planned = plan(checks, question, with_cost=not _opened(inputs))
        for entry in planned:
            if entry.cost:  # a model behind an API: say what is asked of it before it is
                progress.say(f"{entry.check.slug}: {entry.cost}")
        answers = [self_test_answer(question)] if _opened(inputs) else []
        runnable = [entry.check for entry in planned if entry.runs]
        with progress.task("asking", total=len(runnable)) as task:
            for check in runnable:
                task.say(check.title)
                answers.append(_answer(check, question, answers))
                task.advance()
    return planned, answers, dict(suite.sources)


def _opened(inputs: Inputs) -> bool:
    """Whether anything is read inside the subject, which the self-test must then vouch for."""
    return "activations" in inputs.subject.access


def _answer(check: Check, question: Question, answers: Sequence[Answer]) -> Answer:
    earlier = tuple(f for answer in answers for f in answer.findings if f.check in check.after)
    stored = question.step(
        f"{check.slug}/answer", lambda: _pack(_try(check, replace(question, earlier=earlier)))
    )
    return _unpack(stored)


def _try(check: Check, question: Question) -> Answer:
    """The check's answer; where access or a package is missing the question counts as not asked."""
    try:
        answer = check(question)
    except (AccessError, MissingDependency) as error:
        return Answer(not_run=(NotRun(check=check.slug, why=str(error)),))
    if not isinstance(answer, Answer):
        raise GlasshouseError(
            f"the check {check.slug!r} gave a {type(answer).__name__}", fix="return an Answer"
        )
    return answer


def _pack(answer: Answer) -> dict[str, Any]:
    parts = {"findings": answer.findings, "clean": answer.clean, "not_run": answer.not_run}
    return {name: [item.model_dump(mode="json") for item in items] for name, items in parts.items()}


def _unpack(stored: Mapping[str, Any]) -> Answer:
    return Answer(
        tuple(Finding.model_validate(item) for item in stored["findings"]),
        tuple(Clean.model_validate(item) for item in stored["clean"]),
        tuple(NotRun.model_validate(item) for item in stored["not_run"]),
    )


def _findings(
    inputs: Inputs, planned: Sequence[Planned], answers: Sequence[Answer], sources: Mapping[str, str]
) -> Findings:
    ranked = rank(answers)
    unasked = [NotRun(check=p.check.slug, why="; ".join(p.why_not)) for p in planned if not p.runs]
    titles = [{"check": SELF_TEST.slug, "title": SELF_TEST.title}] if _opened(inputs) else []
    titles += [{"check": p.check.slug, "title": p.check.title} for p in planned]
    return Findings(
        subject=inputs.about_subject(),
        access=inputs.access,
        findings=ranked.findings,
        clean=ranked.clean,
        not_run=(*unasked, *ranked.not_run),
        provenance={
            **inputs.provenance(),
            "suite": dict(sources),
            "family_wise_level": LEVEL,
            "checks": titles,
        },
    )


def _exit_code(findings: Findings, limit: Severity) -> int:
    return int(any(f.severity.rank >= limit.rank for f in findings.counted()))


def _question(
    inputs: Inputs,
    suite: Suite,
    *,
    step: Callable[[str, Callable[[], Any]], Any] | None = None,
    folder: Callable[[str], Path] | None = None,
    report: Callable[[str], None] | None = None,
    executor: str | Executor = "local",
) -> Question:
    from glasshouse.runtime.cache import Cache
    from glasshouse.runtime.executors import get_executor

    return TrainedQuestion(
        subject=inputs.subject, suite=suite, rows=inputs.rows, reference=inputs.reference,
        checkpoints=inputs.checkpoints, seed=inputs.seed, cache=Cache(), executor=get_executor(executor),
        step=step or _nothing_runs, folder=folder or _nothing_runs, report=report or (lambda text: None),
    )  # fmt: skip


def _nothing_runs(name: str, build: Any = None) -> Any:
    raise GlasshouseError(f"a dry run was asked for step {name!r}", fix="estimate the cost without running")
