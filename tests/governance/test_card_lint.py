"""Sources held against the disk and against runs; what changed between cards; one card of several; SQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rlhf_cards import fact, put, release, share, spoiled

from glasshouse.governance import (
    CODES,
    CardError,
    diff,
    file_source,
    merge,
    query_cards,
    regressions,
    run_source,
    to_card,
    validate,
)
from glasshouse.governance._lint import Issue
from glasshouse.governance._query import field_rows, run_sql
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.runs import Run


def codes(card: Any, root: Path, **options: Any) -> set[str]:
    return {issue.code for issue in validate(card, base=root, **options).issues}


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    card = release(tmp_path)
    assert codes(card, tmp_path) == set()
    files.write_text(tmp_path / "report.txt", "accuracy 0.90\n")
    assert codes(card, tmp_path) == {"E-SRC-HASH"}
    (tmp_path / "report.txt").unlink()
    assert codes(card, tmp_path) == {"E-SRC-MISSING"}


def test_a_quote_must_stay_in_its_file(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "README.md", "license: mit\n")
    source = file_source(path, base=tmp_path, quote="license: mit", hashed=False)
    card = {
        "card_type": "rlhf",
        "subject": {"name": "x"},
        "pretraining": {"data": fact("web", source.model_dump())},
    }
    assert codes(card, tmp_path) == set()
    files.write_text(path, "license: gpl\n")
    assert codes(card, tmp_path) == {"E-SRC-HASH"}


def test_a_number_is_held_against_its_run(tmp_path: Path) -> None:
    card = release(tmp_path)
    claimed = spoiled(card, put("/reward_evaluation/accuracy/value", share(0.72, 0.7, 0.74)))
    lint = validate(claimed, base=tmp_path)
    assert [(i.code, i.pointer) for i in lint.issues] == [
        ("E-RUN-METRIC", "/reward_evaluation/accuracy/value")
    ]
    assert "0.72 is stated, the run measured 0.7" in lint.issues[0].message
    ref = card["reward_evaluation"]["accuracy"]["sources"][0]["ref"]
    lost = spoiled(
        card, put("/reward_evaluation/accuracy/sources/0/ref", ref.replace("#accuracy", "#recall"))
    )
    assert codes(lost, tmp_path) == {"E-RUN-METRIC"}


def test_a_run_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    card = release(tmp_path)
    run = next((tmp_path / "runs").iterdir())
    files.write_text(run / "extra.txt", "x")
    assert codes(card, tmp_path) == {"E-SRC-HASH"}
    (run / "run.json").unlink()
    assert codes(card, tmp_path) == {"E-RUN"}
    assert not (run / "journal.sqlite").exists(), "looking does not start a run"


def test_an_unfinished_run_is_no_source(tmp_path: Path) -> None:
    with Run.open(tmp_path, "half", {}) as run:
        run.step("a", lambda: 1)
    source = run_source(run.path, base=tmp_path, metric="a").model_dump(exclude_none=True)
    card = {"card_type": "rlhf", "subject": {"name": "x"}, "evaluators": {"n_raters": fact(1, source)}}
    assert codes(card, tmp_path) == {"E-RUN"}


@pytest.mark.parametrize("ref", ["/etc/passwd", "../x", "a/../../x", "C:/x", "link", "a\x00b", "..\\x"])
def test_a_source_outside_is_refused(ref: str, tmp_path: Path) -> None:
    base = tmp_path / "card"
    base.mkdir()
    (tmp_path / "x").write_text("secret")
    (base / "link").symlink_to(tmp_path / "x")
    card = {
        "card_type": "rlhf",
        "subject": {"name": "x"},
        "pretraining": {"data": fact("web", {"kind": "file", "ref": ref})},
    }
    assert codes(card, base) == {"E-SRC-PATH"}


def test_a_source_without_hash_or_quote_warns(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("words")
    card = {
        "card_type": "rlhf",
        "subject": {"name": "x"},
        "pretraining": {"data": fact("web", {"kind": "file", "ref": "x"})},
    }
    assert codes(card, tmp_path) == {"W-SRC-UNHASHED"}


def test_a_disclosure_without_source_is_never_silent() -> None:
    card = {
        "card_type": "rlhf",
        "subject": {"name": "x"},
        "pretraining": {"data": {"value": "web", "status": "disclosed"}},
    }
    assert [i.code for i in validate(card).issues] == ["W-EVID"]


def test_the_lint_is_a_file(tmp_path: Path) -> None:
    lint = validate(spoiled(release(tmp_path), put("/issued", "2999-01-01")), base=tmp_path, policy="audit")
    data = json.loads(lint.save(tmp_path).read_text())
    assert data["errors"][0]["code"] == "E-DATE" and data["errors"][0]["pointer"] == "/issued"
    assert data["policy"] == "audit" and data["coverage"]["A1 Pretraining"] == {
        "disclosed": 4,
        "applicable": 4,
    }
    assert (tmp_path / "card-lint.json").is_file()


def test_every_code_is_documented() -> None:
    with pytest.raises(KeyError):
        Issue("E-MADE-UP", "", "")
    page = (Path(__file__).parents[2] / "docs" / "governance" / "cards.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in page] == []


def test_a_withdrawn_disclosure_is_a_regression(tmp_path: Path) -> None:
    before = to_card(release(tmp_path))
    after = to_card(
        spoiled(release(tmp_path), put("/audits/findings", {"status": "undisclosed", "note": "no"}))
    )
    changes = diff(before, after)
    assert [(c.pointer, c.kind) for c in changes] == [("/audits/findings", "regressed")]
    assert [i.code for i in regressions(changes)] == ["W-REGRESS"]
    assert diff(before, before) == [] and [c.kind for c in diff(after, before)] == ["changed"]


def test_merging_takes_what_is_known_best(tmp_path: Path) -> None:
    whole = to_card(release(tmp_path))
    empty = to_card({"card_type": "rlhf", "subject": {"name": "example-chat"}})
    assert dict(merge([empty, whole]).fields()) == dict(whole.fields())
    other = to_card(spoiled(release(tmp_path), put("/evaluators/n_raters/value", 50)))
    joined = merge([whole, other])
    assert joined.evaluators.n_raters.verified == "disputed" and "50" in joined.evaluators.n_raters.note
    checked = spoiled(release(tmp_path), put("/evaluators/n_raters/value", 50))
    checked["evaluators"]["n_raters"]["verified"] = "verified"
    assert merge([whole, to_card(checked)]).evaluators.n_raters.value == 50
    with pytest.raises(CardError, match="different types or subjects"):
        merge([whole, to_card({"card_type": "rlhf", "subject": {"name": "y"}})])


def test_fields_can_be_asked(tmp_path: Path) -> None:
    card = to_card(release(tmp_path))
    rows = query_cards([card], field="/policy/*", status="disclosed")
    assert {row["field"] for row in rows} == {p for p, _ in card.fields() if p.startswith("/policy/")}
    found = run_sql(
        "select count(*) n from fields where status = 'disclosed'", {"fields": field_rows([card])}
    )
    assert found == [{"n": 59}]


@pytest.mark.parametrize(
    "sql",
    [
        "drop table fields",
        "select 1; select 2",
        "copy fields to '/tmp/x'",
        "select * from read_text('/etc/passwd')",
        "attach '/tmp/x.db'",
        "install httpfs",
        "set enable_external_access=true",
        "select * from '/etc/passwd'",
        "no",
    ],
)
def test_sql_can_only_read_the_tables(sql: str) -> None:
    with pytest.raises(InputError):
        run_sql(sql, {"fields": [{"a": 1}]})
