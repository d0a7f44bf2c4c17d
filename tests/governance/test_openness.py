"""Openness: the published rows, the scale, licences and their chains, scores with bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.governance import CardError, normalize_license, parse_expression, to_card, validate
from glasshouse.governance.openness import (
    COMPONENTS,
    band_to_level,
    compare,
    effective_weights_license,
    license_points,
    opening_up_projects,
    paper_sheet,
    read_overrides,
    read_sheet,
    score,
    taxonomy_cards,
    taxonomy_rows,
)
from glasshouse.governance.openness.licences import licence_table

WEIGHTS = "deployment.data.weights"


def card(name: str = "m", bases: list[str] | None = None, **cells: Any) -> Any:
    parts = {k.replace("__", "."): {"value": v, "status": "disclosed"} for k, v in cells.items()}
    return to_card(
        {"card_type": "openness", "subject": {"name": name, "base_models": bases or []}, "components": parts}
    )


def weights(level: str, licence: str | None = None, **more: Any) -> dict[str, Any]:
    return {"level": level, **({"license": licence} if licence else {}), **more}


def test_45_rows_540_cells() -> None:
    rows = taxonomy_rows()
    assert len(rows) == 45 and sum(len(row.cells) for row in rows) == 540
    assert sum(row.in_40 for row in rows) == 40
    assert all(row.in_40 == (row.release < "2024-03") for row in rows)


def counts(component: str, *, only_40: bool = False) -> Counter[Any]:
    return Counter(row.cells[component][0] for row in taxonomy_rows() if row.in_40 or not only_40)


def test_counts_of_levels() -> None:
    assert counts(WEIGHTS) == {1: 11, 2: 6, 3: 6, 4: 3, 5: 19}
    assert counts("training.data.pretraining") == {1: 27, 4: 6, 5: 8, "Unknown": 4}
    fewer = counts(WEIGHTS, only_40=True)
    assert sum(fewer.values()) == 40 and all(fewer[k] <= counts(WEIGHTS)[k] for k in fewer)


def test_alignment_data_is_never_open() -> None:
    levels = {v for v in counts("training.data.alignment") if isinstance(v, int)}
    assert levels == {1}


def test_opening_up_scores() -> None:
    projects = opening_up_projects()
    assert len(projects) == 46 and all(len(one.classes) == 14 for one in projects)
    assert sum(one.openness == one.published for one in projects) == 46


def test_published_rows_validate() -> None:
    for slug, one in taxonomy_cards().items():
        assert {i.code for i in validate(one, level=3).issues} <= {"W-LIC-STRICT"}, slug


@pytest.mark.parametrize(
    ("kind", "points", "access", "level"),
    [
        ("code", 0, "public", "C2"),
        ("code", 3, "public", "C3"),
        ("code", 4, "public", "C4"),
        ("code", 5, "public", "C5"),
        ("data", 0, "public", "D3"),
        ("data", 3, "public", "D3"),
        ("data", 4, "public", "D4"),
        ("data", 5, "gated", "D4"),
        ("data", None, "api", "D2"),
        ("code", 5, "api", "C1"),
        ("data", 5, "none", "D1"),
        ("data", 5, "on_request", "D3"),
        ("code", 5, "on_request", "C2"),
        ("data", None, "public", None),
    ],
)
def test_the_scale(kind: str, points: int | None, access: str, level: str | None) -> None:
    assert band_to_level(kind, points, access) == level


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("Apache 2.0", "Apache-2.0"),
        ("BSD-3", "BSD-3-Clause"),
        ("llama2", "LicenseRef-Llama-2"),
        ("ODC-By", "ODC-By-1.0"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("GNU GPL", "LicenseRef-GNU-GPL"),
        ("bigscience-bloom-rail-1.0", "LicenseRef-BigScience-BLOOM-RAIL-1.0"),
        ("mit OR apache-2.0", "MIT OR Apache-2.0"),
        ("My Terms v3!", "LicenseRef-My-Terms-v3"),
    ],
)
def test_licences_by_any_name(text: str, spdx: str) -> None:
    found, warnings = normalize_license(text)
    assert found == spdx and bool(warnings) == text.startswith("My")


@pytest.mark.parametrize(
    ("text", "column"),
    [("MIT AND", 8), ("MIT OR (Apache-2.0", 8), ("(MIT) GPL", 7), ("MIT AND Foo-1.0", 9), ("MIT WITH", 5)],
)
def test_a_broken_expression_says_where(text: str, column: int) -> None:
    with pytest.raises(CardError, match=f"column {column}"):
        parse_expression(text)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.sampled_from(
            [
                "MIT",
                "GPL-2.0-only",
                "Apache-2.0+",
                "LicenseRef-x",
                "GPL-2.0-only WITH Classpath-exception-2.0",
            ]
        ),
        lambda inner: st.tuples(inner, st.sampled_from([" AND ", " OR "]), inner).map(
            lambda t: f"({t[0]}{t[1]}{t[2]})"
        ),
        max_leaves=6,
    )
)
def test_an_expression_reads_back_as_itself(text: str) -> None:
    found = parse_expression(text)
    assert parse_expression(str(found)) == found


def test_or_takes_the_best_and_binds_both() -> None:
    assert license_points("MIT OR CC-BY-NC-SA-4.0").points == 5
    assert license_points("MIT AND CC-BY-NC-SA-4.0").points == 3
    assert license_points("CC-BY-NC-4.0 AND CC-BY-SA-4.0").points == 3, "each takes away another permission"
    assert license_points("LicenseRef-nobody AND MIT").points is None
    assert license_points("LicenseRef-nobody OR MIT").points == 5


def test_strict_readings_that_disagree_are_flagged() -> None:
    for licence in ("CC-BY-SA-4.0", "GNU GPL", "C4AI", "Falcon-180B"):
        assert license_points(licence).agree("data") is False
    assert {
        one.agree("data")
        for key, one in licence_table().items()
        if key in ("MIT", "Apache-2.0", "ODC-By-1.0")
    } == {True}


def test_a_user_overrides_the_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "My Terms:\n  permissions: [true, true, false, false, false]\n  note: read by our counsel\n"
    )
    assert license_points("My Terms", overrides=read_overrides(path)).points == 2
    path.write_text("My Terms:\n  permissions: [1, 1]\n")
    with pytest.raises(CardError, match="'My Terms' has no five permissions"):
        read_overrides(path)


@settings(max_examples=60, deadline=None)
@given(
    base=st.sampled_from(["D1", "D2", "D3", "D4", "D5"]),
    lora=st.sampled_from(["D1", "D2", "D3", "D4", "D5"]),
    licences=st.tuples(st.sampled_from(sorted(licence_table())), st.sampled_from(sorted(licence_table()))),
    known=st.booleans(),
)
def test_a_lora_never_exceeds_its_base(base: str, lora: str, licences: tuple[str, str], known: bool) -> None:
    below = alone("base", [], weights(base, licences[0]))
    above = alone("lora", ["base"], weights(lora, licences[1]))
    found, limit = score(above, cards={"base": below} if known else {}).overall, score(below).overall
    if known:
        assert found.high <= limit.high and found.high == min(int(base[1]), int(lora[1])) / 4 - 1 / 4
    else:
        assert found.low == 0 and found.high == (int(lora[1]) - 1) / 4, "an unknown base is not an open one"


def alone(name: str, bases: list[str], cell: dict[str, Any]) -> Any:
    """A card of which nothing but the weights applies."""
    data = card(name, bases, deployment__data__weights=cell).plain()
    return to_card(
        {
            **data,
            "components": {
                **{name: {"status": "not_applicable"} for name in COMPONENTS},
                **data["components"],
            },
        }
    )


def test_the_strictest_licence_of_the_chain_binds() -> None:
    below = card("llama", deployment__data__weights=weights("D3", "llama2"))
    middle = card("chat", ["llama"], deployment__data__weights=weights("D5", "mit"))
    above = card("lora", ["chat"], deployment__data__weights=weights("D5", "apache-2.0"))
    found = effective_weights_license(above, {"llama": below, "chat": middle})
    assert found.license == "llama2" and found.level == 3 and found.chain == ("lora", "chat", "llama")
    assert effective_weights_license(above, {"chat": middle}).unknown == ("llama",)
    circle = card("llama", ["lora"], deployment__data__weights=weights("D3", "llama2"))
    with pytest.raises(CardError, match="lora -> chat -> llama -> lora"):
        effective_weights_license(above, {"llama": circle, "chat": middle})
    codes = {i.code for i in validate(above, level=2, cards={"llama": circle, "chat": middle}).issues}
    assert "E-BASE-CYCLE" in codes


def test_unknown_is_not_closed_and_absent_is_not_closed() -> None:
    one = card(deployment__data__weights=weights("D5"), deployment__code__inference={"level": "C1"})
    found = score(one)
    assert found.overall.value == 0.5 and found.known == 2 and found.applicable == 12
    assert found.overall.low == pytest.approx(1 / 12) and found.overall.high == pytest.approx(11 / 12)
    data = one.plain()
    for name in COMPONENTS:
        data["components"].setdefault(name, {"status": "not_applicable"})
    exact = score(to_card(data)).overall
    assert exact.value == exact.low == exact.high == 0.5 and exact.n == 2


def test_more_open_only_beyond_the_bounds() -> None:
    cards = taxonomy_cards()
    assert score(cards["bloom"]).more_open_than(score(cards["gpt-4"]))
    assert not score(cards["gpt-4"]).more_open_than(score(cards["bloom"]))
    empty = card()
    assert not score(empty).more_open_than(score(cards["gpt-4"])) and not score(
        cards["bloom"]
    ).more_open_than(score(empty))
    placed = compare(cards["bloom"])
    assert placed.nearest[0] == ("bloom", 0.0) and "gpt-4" in placed.surely_above
    assert placed.percentile.low <= placed.percentile.value <= placed.percentile.high


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ({"level": "C5", "access": "public"}, "E-KIND"),
        ({"level": "D3", "access": "none"}, "E-LEVEL-ACCESS"),
        ({"level": "D1", "access": "public"}, "E-LEVEL-ACCESS"),
        ({"level": "D5", "access": "gated"}, "E-LEVEL-ACCESS"),
        ({"level": "D2", "access": "public"}, "E-LEVEL-ACCESS"),
        ({"level": "D5", "license": "llama2"}, "E-LEVEL-LICENSE"),
        ({"level": "D5", "license": "MIT AND ("}, "E-LICENSE"),
        ({"level": "D3", "license": "strange words"}, "W-LIC-UNKNOWN"),
        ({"level": "D3", "license": "other"}, "W-LIC-LINK"),
        ({"level": "D5", "license": "CC-BY-SA-4.0"}, "W-LIC-STRICT"),
        ({"level": "D6"}, "E-CHOICE"),
        ({"level": "D5", "licence": "MIT"}, "E-UNKNOWN-KEY"),
    ],
)
def test_what_a_card_may_not_say(cell: dict[str, Any], code: str) -> None:
    part = {
        WEIGHTS: {"value": cell, "status": "disclosed", "sources": [{"kind": "url", "ref": "https://x.org"}]}
    }
    lint = validate({"card_type": "openness", "subject": {"name": "m"}, "components": part})
    assert {issue.code for issue in lint.issues} == {code}


def test_an_override_needs_its_reason() -> None:
    for reason, expected in (("", {"E-LEVEL-LICENSE"}), ("a separate grant, see note", set())):
        one = card(deployment__data__weights=weights("D5", "llama2", override_reason=reason))
        assert {i.code for i in validate(one, level=2).errors} == expected


def test_an_unknown_component_is_named_with_its_neighbour() -> None:
    lint = validate(
        {"card_type": "openness", "subject": {"name": "m"}, "components": {"training.code.pretrainin": {}}}
    )
    assert lint.issues[0].code == "E-UNKNOWN-KEY" and "training.code.pretraining" in lint.issues[0].hint


def test_the_stage_sheet(tmp_path: Path) -> None:
    sheet = paper_sheet()
    assert len(sheet.rows) == 12 and {row.label for row in sheet.rows} == {
        "paper position, paraphrased, recalled"
    }
    path = tmp_path / "mine.yaml"
    path.write_text("- {stage: near-term, area: society, differential: -1, confidence: 0.9}\n")
    mine = read_sheet(path)
    assert mine.against(sheet) == [{"stage": "near-term", "area": "society", "ours": -1.0, "theirs": 0.0}]
    assert mine.by_stage() == {"near-term": (-1.0, 0.9)}
    path.write_text("- {stage: near-term, area: society, differential: -3, confidence: 0.9}\n")
    with pytest.raises(CardError, match="row 0/differential"):
        read_sheet(path)
