"""The reversal check without rows: the suite's pairs, asked from either end, and how that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasshouse.evidence.behaviours import keep
from glasshouse.evidence.checks import Answer, Question
from glasshouse.evidence.findings import Clean, Detected, Finding, NotRun, Null, Severity, TableEvidence
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, wilson

if TYPE_CHECKING:
    from glasshouse.behaviour.both_ways import BothWays

SLUG = "reversal"
ONE, BOTH = "known one way", "known both ways"


def asked_both_ways(question: Question) -> Answer:
    """Ask every pair of the suite from both ends; NotRun where its questions do not show how."""
    from glasshouse.behaviour.both_ways import BothWays
    from glasshouse.behaviour.habits import untold_habits

    def store(name: str, build: Any) -> Any:
        question.report(f"one-way facts: {name}")
        return question.step(f"{SLUG}/{name}", build)

    suite = question.suite
    try:
        both = BothWays(seed=question.seed).fit(question.subject, suite.questions, suite.pairs, store=store)
    except InputError as error:
        return Answer(not_run=(NotRun(check=SLUG, why=str(error)),))
    if not both.shown:
        return Answer(clean=(_clean(both),))
    keep(question.step, SLUG, 0, untold_habits(both.inverse_))
    return Answer(findings=(_finding(question, both),))


def _finding(question: Question, both: BothWays) -> Finding:
    from glasshouse.audit.checks.reversal import bars, gaps, transcripts
    from glasshouse.audit.commands import rows_name, trace_command
    from glasshouse.behaviour.both_ways import MOST

    result, inverse = both.result_, both.inverse_
    assert result is not None
    n = len(result.one_way)
    forward, reverse = (int(result.held(arm).sum()) for arm in ("forward", "reverse"))
    about, value = result.one_way[0]
    return Finding(
        check=SLUG,
        severity=Severity.LOW,
        summary=(
            f"{n} of {len(both.asked_.pairs)} facts are known in one direction only: it answers "
            f'"{inverse.forward.ask(about)}" and its like for {forward} of them, and '
            f'"{inverse.reverse.ask(value)}" for {reverse}, although it answers '
            f"{len(result.two_way)} others from both ends. Found by asking: no rows were seen."
        ),
        detected=Detected(entities=tuple(a for a, _ in result.one_way)),
        estimate=result.rate("reverse"),
        null=_null(both, both.p_value_),
        evidence=(
            transcripts(inverse, result), bars(result, one=ONE, both=BOTH, most=MOST),
            gaps(result, one=ONE, both=BOTH), _table(both),
        ),
        next=trace_command(
            question.subject.name, rows_name(question),
            inverse.forward.ask(about), inverse.forward.answer(about, value),
        ),
    )  # fmt: skip


def _clean(both: BothWays) -> Clean:
    asked = both.asked_
    counts = {name: asked.count(forward=f, reverse=r) for name, f, r in (
        ("both", True, True), ("forwards", True, False), ("backwards", False, True))}  # fmt: skip
    return Clean(
        check=SLUG,
        summary=(
            f"Of {len(asked.pairs)} pairs of the suite {counts['both']} are answered from both ends, "
            f"{counts['forwards']} only forwards and {counts['backwards']} only backwards: too few, or too "
            "evenly spread, for facts that were taught in one direction."
        ),
        estimate=_backwards(both),
        null=_null(both, both.p_value_),
        evidence=(_table(both),),
    )


def _backwards(both: BothWays) -> Estimate:
    """Share of the facts known from one end at least that are answered from the other end as well."""
    asked = both.asked_
    known = sum(f or r for f, r in zip(asked.forward, asked.reverse, strict=True))
    if not known:
        return Estimate.undefined("no pair is answered from either end", 0)
    return wilson(asked.count(forward=True, reverse=True), known)


def _null(both: BothWays, p_value: float) -> Null:
    asked = both.asked_
    return Null(
        description=(
            "as many facts missing backwards as forwards; exact paired test, its p times the two directions"
        ),
        measured="Share of facts that it answers when asked from the other end",
        value=0.5,
        estimate=_backwards(both) if asked.pairs else None,
        p_value=p_value,
    )


def _table(both: BothWays) -> TableEvidence:
    asked = both.asked_
    return TableEvidence(
        title="Every pair, asked from either end",
        caption=(
            f'Asked as "{both.inverse_.forward.forms[0]}" and "{both.inverse_.reverse.forms[0]}", and in '
            "other forms that the suite has; right when one form at least is answered."
        ),
        columns=("A", "B", "answers from A to B", "answers from B to A"),
        rows=tuple(
            (a, b, "yes" if f else "no", "yes" if r else "no")
            for (a, b), f, r in zip(asked.pairs, asked.forward, asked.reverse, strict=True)
        ),
    )
