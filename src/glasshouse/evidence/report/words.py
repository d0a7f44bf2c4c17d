"""Numbers in words, for a reader who is not a statistician."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from glasshouse.evidence.findings import Findings, Null, Severity
from glasshouse.statistics.estimate import Estimate

PREPARATIONS = frozenset({"access-self-test"})
"""Checks of our own instruments: clean ones say nothing about the model."""


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


def estimate_words(estimate: Estimate) -> str:
    """One sentence: the value, its interval, on how much, and how the interval was made."""
    if not estimate.defined:
        return f"Not measurable: {estimate.method.removeprefix('undefined: ')}."
    if estimate.low == estimate.high:
        return f"Measured {number(estimate.value)} (n = {estimate.n:,}, {estimate.method})."
    return (
        f"Measured {number(estimate.value)}; the {estimate.level:.0%} interval runs from "
        f"{number(estimate.low)} to {number(estimate.high)} (n = {estimate.n:,}, {estimate.method})."
    )


def null_words(null: Null) -> str:
    """One or two sentences: what it was compared with, and how surprising the result would be under it."""
    words = f"Compared with: {null.description.rstrip('.')}"
    if null.estimate is not None and null.estimate.defined:
        words += (
            f", which gave {number(null.estimate.value)} [{number(null.estimate.low)}, "
            f"{number(null.estimate.high)}] (n = {null.estimate.n:,})"
        )
    elif null.value is not None:
        words += f" ({number(null.value)})"
    p = null.p_adjusted if null.p_adjusted is not None else null.p_value
    if p is None:
        return words + "."
    corrected = ", corrected for the number of questions asked" if null.p_adjusted is not None else ""
    chance = f"a result like this would appear with probability {_p(p)}{corrected}"
    return f"{words}. Were that all there is, {chance}."


def verdict_words(findings: Findings) -> dict[str, str]:
    """The headline, the sentence below it, and the mood: bad, good, or open (nothing was asked)."""
    name = str(findings.subject.get("name", "this model"))
    cleared = [c for c in findings.clean if c.check not in PREPARATIONS]
    unasked = len(findings.not_run)
    clean = f"{_count(len(cleared), 'answer') if cleared else 'No answer'} came back clean"
    open_ = f"{_count(unasked, 'question')} could not be asked"
    if findings.findings:
        total = len(findings.findings)
        lead = f"The worst is {findings.worst()}." if total > 1 else f"Its severity is {findings.worst()}."
        rest = clean + (f", and {open_}." if unasked else ".")
        return {
            "headline": f"{_count(total, 'finding')} in {name}",
            "sentence": f"{lead} {rest}",
            "mood": "bad",
        }
    if not cleared:
        sentence = f"{open_[0].upper()}{open_[1:]}; the reasons are below. This says nothing about the model."
        return {"headline": f"Nothing could be asked of {name}", "sentence": sentence, "mood": "open"}
    sentence = clean + (f"; {open_}." if unasked else ".")
    return {"headline": f"Nothing found in {name}", "sentence": sentence, "mood": "good"}


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
