"""From `Findings` to HTML: prepare plain values here, lay them out in `templates/`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glasshouse.evidence.figures import bars_svg, interval_svg
from glasshouse.evidence.findings import BarsEvidence, Clean, Finding, Findings
from glasshouse.evidence.report.visible import visible, visible_tree
from glasshouse.evidence.report.words import (
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


def page(findings: Findings, graded: Mapping[str, Any] | None, provenance: Mapping[str, Any]) -> str:
    """The page; shows fewer rows and shorter texts where it would otherwise pass 3 MB."""
    html = ""
    for characters, items in ((4_000, 50), (1_000, 25), (250, 10), (80, 3)):
        html = _render(findings, graded, provenance, _Limits(characters, items))
        if len(html.encode()) <= MAX_BYTES:
            return html
    return html


class _Limits:
    """How much of a text, and of a list, is shown."""

    def __init__(self, characters: int, items: int) -> None:
        self.characters, self.items = characters, items

    def first(self, sequence: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The first items, and how many are left out."""
        return sequence[: self.items], max(len(sequence) - self.items, 0)


def _render(
    findings: Findings, graded: Mapping[str, Any] | None, provenance: Mapping[str, Any], limits: _Limits
) -> str:
    # Insertion order is kept everywhere, so the same findings give the same bytes.
    shown = visible_tree(findings.model_dump(mode="json"), limits.characters)
    new = findings.counted()
    style, script = _style(), _asset("report.js")
    environment = _environment(limits)
    return environment.get_template("report.html.j2").render(
        style=Markup(style), script=Markup(script),
        style_hash=_hash(style), script_hash=_hash(script),
        verdict=visible_tree(verdict_words(findings), 200),
        subject=shown["subject"], access=shown["access"],
        findings=[
            {**_with_bars(f, s), **_common(f, findings), "is_new": f in new}
            for f, s in zip(findings.findings, shown["findings"], strict=True)
        ],
        clean=[
            {**_with_bars(c, s), **_common(c, findings)}
            for c, s in zip(findings.clean, shown["clean"], strict=True)
        ],
        not_run=[
            {**s, "title": visible(title_of(findings, n.check), 200)}
            for n, s in zip(findings.not_run, shown["not_run"], strict=True)
        ],
        baseline=shown.get("baseline"),
        counts=severity_counts(findings),
        provenance=_flat(visible_tree({**findings.provenance, **provenance}, limits.characters)),
        graded=None if graded is None else visible_tree(dict(graded), limits.characters),
    )  # fmt: skip


def _common(answer: Finding | Clean, findings: Findings) -> dict[str, Any]:
    """What a finding and a clean answer share: the question, the drawn interval, and both in words."""
    estimate, null = answer.estimate, answer.null
    return {
        "title": visible(title_of(findings, answer.check), 200),
        "figure": Markup("" if estimate is None else interval_svg(estimate, null)),
        "words": "" if estimate is None else visible(estimate_words(estimate), 400),
        "null_words": "" if null is None else visible(null_words(null), 1_000),
    }


def _with_bars(answer: Finding | Clean, shown: dict[str, Any]) -> dict[str, Any]:
    for item, drawn in zip(answer.evidence, shown["evidence"], strict=True):
        if isinstance(item, BarsEvidence):
            quiet = BarsEvidence.model_validate(visible_tree(item.model_dump(mode="json"), 200))
            drawn["svg"] = Markup(bars_svg(quiet))
    return shown


def _environment(limits: _Limits) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(number=number, heat=_heat, first=limits.first, marked=_marked)
    return environment


def _heat(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """(text, class, weight) pieces; the class is '' where nothing is to be marked.

    Plain neighbours are joined, and white space around a marked token stays outside the mark.
    """
    pieces: list[tuple[str, str, float]] = []
    for token in tokens:
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
