"""The first question of every audit: does what we read inside this model reproduce its own outputs?

White-box results mean nothing for a model we misread, so a failing self-test ends the audit (exit code 2).
"""

from __future__ import annotations

from typing import Any

from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import Clean, Null, TableEvidence
from glasshouse.runtime.errors import AccessError
from glasshouse.statistics.estimate import Estimate


@check("access-self-test", title="Do we read this model correctly?", needs=("text",))
def SELF_TEST(question: Question) -> Answer:
    """Clean with the largest error. Raises AccessError naming the comparison that fails."""
    return _judge(_measure(question))


def self_test_answer(question: Question) -> Answer:
    """The same, its measurement journalled."""
    return _judge(question.step(f"{SELF_TEST.slug}/errors", lambda: _measure(question)))


def _measure(question: Question) -> list[dict[str, Any]]:
    """Errors with two digits: the last bits depend on the number of threads, and say nothing."""
    return [
        {"name": c.name, "error": float(f"{c.error:.2g}"), "tolerance": float(f"{c.tolerance:.2g}")}
        for c in question.subject.self_test().checks
    ]


def _judge(measured: list[dict[str, Any]]) -> Answer:
    failing = [m for m in measured if not m["error"] <= m["tolerance"]]
    if failing or not measured:
        first = failing[0] if failing else {"name": "nothing could be compared", "error": 0, "tolerance": 0}
        raise AccessError(
            f"the access layer misreads this model: {first['name']} is off by {first['error']:g} "
            f"(tolerance {first['tolerance']:g})",
            fix="audit it with text access only, or describe its architecture with register_arch",
        )
    worst = max(measured, key=lambda m: m["error"] / m["tolerance"] if m["tolerance"] else 0.0)
    table = TableEvidence(
        title="Comparisons",
        columns=("what was compared", "largest error", "tolerance"),
        rows=tuple((m["name"], f"{m['error']:.2g}", f"{m['tolerance']:.2g}") for m in measured),
    )
    return Answer(
        clean=(
            Clean(
                check=SELF_TEST.slug,
                summary=f"What is read and edited inside the model reproduces its own outputs "
                f"({len(measured)} comparisons).",
                estimate=Estimate.exact(
                    worst["error"],
                    len(measured),
                    0.0,
                    worst["name"],
                ),
                null=Null(
                    description="the tolerance of this number format",
                    measured="Largest error against its tolerance",
                    value=worst["tolerance"],
                ),
                evidence=(table,),
            ),
        )
    )
