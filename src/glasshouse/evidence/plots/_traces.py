"""Marks: what each kind of trace puts into a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import quantiles
from typing import Any

from glasshouse.evidence.plots._axes import Axis, is_number, label, numbers_of

Trace = Mapping[str, Any]
POINTS = 400
"""Points of one trace that are drawn; of more, every k-th."""


def extent(trace: Trace) -> tuple[list[Any], list[Any]]:
    """The values along x and along y that the axes must hold, error bars included."""
    x, y = _xy(trace)
    if trace.get("type") == "heatmap":
        rows = numbers_of(trace.get("z"))
        return x or list(range(len(rows[0]) if rows else 0)), y or list(range(len(rows)))
    spread = [
        value
        for centre, (low, high) in zip(y, _errors(trace, len(y)), strict=False)
        if is_number(centre)
        for value in (centre - low, centre + high)
    ]
    return ([*x, *_reach(trace, x)], y) if trace.get("orientation") == "h" else (x, [*y, *spread])


def _reach(trace: Trace, x: Sequence[Any]) -> list[float]:
    """The ends of the error bars along x."""
    errors = _errors(trace, len(x), "error_x")
    return [v for c, (low, high) in zip(x, errors, strict=False) if is_number(c) for v in (c - low, c + high)]


def draw_trace(trace: Trace, x: Axis, y: Axis, style: str, slot: tuple[int, int]) -> list[str]:
    """The marks of one trace; `style` is its colour class, `slot` its place (index, of how many)."""
    kind = trace.get("type", "scatter")
    if kind == "bar":
        return _bars(trace, x, y, style, slot)
    if kind == "box":
        return _boxes(trace, x, y, style, slot)
    return _heat(trace, x, y) if kind == "heatmap" else _scatter(trace, x, y, style)


def _xy(trace: Trace) -> tuple[list[Any], list[Any]]:
    x, y = numbers_of(trace.get("x")), numbers_of(trace.get("y"))
    if not x and trace.get("type") == "box":  # a box without x stands at its own name
        x = [str(trace.get("name", ""))] * len(y)
    return (x or list(range(len(y)))) if trace.get("type") != "heatmap" else x, y


def _errors(trace: Trace, n: int, along: str = "error_y") -> list[tuple[float, float]]:
    """(below, above) of each point, zero where there is no error bar."""
    given = trace.get(along) or {}
    above = [x if is_number(x) else 0.0 for x in numbers_of(given.get("array"))]
    if given.get("visible") is False or not above:
        return [(0.0, 0.0)] * n
    below = [x if is_number(x) else 0.0 for x in numbers_of(given.get("arrayminus"))] or above
    return list(zip(below, above, strict=False))


def _scatter(trace: Trace, x: Axis, y: Axis, style: str) -> list[str]:
    xs, ys = _xy(trace)
    mode = trace.get("mode") or ("lines+markers" if len(ys) < 20 else "lines")
    if trace.get("fill") in ("toself", "tonexty", "tozeroy") and "markers" not in mode:
        style += " faint"
    places = [(x.at(a), y.at(b)) for a, b in zip(xs, ys, strict=False)]
    marks = []
    if "lines" in mode:
        dashed = " dash" if (trace.get("line") or {}).get("dash", "solid") != "solid" else ""
        marks += [f'<path class="l {style}{dashed}" d="{path}"/>' for path in _paths(places)]
    for (px, _), b, (low, high) in zip(places, ys, _errors(trace, len(ys)), strict=False):
        if px is not None and is_number(b) and (low or high):
            marks.append(_whisker(px, y.at(b - low), y.at(b + high), style))
    if "markers" in mode:
        marks += _dots([place for place in places if None not in place], style)
    return marks


def _paths(places: Sequence[tuple[float | None, float | None]]) -> list[str]:
    """One path for each stretch without a gap."""
    stretches: list[list[str]] = [[]]
    for px, py in places:
        if px is None or py is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{px:g} {py:g}")
    return ["M" + "L".join(stretch) for stretch in stretches if len(stretch) > 1]


def _dots(places: Sequence[Any], style: str, radius: float = 3) -> list[str]:
    kept = list(dict.fromkeys(places))
    kept = kept[:: max(1, -(-len(kept) // POINTS))]
    return [f'<circle class="d {style}" cx="{px:g}" cy="{py:g}" r="{radius:g}"/>' for px, py in kept]


def _bars(trace: Trace, x: Axis, y: Axis, style: str, slot: tuple[int, int]) -> list[str]:
    xs, ys = _xy(trace)
    if trace.get("orientation") == "h":
        return _lying_bars(trace, x, y, style, slot)
    marks, zero = [], y.scaled(max(0.0, y.low))
    for a, b, (low, high) in zip(xs, ys, _errors(trace, len(ys)), strict=False):
        left, right = _slot(x, a, slot)
        top = y.at(b)
        if top is None or left is None or right is None:
            continue
        marks.append(
            _rect(left, min(top, zero), right - left, abs(zero - top), f"b {style}", f"{a}: {b:.4g}")
        )
        if low or high:
            marks.append(_whisker((left + right) / 2, y.at(b - low), y.at(b + high), style))
    return marks


def _lying_bars(trace: Trace, x: Axis, y: Axis, style: str, slot: tuple[int, int]) -> list[str]:
    (xs, ys), marks, zero = _xy(trace), list[str](), x.scaled(max(0.0, x.low))
    for a, b, (low, high) in zip(xs, ys, _errors(trace, len(xs), "error_x"), strict=False):
        top, bottom = _slot(y, b, slot)
        end = x.at(a)
        if end is None or top is None or bottom is None:
            continue
        height, start = abs(bottom - top), min(top, bottom)
        marks.append(_rect(min(end, zero), start, abs(end - zero), height, f"b {style}", f"{b}: {a:.4g}"))
        if low or high:
            middle = round(start + height / 2, 1)
            left, right = x.at(a - low), x.at(a + high)
            caps = f"M{left:g} {middle - 3:g}V{middle + 3:g}M{right:g} {middle - 3:g}V{middle + 3:g}"
            marks.append(f'<path class="e {style}" d="M{left:g} {middle:g}H{right:g}{caps}"/>')
    return marks


def _slot(axis: Axis, value: Any, slot: tuple[int, int]) -> tuple[float | None, float | None]:
    """The pixels between which the `slot` of a category lies."""
    centre = axis.number(value)
    if centre is None:
        return None, None
    index, count = slot
    width = 0.76 / count
    start = centre - 0.38 + index * width
    return axis.scaled(start), axis.scaled(start + width * 0.92)


def _boxes(trace: Trace, x: Axis, y: Axis, style: str, slot: tuple[int, int]) -> list[str]:
    groups: dict[Any, list[float]] = {}
    for a, b in zip(*_xy(trace), strict=False):
        if is_number(b):
            groups.setdefault(a, []).append(float(b))
    marks: list[str] = []
    for a, values in groups.items():
        left, right = _slot(x, a, slot)
        if left is None or right is None:
            continue
        middle = round((left + right) / 2, 1)
        if len(values) > 1:
            low, median, high = (y.scaled(v) for v in quantiles(values, n=4, method="inclusive"))
            marks.append(_whisker(middle, y.at(min(values)), y.at(max(values)), style))
            marks.append(_rect(left, high, right - left, low - high, f"q {style}"))
            marks.append(f'<path class="l {style}" d="M{left:g} {median:g}H{right:g}"/>')
        if trace.get("boxpoints") == "all" or len(values) < 2:
            marks += _dots([(middle, y.at(value)) for value in values], style, 2.5)
    return marks


def _heat(trace: Trace, x: Axis, y: Axis) -> list[str]:
    rows = [numbers_of(row) for row in numbers_of(trace.get("z"))]
    across, down = extent(trace)
    flat = [v for row in rows for v in row if is_number(v)]
    low = trace["zmin"] if is_number(trace.get("zmin")) else min(flat, default=0.0)
    high = trace["zmax"] if is_number(trace.get("zmax")) else max(flat, default=1.0)
    words = numbers_of(trace.get("text"))
    marks = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            centre_x, centre_y = x.number(across[j]), y.number(down[i])
            if not is_number(value) or centre_x is None or centre_y is None:
                continue
            left, right = x.scaled(centre_x - 0.5), x.scaled(centre_x + 0.5)
            top, bottom = sorted((y.scaled(centre_y - 0.5), y.scaled(centre_y + 0.5)))
            share = (value - low) / ((high - low) or 1)
            marks.append(_cell(left, top, right - left, bottom - top, min(max(share, 0.0), 1.0), value))
            fits = right - left > 22 and bottom - top > 11
            if fits and i < len(words) and j < len(words[i]):
                word = escape(label(words[i][j], max(2, int((right - left) / 6.2))))
                tone = "w1" if share > 0.55 else "w0"
                at = f'x="{(left + right) / 2:g}" y="{(top + bottom) / 2 + 3.5:g}"'
                marks.append(f'<text class="c {tone}" {at}>{word}</text>')
    return marks


def _cell(left: float, top: float, width: float, height: float, share: float, value: float) -> str:
    place = f'x="{left:g}" y="{top:g}" width="{round(width, 1):g}" height="{round(height, 1):g}"'
    return f'<rect class="h" fill-opacity="{share:.2f}" {place}><title>{value:.3g}</title></rect>'


def _rect(left: float, top: float, width: float, height: float, style: str, told: str = "") -> str:
    title = f"<title>{escape(label(told))}</title>" if told else ""
    return (
        f'<rect class="{style}" x="{left:g}" y="{round(top, 1):g}" width="{round(width, 1):g}" '
        f'height="{round(max(height, 0.8), 1):g}">{title}</rect>'
    )


def _whisker(px: float, low: float | None, high: float | None, style: str) -> str:
    if low is None or high is None:
        return ""
    caps = f"M{px - 3:g} {low:g}H{px + 3:g}M{px - 3:g} {high:g}H{px + 3:g}"
    return f'<path class="e {style}" d="M{px:g} {low:g}V{high:g}{caps}"/>'
