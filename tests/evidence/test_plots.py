"""Figures as SVG: marks stand where the numbers say, text is inert, and what cannot be drawn is refused."""

from __future__ import annotations

import base64
import itertools
import re
import struct
from xml.etree import ElementTree

import pytest

from glasshouse.evidence.plots import MAX_BYTES, figure_svg, run_of
from glasshouse.evidence.plots._axes import Axis, nice
from glasshouse.runtime.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*traces: dict, **layout) -> ElementTree.Element:
    text = figure_svg({"data": list(traces), "layout": layout}, run="study-1", name="a")
    assert run_of(text) == "study-1"
    return ElementTree.fromstring(text)


def marks(root: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in root.iter(SVG + tag) if kind in e.get("class", "").split()]


def places(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(e.get("cx")), float(e.get("cy"))) for e in marks(root, "circle", "d")]


def test_points_keep_their_proportions() -> None:
    root = drawn({"type": "scatter", "mode": "markers", "x": [0, 1, 4], "y": [10, 20, 40]})
    (x0, y0), (x1, y1), (x2, y2) = places(root)
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, rel=0.01)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(3, rel=0.01)  # up is more
    width, height = (float(root.get(side)) for side in ("width", "height"))
    assert all(0 < x < width and 0 < y < height for x, y in places(root))


def test_a_logarithmic_axis_and_what_has_no_place_on_it() -> None:
    trace = {"type": "scatter", "mode": "markers", "x": [1, 10, 100, 0, float("nan")], "y": [1, 1, 1, 1, 1]}
    found = places(drawn(trace, xaxis={"type": "log"}))
    assert len(found) == 3
    assert found[1][0] - found[0][0] == pytest.approx(found[2][0] - found[1][0], abs=0.2)


def test_a_gap_breaks_the_line() -> None:
    root = drawn({"type": "scatter", "mode": "lines", "y": [1, 2, None, 3, 4]})
    assert len(marks(root, "path", "l")) == 2


def test_bars_begin_at_zero_and_groups_stand_side_by_side() -> None:
    one = {"type": "bar", "name": "one", "x": ["a", "b"], "y": [1, 2]}
    root = drawn(one, {**one, "name": "two", "y": [2, 4]})
    bars = [e for e in marks(root, "rect", "b") if e.find(SVG + "title") is not None]
    heights = [float(e.get("height")) for e in bars]
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.02) and heights[3] == pytest.approx(
        2 * heights[1], rel=0.02
    )
    spans = sorted((float(e.get("x")), float(e.get("x")) + float(e.get("width"))) for e in bars)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_error_bars_lie_where_they_are_said_to() -> None:
    error = {"type": "data", "array": [2, 0], "arrayminus": [1, 0]}
    root = drawn({"type": "scatter", "mode": "markers", "y": [5, 0], "error_y": error})
    [whisker] = marks(root, "path", "e")
    (_, centre), (_, zero) = places(root)
    start, end = map(float, re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", whisker.get("d")).groups())
    per_unit = (zero - centre) / 5
    assert (start - centre) / per_unit == pytest.approx(1, abs=0.05)
    assert (centre - end) / per_unit == pytest.approx(2, abs=0.05)


def test_a_box_spans_the_middle_half() -> None:
    values = [0, 1, 2, 3, 4]
    root = drawn({"type": "box", "name": "x", "y": values, "boxpoints": "all"})
    [box] = marks(root, "rect", "q")
    ys = sorted(y for _, y in places(root))
    assert float(box.get("y")) == pytest.approx(ys[1], abs=0.3)
    assert float(box.get("y")) + float(box.get("height")) == pytest.approx(ys[3], abs=0.3)


def test_a_heat_map_has_a_cell_for_each_number_and_none_for_nan() -> None:
    root = drawn({"type": "heatmap", "z": [[0, 1], [0.5, float("nan")]], "text": [["<b>", "b"], ["c", "d"]]})
    cells = marks(root, "rect", "h")
    assert [e.get("fill-opacity") for e in cells] == ["0.00", "1.00", "0.50"]


def test_arrays_of_plotly_in_base64_are_read() -> None:
    data = base64.b64encode(struct.pack("<3d", 1, 2, 3)).decode()
    packed = drawn({"type": "scatter", "mode": "markers", "y": {"dtype": "f8", "bdata": data}})
    plain = drawn({"type": "scatter", "mode": "markers", "y": [1, 2, 3]})
    assert places(packed) == places(plain)


def test_panels_stand_side_by_side_and_thresholds_cross_their_own() -> None:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": 2, "y1": 2}
    first, second = (
        {"type": "scatter", "y": [1, 3]},
        {"type": "scatter", "y": [1, 3], "xaxis": "x2", "yaxis": "y2"},
    )
    root = drawn(first, second, shapes=[line])
    [threshold] = marks(root, "path", "x")
    _x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", threshold.get("d")))
    left = places(root)[:2]
    assert y0 == y1 == pytest.approx((left[0][1] + left[1][1]) / 2, abs=0.2)
    assert x1 < places(root)[2][0]


def test_text_is_inert() -> None:
    evil = '</text><script>alert(1)</script><a xlink:href="https://x">" onload="x'
    root = drawn(
        {"type": "bar", "name": evil, "x": [evil], "y": [1]}, title={"text": evil}, yaxis={"title": evil}
    )
    tags = {e.tag.removeprefix(SVG) for e in root.iter()}
    assert tags <= {"svg", "style", "rect", "text", "path", "circle", "title"}
    assert not any(name.startswith("on") or "href" in name for e in root.iter() for name in e.attrib)


def test_lying_bars_and_their_intervals() -> None:
    error = {"type": "data", "array": [1, 0]}
    trace = {"type": "bar", "orientation": "h", "x": [2, 4], "y": ["a", "b"], "error_x": error}
    root = drawn(trace)
    first, second = [e for e in marks(root, "rect", "b") if e.find(SVG + "title") is not None]
    assert float(second.get("width")) / float(first.get("width")) == pytest.approx(2, rel=0.02)
    [whisker] = marks(root, "path", "e")
    start, end = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", whisker.get("d")).groups())
    assert (end - start) / float(first.get("width")) == pytest.approx(1, rel=0.02)  # 1 to 3, beside 0 to 2


def test_what_cannot_be_drawn_is_refused() -> None:
    bar = {"type": "bar", "x": ["a"], "y": [1]}
    with pytest.raises(InputError, match="stacks bars"):
        figure_svg({"data": [bar, bar], "layout": {"barmode": "stack"}}, name="a")
    for figure in ({"data": [{"type": "pie"}]}, {"data": []}, {}):
        with pytest.raises(InputError, match="figure 'a'"):
            figure_svg(figure, name="a")
    rows = [[i * j % 7 for i in range(60)] for j in range(60)]
    with pytest.raises(InputError, match=f"limit is {MAX_BYTES // 1000} KB"):
        figure_svg({"data": [{"type": "heatmap", "z": rows}]}, name="a")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.001, 0.0042), (1e5, 3e6), (-1e-9, 1e-9)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = nice(low, high)
    assert 2 <= len(found) <= 7 and all(low - 1e-12 <= x <= high + 1e-12 for x in found)
    step = found[1] - found[0]
    assert f"{step:e}"[0] in "125" or f"{step:.0e}"[0] in "125"


def test_constant_values_still_have_an_axis() -> None:
    axis = Axis({}, [3, 3, 3], zero=False, pad=0.06)
    assert axis.low < 3 < axis.high
