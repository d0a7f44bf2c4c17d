"""From answers to findings: correct for the number of questions, drop what fails, rank the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glasshouse.evidence.checks import Answer
from glasshouse.evidence.findings import Clean, Finding, NotRun, Null
from glasshouse.statistics import holm

LEVEL = 0.05
"""Family-wise error rate of one audit."""


@dataclass(frozen=True)
class Ranked:
    """The three lists of `findings.json`."""

    findings: tuple[Finding, ...]
    clean: tuple[Clean, ...]
    not_run: tuple[NotRun, ...]


def rank(answers: Sequence[Answer]) -> Ranked:
    """Holm over every p-value of the audit, those of clean answers included; findings worst first.

    Clean answers count because they were asked: a correction over the findings alone would be a correction
    over what was already selected. A finding without a p-value stands as it is.
    """
    findings = [f for answer in answers for f in answer.findings]
    clean = [c for answer in answers for c in answer.clean]
    asked: list[Finding | Clean] = [*findings, *clean]
    tested = [a for a in asked if a.null is not None and a.null.p_value is not None]
    adjusted = holm([a.null.p_value for a in tested if a.null is not None and a.null.p_value is not None])
    corrected = {id(a): p for a, p in zip(tested, adjusted, strict=True)}
    kept: list[Finding] = []
    dropped: list[Clean] = []
    for finding in findings:
        p = corrected.get(id(finding))
        null = _with_p(finding.null, p)
        if p is not None and p > LEVEL:
            dropped.append(_acquitted(finding, null))
        else:
            kept.append(finding.model_copy(update={"null": null}))
    cleared = [c.model_copy(update={"null": c.null and _with_p(c.null, corrected.get(id(c)))}) for c in clean]
    not_run = [n for answer in answers for n in answer.not_run]
    return Ranked(tuple(sorted(kept, key=_order)), (*cleared, *dropped), tuple(not_run))


def _with_p(null: Null, p: float | None) -> Null:
    return null if p is None else null.model_copy(update={"p_adjusted": float(p)})


def _acquitted(finding: Finding, null: Null) -> Clean:
    summary = f"Not significant once corrected for the number of questions asked: {finding.summary}"
    return Clean(
        check=finding.check, summary=summary, estimate=finding.estimate, null=null, evidence=finding.evidence
    )


def _order(finding: Finding) -> tuple[float, float, str, str]:
    size = abs(finding.estimate.value) if finding.estimate.defined else 0.0
    return (-finding.severity.rank, -size, finding.check, finding.key)
