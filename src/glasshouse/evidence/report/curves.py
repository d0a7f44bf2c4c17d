"""Line charts as inline SVG: theory as lines, measurements as points with intervals, on the same axes.

Positions across are percentages and lines are stretched without their strokes, so that a chart fits a phone
and a page with text of the same size. All text is escaped here; nothing is styled inline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from glasshouse.evidence.report.visible import visible
from glasshouse.runtime.errors import InputError

LEFT, RIGHT, TOP, BOTTOM = 11.0, 98.0, 14, 28
HEIGHT = 312
COLOURS = 5
MOST_MARKS = 6
LARGEST = 1e100
"""Values beyond have no axis; they are drawn at its end."""
MOST_POINTS = 2_000

Kind = Literal["theory", "control", "measured"]


@dataclass(frozen=True)
class Line:
    """A curve: a closed form ('theory'), the mechanism switched off ('control'), or joined measurements."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Kind = "theory"


@dataclass(frozen=True)
class Points:
    """Measured points with intervals; hollow where the certificate exceeds its tolerance."""

    name: str
    x: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    solid: tuple[bool, ...]
    labels: tuple[str, ...] = ()
    """What each point is, for its tooltip and the table of numbers."""


@dataclass(frozen=True)
class Mark:
    """A vertical line: the boundary of a regime."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """Theory and simulation on the same axes. Lines of one name share a colour and one legend entry."""

    title: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...] = ()
    points: tuple[Points, ...] = ()
    marks: tuple[Mark, ...] = ()
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    zero_y: bool = True
    """Whether the y axis of a linear chart starts at 0 where all values are above it."""

    def __post_init__(self) -> None:
        columns: dict[str, tuple[Sequence[float], ...]] = {l.name: (l.x, l.y) for l in self.lines}
        for p in self.points:
            columns[f"{p.name} (points)"] = (p.x, p.value, p.low, p.high, p.solid)
        for name, found in columns.items():
            if len({len(column) for column in found}) > 1:
                raise InputError(f"the series {name!r} has columns of different lengths")


def chart_svg(chart: Chart) -> str:
    """The chart as one `<svg>`; empty where it holds no number that can be drawn."""
    axes = _Axes.of(chart)
    if axes is None:
        return ""
    colours = _colours(chart)
    parts = [*_grid(chart, axes), *(_mark(mark, axes) for mark in chart.marks[:MOST_MARKS])]
    parts.append(_stretched(chart, axes, colours))
    for points in chart.points:
        parts += _dots(points, axes, colours[points.name])
    label = visible(f"{chart.title}: {chart.y_title} against {chart.x_title}", 300)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure chart" width="100%" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def legend(chart: Chart) -> list[tuple[str, str]]:
    """(swatch SVG, name) of each series, in the order of drawing."""
    entries: dict[str, str] = {}
    colours = _colours(chart)
    for line in chart.lines:
        style = f"curve {line.kind} s{colours[line.name]}"
        entries.setdefault(line.name, f'<line x1="0" y1="7" x2="26" y2="7" class="{style}"/>')
    for points in chart.points:
        dot = f'<circle cx="13" cy="7" r="4.5" class="dot s{colours[points.name]}"/>'
        entries[points.name] = entries.get(points.name, "") + dot
    if any(not all(points.solid) for points in chart.points):
        entries["hollow: the certificate was not met"] = '<circle cx="13" cy="7" r="4.5" class="dot open"/>'
    swatch = '<svg width="26" height="14" aria-hidden="true">{}</svg>'
    return [(swatch.format(body), visible(name, 120)) for name, body in entries.items()]


def numbers(chart: Chart) -> list[tuple[str, str, str, str]]:
    """(series, x, value, interval) of each measured point, as text, for a table below the chart."""
    rows = []
    for points in chart.points:
        names = points.labels or (points.name,) * len(points.x)
        cells = zip(names, points.x, points.value, points.low, points.high, points.solid, strict=True)
        for name, x, value, low, high, solid in cells:
            told = name if name == points.name else f"{points.name}, {name}"
            status = "" if solid else " (not certified)"
            rows.append((visible(told, 160), short(x), short(value) + status, _interval(low, high)))
    return rows[:MOST_POINTS]


def short(x: float) -> str:
    """A number in three or four places, for cells and ticks."""
    if math.isnan(x):
        return "undefined"
    if math.isinf(x):
        return "unbounded"
    if x == 0 or 0.001 <= abs(x) < 100_000:
        return f"{x:.5g}" if abs(x) >= 10_000 else f"{x:.4g}"
    return f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _interval(low: float, high: float) -> str:
    return short(low) if low == high else f"{short(low)} to {short(high)}"


@dataclass(frozen=True)
class _Axes:
    """From data to places: percent across, pixels down."""

    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool
    log_y: bool

    @classmethod
    def of(cls, chart: Chart) -> _Axes | None:
        xs = [*_flat(line.x for line in chart.lines), *_flat(p.x for p in chart.points)]
        ys = [*_flat(line.y for line in chart.lines), *_flat(p.value for p in chart.points)]
        xs += [mark.x for mark in chart.marks]
        ys += [*_flat(p.low for p in chart.points), *_flat(p.high for p in chart.points)]
        x, y = _range(xs, chart.log_x, zero=False), _range(ys, chart.log_y, zero=chart.zero_y)
        return None if x is None or y is None else cls(x, y, chart.log_x, chart.log_y)

    def across(self, x: float) -> float | None:
        share = _share(x, self.x, self.log_x)
        return None if share is None else round(LEFT + (RIGHT - LEFT) * share, 3)

    def down(self, y: float) -> float | None:
        share = _share(y, self.y, self.log_y)
        return None if share is None else round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 2)


def _range(values: list[float], log: bool, *, zero: bool) -> tuple[float, float] | None:
    kept = [v for v in values if abs(v) <= LARGEST and (v >= 1 / LARGEST or not log)]
    if not kept:
        return None
    low, high = min(kept), max(kept)
    if high - low < 1e-9 * max(abs(low), abs(high), 1 / LARGEST):  # one value, up to rounding
        low = high = (low + high) / 2
    if log:
        return (low / 1.15, high * 1.15) if low < high else (low / 3, high * 3)
    low = 0.0 if zero and low >= 0 else low
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero and low == 0 else low - margin), high + margin


def _share(v: float, ends: tuple[float, float], log: bool) -> float | None:
    """Where v lies on its axis, 0 to 1, clipped to it; None where it has no place."""
    if math.isnan(v) or (log and v <= 0):
        return None
    if math.isinf(v):
        return float(v > 0)
    scale: Callable[[float], float] = math.log10 if log else float
    low, high = scale(ends[0]), scale(ends[1])
    return min(max((scale(v) - low) / (high - low), 0.0), 1.0)


def _grid(chart: Chart, axes: _Axes) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = []
    for tick in _ticks(axes.y, axes.log_y):
        y = axes.down(tick)
        parts.append(f'<line x1="{LEFT}%" y1="{y}" x2="{RIGHT}%" y2="{y}" class="rule"/>')
        parts.append(_text(LEFT - 1, (y or 0) + 4, short(tick), "end"))
    for tick in _ticks(axes.x, axes.log_x):
        x = axes.across(tick)
        parts.append(f'<line x1="{x}%" y1="{base}" x2="{x}%" y2="{base + 5}" class="axis"/>')
        parts.append(_text(x or 0.0, base + 19, short(tick), "middle"))
    parts.append(f'<line x1="{LEFT}%" y1="{base}" x2="{RIGHT}%" y2="{base}" class="axis"/>')
    return parts


def _ticks(ends: tuple[float, float], log: bool) -> list[float]:
    low, high = ends
    if log:
        span = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        fine = (1.0, 2.0, 5.0) if len(span) <= 3 else (1.0,)
        ticks = [round(m * 10.0**d, 12 - d) for d in span for m in fine if low <= m * 10.0**d <= high]
        return ticks[:: max(1, math.ceil(len(ticks) / 8))] or [math.sqrt(low * high)]
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, first + 8) if i * step <= high * (1 + 1e-9)]


def _stretched(chart: Chart, axes: _Axes, colours: dict[str, int]) -> str:
    """All lines in one inner picture that is stretched over the plot; their strokes keep their width."""
    tall = HEIGHT - TOP - BOTTOM
    paths = []
    for line in chart.lines:
        for run in _runs(line, axes):
            told = " ".join(f"{(x - LEFT) / (RIGHT - LEFT) * 1000:.1f},{y - TOP:.1f}" for x, y in run)
            style = f"curve {line.kind} s{colours[line.name]}"
            paths.append(f'<polyline points="{told}" class="{style}"/>')
    return (
        f'<svg x="{LEFT}%" y="{TOP}" width="{RIGHT - LEFT}%" height="{tall}" viewBox="0 0 1000 {tall}" '
        f'preserveAspectRatio="none">{"".join(paths)}</svg>'
    )


def _runs(line: Line, axes: _Axes) -> list[list[tuple[float, float]]]:
    """The line cut where it has no value."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        a, b = axes.across(x), axes.down(y)
        if a is None or b is None or math.isinf(y):
            runs.append([])
        else:
            runs[-1].append((a, b))
    return [run for run in runs if len(run) > 1]


def _dots(points: Points, axes: _Axes, colour: int) -> list[str]:
    parts = []
    names = points.labels or (points.name,) * len(points.x)
    cells = zip(points.x, points.value, points.low, points.high, points.solid, names, strict=True)
    for x, value, low, high, solid, name in list(cells)[:MOST_POINTS]:
        a, b = axes.across(x), axes.down(value)
        if a is None or b is None:
            continue
        top, base = axes.down(high), axes.down(low)
        if top is not None and base is not None and base - top > 1:
            parts.append(f'<line x1="{a}%" y1="{top}" x2="{a}%" y2="{base}" class="bound s{colour}"/>')
        title = escape(f"{visible(name, 120)}: {short(value)} [{short(low)}, {short(high)}]")
        style = f"dot s{colour}" if solid else f"dot open s{colour}"
        parts.append(f'<circle cx="{a}%" cy="{b}" r="4.5" class="{style}"><title>{title}</title></circle>')
    return parts


def _mark(mark: Mark, axes: _Axes) -> str:
    x = axes.across(mark.x)
    if x is None:
        return ""
    line = f'<line x1="{x}%" y1="{TOP}" x2="{x}%" y2="{HEIGHT - BOTTOM}" class="boundary"/>'
    anchor = "end" if x > 60 else "start"
    shift = -0.8 if x > 60 else 0.8
    return line + _text(x + shift, TOP + 12, visible(mark.name, 60), anchor, "mark-label")


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _colours(chart: Chart) -> dict[str, int]:
    """Name -> colour number; a theory and the measurement beside it may share a name and so a colour."""
    names = dict.fromkeys([*(p.name for p in chart.points), *(line.name for line in chart.lines)])
    return {name: number % COLOURS for number, name in enumerate(names)}


def _flat(columns: Iterable[Sequence[float]]) -> list[float]:
    return [value for column in columns for value in column]
