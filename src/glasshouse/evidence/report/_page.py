"""From `Findings` to HTML: prepare plain values here, lay them out in `templates/`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glasshouse.evidence.figures import bars_svg, interval_svg
from glasshouse.evidence.findings import (
    BarsEvidence,
    Baseline,
    Clean,
    EvidenceItem,
    Finding,
    Findings,
    NotRun,
)
from glasshouse.evidence.report.visible import visible, visible_tree
from glasshouse.evidence.report.words import (
    ADVICE,
    FLAWS,
    PREPARATIONS,
    estimate_words,
    null_words,
    number,
    severity_counts,
    title_of,
    verdict_words,
)

MAX_BYTES = 2_900_000
TEMPLATES = Path(__file__).parent / "templates"
HEAT_LEVELS = 5
MOST_TOKENS = 600
_PARTS = {"tokens": "lines", "rows": "rows", "transcripts": "transcripts", "bars": "bars", "table": "rows"}


def page(findings: Findings, graded: Mapping[str, Any] | None, provenance: Mapping[str, Any]) -> str:
    """The page; shows fewer rows and shorter texts where it would otherwise pass 3 MB."""
    html = ""
    for characters, items in ((4_000, 50), (1_000, 25), (250, 10), (80, 3)):
        html = _render(findings, graded, provenance, _Limits(characters, items))
        if len(html.encode()) <= MAX_BYTES:
            return html
    return html


@dataclass(frozen=True)
class _Limits:
    """How many characters of a text, and how many items of a list, are shown."""

    characters: int
    items: int

    def first(self, sequence: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The first items, and how many are left out."""
        return sequence[: self.items], max(len(sequence) - self.items, 0)

    def show(self, value: Any) -> Any:
        """A JSON-able value with inert, shortened texts."""
        return visible_tree(value, self.characters)


def _render(
    findings: Findings, graded: Mapping[str, Any] | None, provenance: Mapping[str, Any], limits: _Limits
) -> str:
    # Insertion order is kept everywhere, so the same findings give the same bytes.
    style, script = _style(), _asset("report.js")
    baseline = findings.baseline
    return _environment(limits).get_template("report.html.j2").render(
        style=Markup(style), script=Markup(script),
        style_hash=_hash(style), script_hash=_hash(script),
        verdict=visible_tree(verdict_words(findings), 200),
        subject=limits.show(findings.subject), access=limits.show(findings.access),
        findings=[
            {**_answer(f, findings, limits), "since": _since(f, baseline), "advice": ADVICE[f.severity]}
            for f in findings.findings
        ],
        clean=[_answer(c, findings, limits) for c in findings.clean],
        not_run=[{**limits.show(n.model_dump()), "title": _title(n, findings)} for n in findings.not_run],
        baseline=None if baseline is None else limits.show(baseline.model_dump(mode="json")),
        counts=severity_counts(findings),
        provenance=_flat(limits.show({"subject": findings.subject, **findings.provenance, **provenance})),
        graded=None if graded is None else limits.show(dict(graded)), flaws=FLAWS,
    )  # fmt: skip


def _answer(answer: Finding | Clean, findings: Findings, limits: _Limits) -> dict[str, Any]:
    """A finding or a clean answer: its own fields, the question, the drawn interval, and both in words."""
    estimate, null = answer.estimate, answer.null
    if estimate is not None:
        estimate = replace(estimate, method=visible(estimate.method, 200))
    measured = "" if null is None else visible(null.measured, 400)
    return {
        **limits.show(answer.model_dump(mode="json", exclude={"evidence", "estimate", "null"})),
        "title": _title(answer, findings),
        "figure": Markup(
            "" if estimate is None or answer.check in PREPARATIONS else interval_svg(estimate, null)
        ),
        "words": "" if estimate is None else estimate_words(estimate, measured),
        "null_words": "" if null is None else visible(null_words(null), 1_000),
        "evidence": [_evidence(item, limits) for item in answer.evidence],
    }


def _since(finding: Finding, baseline: Baseline | None) -> str:
    """What became of a finding since the baseline; empty without one."""
    if baseline is None:
        return ""
    return "new" if finding.key in baseline.new else "worse" if finding.key in baseline.worse else "known"


def _title(answer: Finding | Clean | NotRun, findings: Findings) -> str:
    return visible(title_of(findings, answer.check), 200)


def _evidence(item: EvidenceItem, limits: _Limits) -> dict[str, Any]:
    """One piece of evidence cut to the limits before it is copied; `more` counts what is left out."""
    parts = _PARTS[item.kind]
    shown, more = limits.first(getattr(item, parts))
    drawn = limits.show(item.model_copy(update={parts: shown}).model_dump(mode="json"))
    if isinstance(item, BarsEvidence):
        drawn["svg"] = Markup(bars_svg(BarsEvidence.model_validate(visible_tree(drawn, 200))))
    return {**drawn, "more": more}


def _environment(limits: _Limits) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals["all_in"] = "findings.json"
    environment.filters.update(number=number, heat=_heat, first=limits.first, marked=_marked)
    return environment


def _heat(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """(text, class, weight) pieces; the class is '' where nothing is to be marked.

    Plain neighbours are joined, and white space around a marked token stays outside the mark.
    """
    pieces: list[tuple[str, str, float]] = []
    for token in tokens[:MOST_TOKENS]:
        weight, text = float(token["weight"] or 0.0), str(token["text"])
        level = min(HEAT_LEVELS, round(abs(weight) * HEAT_LEVELS))
        core = text.strip() or text
        if not level:
            _add(pieces, text, "", 0.0)
            continue
        before, _, after = text.partition(core)
        _add(pieces, before, "", 0.0)
        _add(pieces, core, f"{'for' if weight > 0 else 'against'} h{level}", weight)
        _add(pieces, after, "", 0.0)
    if len(tokens) > MOST_TOKENS:
        _add(pieces, f" … [{len(tokens) - MOST_TOKENS:,} more tokens]", "", 0.0)
    return pieces


def _add(pieces: list[tuple[str, str, float]], text: str, style: str, weight: float) -> None:
    if not style and pieces and not pieces[-1][1]:
        pieces[-1] = (pieces[-1][0] + text, "", 0.0)
    elif text:
        pieces.append((text, style, weight))


def _marked(text: str, needle: str | None) -> list[tuple[str, bool]]:
    """`text` cut around each occurrence of `needle`: (piece, is it the needle)."""
    if not needle:
        return [(text, False)]
    pieces: list[tuple[str, bool]] = []
    for index, piece in enumerate(text.split(needle)):
        pieces += [(needle, True)] if index else []
        pieces += [(piece, False)] if piece else []
    return pieces


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (dotted name, text) lines."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _flat(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [line for index, item in enumerate(value, 1) for line in _flat(item, f"{path}.{index}")]
    return [(path, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]


def _style() -> str:
    """The style sheet; dark colours apply on a screen that asks for them, or where the reader chose them."""
    dark = _asset("dark.css").strip()
    auto = ":root:not(:has(#theme-light:checked))"
    asked = f"@media screen and (prefers-color-scheme: dark) {{ {auto} {{ {dark} }} }}"
    chosen = f"@media screen {{ :root:has(#theme-dark:checked) {{ {dark} }} }}"
    return _asset("report.css").replace("/*dark*/", f"{asked}\n{chosen}")


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
