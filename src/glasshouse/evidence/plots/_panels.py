"""The document: panels with axes, lines across them, the legend, and the style for light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from glasshouse.evidence.plots._axes import Axis, cut, is_number, label, title_of
from glasshouse.evidence.plots._traces import Trace, draw_trace, extent
from glasshouse.runtime.errors import InputError

DRAWN = ("scatter", "scattergl", "bar", "box", "heatmap")
COLOURS = ("#0e7c86", "#d1495b", "#8a6fbf", "#c98a1b", "#4a7a3a", "#64748b", "#b0537f", "#3d6fb4")
WIDTH, MOST_ACROSS = 720, 3
LINE = 15
"""Pixels of a row with a name of its own."""
LONGEST = 26
"""Characters of a category below a crowded axis."""
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:var(--ink)}.t{font-size:14px;font-weight:600}"
    ".k,.c{font-size:11px}.g{stroke:var(--grid);stroke-width:1}"
    ".x{stroke:var(--ink);stroke-dasharray:5 4;fill:none}"
    ".l{fill:none;stroke-width:2}.dash{stroke-dasharray:5 4}.e{fill:none;stroke-width:1.2;opacity:.75}"
    ".d{stroke:var(--paper);stroke-width:.7}.b{fill-opacity:.8;stroke:none!important}"
    ".q{fill-opacity:.18}.faint{opacity:.3}.c{text-anchor:middle}.w1{fill:#fff}.h{fill:#0e7c86}"
    ":root{--ink:#1f2933;--grid:#e3e8ec;--paper:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#dde3e8;--grid:#3a444d;--paper:#1e2429}}"
)


def draw(figure: Mapping[str, Any], *, run: str, name: str) -> str:
    """The whole document. Raises InputError for what is not drawn."""
    traces = [trace for trace in figure.get("data", ()) if trace.get("visible", True) is True]
    strange = sorted({str(t.get("type", "scatter")) for t in traces} - set(DRAWN))
    if strange or not traces:
        what = f"traces of type {', '.join(strange)}" if strange else "no trace"
        raise InputError(f"figure {name!r} holds {what}", fix=f"draw it with {', '.join(DRAWN)}")
    layout = figure.get("layout") or {}
    if layout.get("barmode") in ("stack", "relative") and sum(t.get("type") == "bar" for t in traces) > 1:
        raise InputError(f"figure {name!r} stacks bars", fix="put them side by side: a stack hides intervals")
    styles = _styles(traces)
    panels = _panels(traces)
    title = label(title_of(layout), 90)
    legend = _legend(traces, styles, 34 if title else 12)
    top = legend.bottom + 6
    across = min(len(panels), MOST_ACROSS)
    width = WIDTH / across
    rooms = [_room_for_categories(_axis(layout, axes[0], g, 0), width) for axes, g in panels.items()]
    lines = max(len(_axis(layout, axes[1], g, 1).categories) for axes, g in panels.items())
    size = (width, max(250.0, 70.0 + LINE * lines) + max(rooms))
    heads = _panel_titles(layout, len(panels))
    body = list(legend.marks)
    if title:
        body.append(f'<text class="t" x="12" y="22">{escape(title)}</text>')
    for index, (axes, group) in enumerate(panels.items()):
        corner = (index % across * size[0], top + index // across * size[1])
        first = index % across == 0
        body += _panel(layout, axes, group, styles, corner, size, heads[index], heads=any(heads), first=first)
    height = top + -(-len(panels) // across) * size[1] + 4
    told = escape(title or label(name), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-label="{told}" data-run="{escape(run, quote=True)}">'
        f"<style>{_STYLE}{_colours(styles)}</style>"
        f'<rect width="100%" height="100%" rx="6" style="fill:var(--paper)"/>{"".join(body)}</svg>\n'
    )


def _panels(traces: Sequence[Trace]) -> dict[tuple[str, str], list[Trace]]:
    """Traces by the pair of axes they stand on, in plotly's order of axes."""
    found: dict[tuple[str, str], list[Trace]] = {}
    for trace in traces:
        axes = (str(trace.get("xaxis") or "x"), str(trace.get("yaxis") or "y"))
        found.setdefault(axes, []).append(trace)
    return dict(sorted(found.items(), key=lambda item: int(item[0][0][1:] or 1)))


def _styles(traces: Sequence[Trace]) -> dict[str, str]:
    """Trace name -> colour class; traces of one legend group, or of one name, share theirs."""
    found: dict[str, str] = {}
    for trace in traces:
        found.setdefault(_group(trace), f"s{len(found) % len(COLOURS)}")
    return found


def _group(trace: Trace) -> str:
    return str(trace.get("legendgroup") or trace.get("name") or "")


def _colours(styles: Mapping[str, str]) -> str:
    used = sorted(set(styles.values()))
    return "".join(f".{s}{{stroke:{COLOURS[int(s[1:])]};fill:{COLOURS[int(s[1:])]}}}" for s in used) + (
        ".l,.e{fill:none}"
    )


class _legend:
    """One row of names, wrapped; `bottom` is where the panels may start."""

    def __init__(self, traces: Sequence[Trace], styles: Mapping[str, str], top: float) -> None:
        names: dict[str, str] = {}
        for trace in traces:
            names.setdefault(_group(trace), label(trace.get("name") or _group(trace), 40))
        shown = {g: n for g, n in names.items() if n and g} if len(names) > 1 else {}
        self.marks: list[str] = []
        x, y = 14.0, top + 8
        for group, name in shown.items():
            width = 24 + 6.6 * len(name)
            if x + width > WIDTH - 8 and x > 14:
                x, y = 14.0, y + 18
            self.marks.append(
                f'<rect class="b {styles[group]}" x="{x:g}" y="{y - 9:g}" width="10" height="10" rx="2"/>'
            )
            self.marks.append(f'<text class="k" x="{x + 15:g}" y="{y:g}">{escape(name)}</text>')
            x += width
        self.bottom = y + 8 if shown else top


def _panel_titles(layout: Mapping[str, Any], count: int) -> list[str]:
    """What stands above each panel: plotly keeps the titles of subplots as annotations without arrows."""
    texts = [
        label(note.get("text", ""), 40)
        for note in layout.get("annotations") or ()
        if not note.get("showarrow", True) and note.get("yanchor") == "bottom"
    ]
    return texts if count > 1 and len(texts) == count else [""] * count


def _panel(
    layout: Mapping[str, Any],
    axes: tuple[str, str],
    traces: Sequence[Trace],
    styles: Mapping[str, str],
    corner: tuple[float, float],
    size: tuple[float, float],
    head: str,
    *,
    heads: bool,
    first: bool,
) -> list[str]:
    x, y = _axis(layout, axes[0], traces, 0), _axis(layout, axes[1], traces, 1)
    room = _room_for_categories(x, size[0])
    told = " · ".join(filter(None, (head, y.title if first else "")))
    left = corner[0] + 18 + max([6.2 * len(t) for _, t in y.ticks()], default=0)
    right, top = corner[0] + size[0] - 16, corner[1] + (26 if told or heads else 10)
    bottom = corner[1] + size[1] - 30 - (18 if x.title else 0) - room
    x.start, x.stop, y.start, y.stop = left, right, bottom, top
    marks = [f'<text class="k" x="{corner[0] + 12:g}" y="{corner[1] + 14:g}">{escape(told)}</text>']
    for at, text in y.ticks():
        marks.append(f'<path class="g" d="M{left:g} {at:g}H{right:g}"/>')
        marks.append(_text(left - 6, at + 4, text, "end"))
    marks += _x_ticks(x, bottom, room)
    if x.title:
        marks.append(_text((left + right) / 2, corner[1] + size[1] - 10, x.title, "middle"))
    marks += _lines_across(layout, axes, x, y)
    grouped = [t for t in traces if t.get("type") in ("bar", "box")]
    for trace in traces:
        slot = _slot_of(trace, grouped, layout)
        marks += draw_trace(trace, x, y, styles[_group(trace)], slot)
    return marks


def _slot_of(trace: Trace, grouped: Sequence[Trace], layout: Mapping[str, Any]) -> tuple[int, int]:
    """Which part of a category a bar or box takes: all of it where no other trace stands at its places."""
    if not any(trace is other for other in grouped):
        return 0, 1
    mine = set(map(str, extent(trace)[0]))
    beside = [other for other in grouped if mine & set(map(str, extent(other)[0]))]
    if layout.get("barmode") == "overlay" or len(beside) == 1:
        return 0, 1
    return next(i for i, other in enumerate(beside) if other is trace), len(beside)


def _axis(layout: Mapping[str, Any], name: str, traces: Sequence[Trace], which: int) -> Axis:
    settings = layout.get(f"{name[0]}axis{name[1:]}") or {}
    values = [value for trace in traces for value in extent(trace)[which]]
    lying = any(t.get("orientation") == "h" for t in traces)
    bars = any(t.get("type") == "bar" for t in traces)
    if any(t.get("type") == "heatmap" for t in traces):
        span = [v for v in values if is_number(v)]
        if len(span) == len(values) and settings.get("type") != "category" and span:
            settings = {**settings, "range": [min(span) - 0.5, max(span) + 0.5]}
    return Axis(settings, values, zero=bars and (which == 0) == lying, pad=0.06)


def _room_for_categories(x: Axis, width: float) -> float:
    """Pixels below the axis for names that do not fit side by side, 0 where they do."""
    texts = [text for _, text in x.ticks()]
    if not (x.categories or x.named) or sum(6.4 * len(text) + 8 for text in texts) <= width - 70:
        return 0.0
    longest = min(max(map(len, texts)), LONGEST)
    return 6.2 * longest * (0.95 if _upright(x, width) else 0.55)


def _upright(x: Axis, width: float) -> bool:
    """Whether the names stand so close that they must stand upright."""
    return (width - 60) / len(x.ticks()) < 22


def _x_ticks(x: Axis, bottom: float, room: float) -> list[str]:
    angle = -90 if _upright(x, x.stop - x.start + 60) else -32
    marks = []
    for at, text in x.ticks():
        if room:
            place = (
                f'transform="translate({at + (4 if angle == -90 else 0):g} {bottom + 12:g}) rotate({angle})"'
            )
            marks.append(f'<text class="k" {place} text-anchor="end">{escape(cut(text, LONGEST))}</text>')
        else:
            marks.append(_text(at, bottom + 16, text, "middle"))
    return marks


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{round(x, 1):g}" y="{round(y, 1):g}"'
    return f'<text class="k" {place} text-anchor="{anchor}">{escape(text)}</text>'


def _lines_across(layout: Mapping[str, Any], axes: tuple[str, str], x: Axis, y: Axis) -> list[str]:
    """Thresholds: straight lines of the layout on these axes, from edge to edge where plotly says so."""
    marks = []
    for shape in layout.get("shapes") or ():
        across, up = str(shape.get("xref", "x")), str(shape.get("yref", "y"))
        if shape.get("type") != "line" or up.split()[0] not in ("paper", axes[1]):
            continue
        if across.split()[0] not in ("paper", axes[0]):
            continue
        ends = [
            _end(shape, "x", across, x, i) + _end(shape, "y", up, y, i)  # pixels of (x, y)
            for i in (0, 1)
        ]
        if all(len(end) == 2 for end in ends):
            (x0, y0), (x1, y1) = ends
            marks.append(f'<path class="x" d="M{x0:g} {y0:g}L{x1:g} {y1:g}"/>')
    return marks


def _end(shape: Mapping[str, Any], axis: str, ref: str, scale: Axis, which: int) -> list[float]:
    value = shape.get(f"{axis}{which}")
    if ref == "paper" or ref.endswith("domain"):
        return [scale.start + float(value or 0) * (scale.stop - scale.start)]
    at = scale.at(value)
    return [] if at is None else [at]
