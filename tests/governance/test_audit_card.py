"""A card beside an audit's findings: shown, never counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rlhf_cards import put, release, spoiled

from glasshouse.audit.card import SLUG, attach_card, with_card
from glasshouse.evidence.findings import Clean, Findings
from glasshouse.governance import CardError, to_card, write_card


def test_a_card_is_a_note_in_the_report(tmp_path: Path) -> None:
    bad = spoiled(release(tmp_path), put("/policy/prompt_overlap/value", 3))
    path = write_card(tmp_path / "card.json", to_card(bad))
    findings = Findings(
        subject={"name": "m"}, access=("text",), clean=(Clean(check="sycophancy", summary="None."),)
    )
    found = attach_card(tmp_path / "out", findings, path)
    note = found.clean[-1]
    assert (
        note.check == SLUG and note.note and "59 of 59 fields" in note.summary and "1 errors" in note.summary
    )
    assert found.worst() is None and found.counted() == ()
    stored = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert Findings.model_validate(stored).clean[-1].check == SLUG
    page = (tmp_path / "out" / "report.html").read_text()
    assert "E-CONTAMINATION" in page and "developer&#39;s word" in page
    assert len(with_card(found, path).clean) == 2, "attached again it replaces itself"


def test_a_file_that_is_no_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(CardError, match="says no type"):
        with_card(Findings(subject={}, access=()), tmp_path / "x.json")


def test_the_command_refuses_it_before_the_model_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glasshouse import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    assert cli.run(["audit", "--card", "x.json"]) == 2
    assert "says no type" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
