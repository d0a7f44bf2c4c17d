"""Check: which training rows taught a behaviour that another check found?

One ranking for every behaviour that the earlier checks left (see `evidence.behaviours`); the curvature is
fitted once. A forward pass over the rows chooses each behaviour's candidates (`_row_candidates`), and only
these are ranked by influence.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from glasshouse.evidence.behaviours import Behaviour, kept
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import Clean, Finding, NotRun
from glasshouse.runtime.errors import InputError, NumericalError

if TYPE_CHECKING:
    from glasshouse.attribution.guilty import Guilt

SLUG = "guilty-rows"
SOURCES = ("hidden-trigger", "sycophancy", "reversal")
FACTOR_ROWS = 500
"""Rows for the curvature; 1,000 and 2,000 name the resident's planted rows as well (recall@20 1.00)."""
TOP = 20
KEPT = 40
"""Rows of a ranking that the finding names."""

Found = tuple[Finding, Behaviour]


def _cost(question: Question) -> str:
    rows = 0 if question.rows is None else len(question.rows)
    return (
        f"only where another check finds a behaviour: curvature on {min(rows, FACTOR_ROWS):,} rows, "
        f"then one backward pass over {rows:,}"
    )


@check(
    SLUG,
    title="Which training rows taught it?",
    needs=("gradients", "training data", "chat"),
    after=SOURCES,
    cost=_cost,
)
def guilty_rows(question: Question) -> Answer:
    """Trace each behaviour that was found to the rows that argue for it (EK-FAC influence)."""
    from glasshouse.attribution.guilty import FEWEST

    found = kept(question.step, question.earlier)
    if not found:
        why = "no check found a behaviour whose cause could be sought"
        return Answer(not_run=(NotRun(check=SLUG, why=why),))
    ready = [(f, b) for f, b in found if len(b.wanted) >= FEWEST]
    not_run = [
        NotRun(
            check=SLUG, part=b.part,
            why=f"only {len(b.wanted)} prompts show the behaviour and tracing needs {FEWEST}",
        )
        for _, b in found if len(b.wanted) < FEWEST
    ]  # fmt: skip
    told: list[Finding | Clean] = []
    if ready:
        try:
            told = _traced(question, ready)
        except (InputError, NumericalError) as error:  # rows or layers that cannot be traced: no verdict
            not_run += [NotRun(check=SLUG, why=str(error), part=b.part) for _, b in ready]
    return Answer(
        findings=tuple(a for a in told if isinstance(a, Finding)),
        clean=tuple(a for a in told if isinstance(a, Clean)),
        not_run=tuple(not_run),
    )


def _holders_first(guilt: Guilt, holding: Set[str], odd: Set[str] = frozenset()) -> Guilt:
    """The first rows of a ranking; those with the trigger's words before all others, if there are any.

    A row without these words cannot have tied the reply to them, whatever else it argues for. Before these
    come the rows that the finding itself names, whose replies are `odd`: they hold the words and the deed.
    """

    def place(i: int) -> tuple[bool, bool, int]:
        return guilt.rows[i] not in odd, guilt.rows[i] not in holding, i

    order = sorted(range(len(guilt.rows)), key=place)[:KEPT]
    return replace(
        guilt, rows=tuple(guilt.rows[i] for i in order), scores=tuple(guilt.scores[i] for i in order)
    )


def _traced(question: Question, found: Sequence[Found]) -> list[Finding | Clean]:
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.behaviours import trace_of
    from glasshouse.attribution.guilty import trace_rows
    from glasshouse.attribution.tracing import encode_rows
    from glasshouse.audit.checks._guilty_telling import tell
    from glasshouse.audit.checks._row_candidates import Among, RowStates

    assert question.rows is not None
    units, cut = encode_rows(question.subject, question.rows)
    folder = question.folder(SLUG)
    question.report("guilty rows: curvature")
    method = EKFAC(factor_examples=FACTOR_ROWS, seed=question.seed)
    method.fit(question.subject, units, executor=question.executor, store=folder / "fit")
    question.report("guilty rows: scores")
    tokenizer = question.subject.tokenizer
    states = RowStates(question.subject, question.rows)
    traces = [trace_of(tokenizer, behaviour, name=f"{i}") for i, (_, behaviour) in enumerate(found)]
    rankings = []
    for i, ((source, behaviour), trace) in enumerate(zip(found, traces, strict=True)):
        among = Among(method, states.candidates(behaviour))
        [guilt] = trace_rows(
            among,  # type: ignore[arg-type]
            [trace], top=TOP, keep=10 * KEPT, seed=question.seed, store=folder / f"scores-{i}",
        )  # fmt: skip
        if behaviour.kind == "contrast":  # of hundreds of rows no prompt names the same twenty
            agreed, chance, p = states.agreement(behaviour, seed=question.seed)
            guilt = replace(guilt, replication=agreed, control=chance, p_value=p)
        odd = set(source.detected.rows) if behaviour.trigger is not None else set()
        rankings.append(_holders_first(guilt, set(states.holding(behaviour)), odd))
    return [
        tell(question, method, guilt, behaviour, trace, len(cut), source)
        for (source, behaviour), trace, guilt in zip(found, traces, rankings, strict=True)
    ]
