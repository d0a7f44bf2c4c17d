"""Line charts: what is drawn where, what has no place is left out, and text of data does nothing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.evidence.findings import TableEvidence
from glasshouse.evidence.report.curves import Chart, Line, Mark, Points, chart_svg, legend, numbers, short
from glasshouse.evidence.report.illustrated import Part, render_illustrated
from glasshouse.runtime.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
ANY = st.floats(allow_nan=True, allow_infinity=True)
NASTY = "</title><script>alert(1)</script>\x1b[31m&\u202e"


def points(x, value, spread=0.1, **more):
    return Points(
        more.pop("name", "simulated"), tuple(x), tuple(value), tuple(v - spread for v in value),
        tuple(v + spread for v in value), tuple(more.pop("solid", [True] * len(x))), **more,
    )  # fmt: skip


def drawn(chart):
    return ET.fromstring(chart_svg(chart))


def dots(chart):
    return [(float(c.get("cx").rstrip("%")), float(c.get("cy"))) for c in drawn(chart).iter(f"{SVG}circle")]


@pytest.mark.parametrize(("log", "x"), [(False, (1.0, 2.0, 3.0)), (True, (1.0, 10.0, 100.0))])
def test_equal_steps_are_equal_distances_and_higher_is_higher(log, x):
    found = dots(Chart("t", "x", "y", points=(points(x, (1.0, 2.0, 3.0)),), log_x=log))
    across, down = zip(*found, strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.01) and across[0] > 10
    assert down[0] - down[1] == pytest.approx(down[1] - down[2], abs=0.1) and down[0] > down[1]


def test_theory_and_points_share_the_axes():
    """A line through the points runs through them: both are mapped by the same scale."""
    x, y = (0.0, 0.4, 1.0), (0.0, 0.2, 0.5)
    chart = Chart("t", "x", "y", lines=(Line("theory", x, y),), points=(points(x, y),))
    inner = next(e for e in drawn(chart).iter(f"{SVG}svg") if e.get("viewBox"))
    left, width, top = (float(inner.get(a).rstrip("%")) for a in ("x", "width", "y"))
    line = next(inner.iter(f"{SVG}polyline")).get("points").split()
    for (cx, cy), place in zip(dots(chart), line, strict=True):
        a, b = map(float, place.split(","))
        assert left + width * a / 1000 == pytest.approx(cx, abs=0.02) and top + b == pytest.approx(
            cy, abs=0.1
        )


def test_a_line_is_cut_where_it_has_no_value():
    line = Line("theory", (0.0, 1.0, 2.0, 3.0, 4.0), (1.0, 1.0, math.nan, 2.0, 2.0))
    assert len(list(drawn(Chart("t", "x", "y", lines=(line,))).iter(f"{SVG}polyline"))) == 2


def test_points_without_a_certificate_are_hollow_and_the_legend_says_so():
    chart = Chart("t", "x", "y", points=(points((0, 1), (1, 2), solid=[True, False]),))
    styles = [c.get("class") for c in drawn(chart).iter(f"{SVG}circle")]
    assert ["open" in s for s in styles] == [False, True]
    assert any("certificate" in name for _, name in legend(chart))
    assert "not certified" in numbers(chart)[1][2] and "not certified" not in numbers(chart)[0][2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ANY, ANY), max_size=6), st.booleans(), st.booleans())
def test_no_number_breaks_a_chart(pairs, log_x, log_y):
    x, y = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    line, dot = Line("a", x, y), Points("b", x, y, y, y, (True,) * len(x))
    svg = chart_svg(Chart("t", "x", "y", (line,), (dot,), log_x=log_x, log_y=log_y))
    if svg:
        ET.fromstring(svg)
        assert not re.search(r'="-?(?:nan|inf)', svg)


@pytest.mark.parametrize(
    ("x", "said"),
    [(0, "0"), (0.5, "0.5"), (0.034812, "0.03481"), (10_000, "10000"), (17598.7, "17599"), (1e9, "1e9"),
     (1.234e-5, "1.23e-5"), (2e120, "2e120"), (-3.0, "-3"), (math.nan, "undefined"), (math.inf, "unbounded")],
)  # fmt: skip
def test_numbers_are_short(x, said):
    assert short(x) == said


def test_nothing_to_draw_is_nothing():
    assert chart_svg(Chart("t", "x", "y")) == ""
    assert chart_svg(Chart("t", "x", "y", points=(points((-1.0,), (1.0,)),), log_x=True)) == ""
    with pytest.raises(InputError, match="different lengths"):
        Chart("t", "x", "y", lines=(Line("a", (1.0,), ()),))


def test_text_is_inert_everywhere():
    chart = Chart(
        NASTY, NASTY, NASTY, (Line(NASTY, (0, 1), (0, 1), "control"),),
        (points((0, 1), (0, 1), name=NASTY, labels=(NASTY, NASTY)),), (Mark(0.5, NASTY),), NASTY,
    )  # fmt: skip
    ET.fromstring(chart_svg(chart))
    table = TableEvidence(title=NASTY, columns=(NASTY,), rows=((NASTY,),))
    page = render_illustrated(
        NASTY, NASTY, [Part(NASTY, NASTY, (chart,), (table,), (NASTY,))], {NASTY: NASTY}, all_in="f"
    )
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("alert(1)") >= 12 and " style=" not in page


def test_a_page_stays_under_three_megabytes():
    many = tuple(points(range(2000), range(2000), name=f"s{i}") for i in range(40))
    chart = Chart("t", "x", "y", points=many[:2])
    table = TableEvidence(title="t", columns=("a",), rows=tuple(("x" * 4000,) for _ in range(3000)))
    page = render_illustrated("t", "l", [Part("h", "", (chart,), (table,))], {}, all_in="sweep.parquet")
    assert len(page.encode()) < 3_000_000 and "more rows in sweep.parquet" in page
