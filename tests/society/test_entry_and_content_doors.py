"""The doors of market entry and content incentives: rows of one shape, theory beside measurement."""

from __future__ import annotations

import json

import pytest

from glasshouse.society._door import open_door


def rows_of(door, scenario, grids, seeds):
    rows = []
    for name, (changes, axis) in grids.items():
        ((field, values),) = axis.items()
        for value in values:
            market = scenario.changed({**changes, field: value})
            for seed in seeds:
                rows += [{**row, "sweep": name} for row in door.point(market.to_json(), seed)]
    return json.loads(json.dumps(rows, allow_nan=False))  # plain JSON, as a journal stores it


@pytest.fixture(scope="module")
def entry():
    door = open_door("entry")
    scenario = door.scenario()
    sizes = {"N_I": [20.0, 40.0, 1e6]}
    grids = {name: (changes, sizes if "N_I" in axis else {"tau_E": axis["tau_E"][:2]})
             for name, (changes, axis) in door.report_grids(scenario).items()}  # fmt: skip
    return door, scenario, rows_of(door, scenario, grids, [0])


@pytest.fixture(scope="module")
def content():
    door = open_door("content")
    scenario = door.scenario(T=8)
    grids = {name: (changes, {"eta": [0.05, 0.2]} if "eta" in axis else axis)
             for name, (changes, axis) in door.report_grids(scenario).items()}  # fmt: skip
    return door, scenario, rows_of(door, scenario, grids, [0])


def test_rows_of_a_door_have_the_same_columns(entry, content):
    for _, _, rows in (entry, content):
        assert len({tuple(sorted(row)) for row in rows}) == 1


def test_the_entry_page_sets_simulation_beside_theory(entry):
    door, scenario, rows = entry
    page = door.page(scenario, rows, [0])
    assert "17,599" in page.lead and "moat" in page.control
    assert {line.kind for line in page.charts[0].lines} == {"theory", "control"}
    simulated = [one for one in page.compared if "loss at N_I" in one.quantity]
    assert len(simulated) == 2 and all(one.theory > 0 for one in simulated)
    assert page.charts[1].points[0].solid == (True, True)
    assert all(certificate.met for certificate in page.certificates)
    assert {mark.name for mark in page.charts[0].marks} == {"moat shrinks", "flat"}


def test_the_control_of_entry_is_a_moat(entry):
    _, _, rows = entry
    for row in rows:
        if row["sweep"] == "control":
            assert row["value"] == pytest.approx(row["N_I"], rel=1e-6)


def test_the_content_page_compares_rules_and_has_a_control(content):
    door, scenario, rows = content
    page = door.page(scenario, rows, [0])
    assert "punish-hedge" in page.lead and "0.000" in page.control
    assert [line.name for line in page.charts[0].lines] == ["symmetric first-order condition", "upper bound"]
    assert all(one.agree for one in page.compared)
    quality, bound = page.charts[0].points[0].value, page.charts[0].lines[1].y
    assert all(q <= b for q, b in zip(quality, bound, strict=True))


def test_scenarios_survive_json_and_points_repeat(entry, content):
    for door, scenario, _ in (entry, content):
        assert door.scenario.parse(scenario.to_json()) == scenario
    door, scenario, rows = entry
    again = door.point(scenario.changed({"N_I": 20.0}).to_json(), 0)[0]
    assert again == {k: v for k, v in rows[0].items() if k != "sweep"}


def test_every_grid_point_is_a_valid_scenario():
    for name in ("entry", "content"):
        door = open_door(name)
        for scenario in (
            door.scenario(),
            *((door.scenario(users=((1, 0), (0, 1))),) if name == "content" else ()),
        ):
            for changes, axis in door.report_grids(scenario).values():
                for field, values in axis.items():
                    for value in values:
                        scenario.changed({**changes, field: value})
