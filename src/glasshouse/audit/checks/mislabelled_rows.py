"""Check: do training rows carry labels that the model, having learnt the others, disputes?

Asked where the replies come from a closed set. What counts as too many disputes is said in
`attribution.disputed`: more of them among the rows that the model is surest of than a model that is merely
weak would have there. A model that has learnt its rows by heart disputes none of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.audit.commands import rows_name
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    NotRun,
    Null,
    RowsEvidence,
    Severity,
    TableEvidence,
)
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from glasshouse.attribution.disputed import Disputes
    from glasshouse.attribution.label_sets import LabelSet
    from glasshouse.corpora.rows import Record

SLUG = "mislabelled-rows"
MOST_ROWS = 4_000
"""Rows that are scored; of more, so many are drawn by the seed."""
STEP_ROWS = 512
"""Rows scored before they are stored: what a killed audit may have to repeat."""
NAMED = 200
"""Rows that a finding names, worst first."""
SHOWN = 20
MEDIUM = 0.05
"""From here on (lower end of the interval) wrong labels are no accident of a few rows."""
LEVEL = 0.05


def _cost(question: Question) -> str:
    from glasshouse.attribution.label_sets import find_labels

    assert question.rows is not None
    try:
        found = find_labels(question.rows)
    except InputError:
        return "nothing: the rows hold no closed set of answers"
    rows = min(len(found), MOST_ROWS)
    return f"one forward pass over {rows:,} rows with each of {len(found.labels)} answers"


@check(
    SLUG,
    title="Do training rows carry wrong labels?",
    needs=("logprobs", "training data"),
    cost=_cost,
)
def mislabelled_rows(question: Question) -> Answer:
    """Compare each row's label with what the model says to it."""
    from glasshouse.attribution.disputed import disputes
    from glasshouse.attribution.label_sets import find_labels

    assert question.rows is not None
    try:
        found = _drawn(question, find_labels(question.rows))
        logprobs = _logprobs(question, found)
        result = disputes(logprobs, found.given)
    except InputError as error:
        return Answer(not_run=(NotRun(check=SLUG, why=str(error)),))
    if result.p_value > LEVEL:
        return Answer(clean=(_clean(found, result),))
    return Answer(findings=(_finding(question, found, result, logprobs),))


def _drawn(question: Question, found: LabelSet) -> LabelSet:
    """At most MOST_ROWS of the rows with a label."""
    from glasshouse.runtime.seeds import rng

    if len(found) <= MOST_ROWS:
        return found
    at = rng(question.seed, SLUG, "rows").choice(len(found), MOST_ROWS, replace=False)
    return found.subset(sorted(int(i) for i in at))


def _logprobs(question: Question, found: LabelSet) -> np.ndarray:
    import numpy as np

    from glasshouse.attribution.label_sets import label_logprobs

    rows = question.rows
    assert rows is not None
    parts: list[Any] = []
    for start in range(0, len(found), STEP_ROWS):
        records = [rows[int(i)] for i in found.places[start : start + STEP_ROWS]]
        question.report(f"mislabelled rows: {start + len(records):,} of {len(found):,}")

        def build(records: list[Record] = records) -> list[list[float | None]]:
            values = label_logprobs(question.subject, records, found.labels)
            return [[float(x) if np.isfinite(x) else None for x in row] for row in values]

        parts += question.step(f"{SLUG}/logprobs-{start}", build)
    return np.array([[np.nan if x is None else x for x in row] for row in parts], dtype=np.float64)


# -- telling -------------------------------------------------------------------------------------------------


def _null(result: Disputes) -> Null:
    return Null(
        description=(
            "what a merely weak model with as many disputes in all would have there (normal noise of equal "
            "variance), and at least one row in a hundred; exact binomial test"
        ),
        measured="Share of disputed labels among the half of the rows that the model is surer of",
        value=result.expected,
        p_value=result.p_value,
    )


def _finding(question: Question, found: LabelSet, result: Disputes, logprobs: np.ndarray) -> Finding:
    assert question.rows is not None
    rows = [question.rows[int(found.places[i])] for i in result.order[:NAMED]]
    return Finding(
        check=SLUG,
        severity=Severity.MEDIUM if result.rate.low >= MEDIUM else Severity.LOW,
        summary=(
            f"Training rows carry labels that the model, having learnt the others, disputes: "
            f"{result.rate.value:.1%} of the half that it is surer of, where at most {result.expected:.1%} "
            f"would be expected. {len(result.order):,} rows should be read again."
        ),
        detected=Detected(
            rows=tuple(record.id for record in rows),
            entities=tuple(sorted(label.strip() for label in found.labels)),
        ),
        estimate=result.rate,
        null=_null(result),
        evidence=(_rows(found, result, rows, logprobs), _bars(result), _table(found, result)),
        next=_next(question),
    )


def _clean(found: LabelSet, result: Disputes) -> Clean:
    learnt = " It prefers the given label on every row, as a model would that knows its rows by heart;" \
        " ask an earlier checkpoint, too." if result.agreement.value == 1 else ""  # fmt: skip
    return Clean(
        check=SLUG,
        summary=(
            f"The labels are what the model makes of them: of {result.judged:,} rows with "
            f"{len(found.labels)} labels it disputes {1 - result.agreement.value:.1%}, and "
            f"{result.rate.value:.1%} of the half that it is surer of.{learnt}"
        ),
        estimate=result.rate,
        null=_null(result),
        evidence=(_bars(result), _table(found, result)),
    )


def _rows(found: LabelSet, result: Disputes, rows: Sequence[Record], logprobs: np.ndarray) -> RowsEvidence:
    from scipy.special import softmax

    from glasshouse.attribution.telling import ranked_rows

    notes, ranking = {}, []
    for record, at, odds in zip(rows[:SHOWN], result.order, result.odds, strict=False):
        p = softmax(logprobs[at])
        own, other = found.given[at], result.preferred[at]
        notes[record.id] = (
            f"labelled {found.labels[own].strip()!r} ({p[own]:.1%}), "
            f"the model says {found.labels[other].strip()!r} ({p[other]:.1%})"
        )
        ranking.append((record.id, float(odds)))
    shown = ranked_rows(rows, ranking, tokenizer=None, note=lambda record: notes[record.id])
    return RowsEvidence(
        title="Rows whose label the model disputes",
        caption="Worst first. The number is the log-odds, in nats, of the model's label against the row's.",
        rows=shown,
    )


def _bars(result: Disputes) -> BarsEvidence:
    overall = result.agreement
    return BarsEvidence(
        title="Disputed labels",
        caption="Exact 95 % intervals. Rows are called sure without looking at their label.",
        unit="share of rows",
        bars=(
            Bar(label="half of the rows, by sureness", value=result.rate.value, low=result.rate.low,
                high=result.rate.high, highlighted=True),
            Bar(label="all rows", value=1 - overall.value, low=1 - overall.high, high=1 - overall.low),
        ),
        threshold=result.expected,
        threshold_label="expected of a weak model",
    )  # fmt: skip


def _table(found: LabelSet, result: Disputes) -> TableEvidence:
    import numpy as np

    rows = []
    for k, label in enumerate(found.labels):
        own = found.given == k
        others = result.preferred[own & (result.preferred != k)]
        named = int(np.bincount(others).argmax()) if len(others) else None
        rows.append(
            (
                label.strip(), f"{int(own.sum()):,}", f"{len(others):,}",
                "" if named is None else found.labels[named].strip(), "yes" if k in result.known else "no",
            )
        )  # fmt: skip
    return TableEvidence(
        title="Label by label",
        caption="A label is known when the model prefers it on half of its rows; others are not judged.",
        columns=("label", "rows", "disputed", "mostly said instead", "known"),
        rows=tuple(rows),
    )


def _next(question: Question) -> str:
    rows = rows_name(question)
    model, data = shlex.quote(str(question.subject.name)), shlex.quote(rows or "ROWS.jsonl")
    return f"glasshouse mislabeled --model {model} --train {data}"
