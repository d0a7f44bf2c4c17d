"""Inline SVG whose positions are percentages, so that a figure fits a phone and a page.

Colours come from the classes of the page's style sheet. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from glasshouse.evidence.findings import BarsEvidence, Null
from glasshouse.statistics.estimate import Estimate

_ROW = 40
_LABEL_CHARACTERS = 46
TINY = 0.01
"""Below this, values are errors rather than shares, and get an axis of their own."""


def interval_svg(estimate: Estimate, null: Null | None = None) -> str:
    """The estimate's interval and point on an axis, the null beside it; empty when nothing can be drawn."""
    if not estimate.defined:
        return ""
    null_value = _null_value(null)
    bounds = [x for x in (estimate.low, estimate.high) if math.isfinite(x)]
    low, high = domain([estimate.value, *bounds, *([] if null_value is None else [null_value])])
    at = _Scale(low, high)
    parts = [_line(at(low), 30, at(high), 30, "axis"), _text(at(low), 50, _short(low), "start")]
    parts.append(_text(at(high), 50, _short(high), "end"))
    if null is not None and null.estimate is not None and null.estimate.defined:
        parts.append(_rect(at, null.estimate.low, null.estimate.high, 26, 8, "null-band"))
    if null_value is not None:
        parts += [_line(at(null_value), 14, at(null_value), 38, "null-line")]
        parts.append(
            _text(at(null_value), 10, f"null {_short(null_value)}", at.anchor(null_value), "null-label")
        )
    parts.append(_rect(at, estimate.low, estimate.high, 24, 12, "interval"))
    parts.append(f'<circle class="point" cx="{at(estimate.value)}%" cy="30" r="6"/>')
    label = f"estimate {_short(estimate.value)} on an axis from {_short(low)} to {_short(high)}"
    return _svg(56, label, parts)


def bars_svg(evidence: BarsEvidence, *, limit: int = 40) -> str:
    """Horizontal bars with intervals, the highlighted ones in the accent colour, the threshold as a line."""
    bars = [bar for bar in evidence.bars if math.isfinite(bar.value)][:limit]
    if not bars:
        return ""
    threshold = evidence.threshold
    values = [x for bar in bars for x in (bar.value, bar.low, bar.high) if x is not None]
    low, high = domain([0.0, *values, *([] if threshold is None else [threshold])])
    at = _Scale(low, high)
    top = 22 if threshold is not None else 4
    parts: list[str] = []
    for index, bar in enumerate(bars):
        y = top + index * _ROW
        style = "bar hot" if bar.highlighted else "bar"
        label = _cut(bar.label)
        parts.append(_label(y, label, "bar-label hot" if bar.highlighted else "bar-label"))
        parts.append(_text(100, y + 13, _bar_value(bar.value, bar.low, bar.high), "end", "bar-value"))
        parts.append(_rect(at, low, high, y + 19, 12, "track"))
        parts.append(_rect(at, min(0.0, bar.value), max(0.0, bar.value), y + 19, 12, style))
        if bar.low is not None and bar.high is not None:
            parts += _whisker(at, bar.low, bar.high, y + 25)
    height = top + len(bars) * _ROW
    if threshold is not None:
        name = f"{evidence.threshold_label or 'threshold'} {_short(threshold)}"
        parts.append(_line(at(threshold), 18, at(threshold), height, "threshold"))
        parts.append(_text(at(threshold), 12, name, at.anchor(threshold), "threshold-label"))
    told = "; ".join(f"{_cut(bar.label)} {_bar_value(bar.value, bar.low, bar.high)}" for bar in bars)
    return _svg(height + 4, f"{evidence.title}: {told}", parts)


def domain(values: Iterable[float]) -> tuple[float, float]:
    """The axis for `values`: [0, 1] when they are all shares, else their range with a margin, never empty."""
    finite = [x for x in values if math.isfinite(x)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low >= 0 and TINY < high <= 1:
        return 0.0, 1.0
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.5
    return (0.0 if 0 <= low <= high / 4 else low - margin), high + margin


class _Scale:
    """From data to percent of the width, with room for a marker at both ends."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, x: float) -> float:
        share = (min(max(x, self.low), self.high) - self.low) / (self.high - self.low)
        return round(1 + 98 * share, 2)

    def anchor(self, x: float) -> str:
        """Which side of its mark a label must lie on to stay in the picture."""
        return "start" if self(x) < 25 else "end" if self(x) > 75 else "middle"


def _null_value(null: Null | None) -> float | None:
    if null is None:
        return None
    if null.value is not None:
        return null.value if math.isfinite(null.value) else None
    return null.estimate.value if null.estimate is not None and null.estimate.defined else None


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    name = escape(label)
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" width="100%" height="{height}" '
        f'role="img" aria-label="{name}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text x="{x}%" y="{y}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _label(y: float, text: str, style: str) -> str:
    # An inner svg clips a long label, so that it never runs under the value on a narrow screen.
    inside = f"<title>{escape(text)}</title>{_text(0, 13, text, 'start', style)}"
    return f'<svg x="0" y="{y}" width="54%" height="18">{inside}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1}%" y1="{y1}" x2="{x2}%" y2="{y2}" class="{style}"/>'


def _rect(at: _Scale, low: float, high: float, y: float, height: float, style: str) -> str:
    left, right = at(low), at(high)
    width = round(max(right - left, 0.4), 2)
    return f'<rect x="{left}%" y="{y}" width="{width}%" height="{height}" rx="3" class="{style}"/>'


def _whisker(at: _Scale, low: float, high: float, y: float) -> list[str]:
    ends = (at(low), at(high))
    caps = [_line(x, y - 4, x, y + 4, "whisker") for x in ends]
    return [_line(ends[0], y, ends[1], y, "whisker"), *caps]


def _bar_value(value: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" [{_short(low)}, {_short(high)}]"
    return _short(value) + interval


def _short(x: float) -> str:
    if math.isinf(x):
        return "unbounded"
    if x == 0 or 0.001 <= abs(x) < 10_000:
        return f"{x:.3f}".rstrip("0").rstrip(".") if abs(x) < 10 else f"{x:.1f}".rstrip("0").rstrip(".")
    return f"{x:.1e}"


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL_CHARACTERS else text[: _LABEL_CHARACTERS - 1] + "…"
