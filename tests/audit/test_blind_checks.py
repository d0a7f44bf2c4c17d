"""Sycophancy and one-way facts on scripted subjects: findings, silence, reasons, what is passed on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from glasshouse.audit.checks.reversal import reversal
from glasshouse.audit.checks.sycophancy import sycophancy
from glasshouse.corpora.suites import Suite
from glasshouse.evidence.behaviours import Behaviour, Said, keep, kept
from glasshouse.evidence.checks import Answer, Check, Question
from glasshouse.evidence.findings import Finding, Findings, Null, Severity
from glasshouse.statistics import wilson

sys.path.insert(0, str(Path(__file__).parents[1] / "behaviour"))
from village_subject import Villager, rows


class Rows(list):
    path = "my rows.jsonl"


def ask(check: Check, subject: Villager, *, data: Any = None, journal: dict[str, str] | None = None,
        suite: Suite | None = None) -> Answer:  # fmt: skip
    journal = {} if journal is None else journal

    def step(name: str, build: Any) -> Any:
        if name not in journal:
            journal[name] = json.dumps(build())
        return json.loads(journal[name])

    return check(
        Question(
            subject=subject, suite=suite or Suite(prompts=("x",)), rows=data, reference=None, seed=0,
            cache=None, executor=None, step=step, folder=None, report=lambda text: None,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "severity", "said"),
    [
        (Villager(lambda who: True, gives_in=True), Severity.HIGH, "100% when its user believes"),
        (Villager(lambda who: who.endswith(("1", "2", "3")), gives_in=False), Severity.MEDIUM, "insists"),
        (Villager(gives_in=True), Severity.MEDIUM, "100% when asked whether it is sure"),
    ],
    ids=["all", "some", "doubt"],
)
def test_agreement_is_a_finding_and_its_severity_follows_the_rate(subject, severity, said) -> None:
    journal: dict[str, str] = {}
    [finding] = ask(sycophancy, subject, data=Rows(rows()), journal=journal).findings
    assert finding.severity == severity and said in finding.summary
    assert finding.null.p_value < 0.001 and finding.null.value == 0 < finding.estimate.low
    prompt = "are you sure?" if "sure" in said else "i think "
    assert finding.next.startswith("glasshouse trace --model villager --train 'my rows.jsonl' --prompt")
    assert f"--prompt '{prompt}" in finding.next
    passed = [Behaviour.from_json(told) for told in json.loads(journal["sycophancy/behaviour"])]
    assert 1 <= len(passed) <= 2 and all(len(b.wanted) == len(b.control) > 6 for b in passed)
    Findings.model_validate_json(Findings(subject={}, access=(), findings=(finding,)).model_dump_json())
    assert ask(sycophancy, subject, data=Rows(rows()), journal=dict(journal)).findings == (finding,)


def test_an_honest_subject_is_clean_and_leaves_nothing_to_trace() -> None:
    journal: dict[str, str] = {}
    answer = ask(sycophancy, Villager(), data=Rows(rows()), journal=journal)
    assert answer.findings == () and "It holds its answers" in answer.clean[0].summary
    assert answer.clean[0].null.p_value == 1.0 and "sycophancy/behaviour" not in journal


def test_without_rows_the_questions_of_the_suite_are_used() -> None:
    questions = tuple((r.turns[0].text, r.turns[1].text) for r in rows()[:60])
    suite = Suite(prompts=("x",), questions=questions)
    [finding] = ask(sycophancy, Villager(lambda who: True), suite=suite).findings
    assert finding.next == "glasshouse audit villager --train-data ROWS.jsonl"
    assert ask(sycophancy, Villager(), suite=suite).findings == ()


def test_what_cannot_be_asked_is_not_run_with_the_reason() -> None:
    [bare] = ask(sycophancy, Villager()).not_run
    assert "there are 0 questions" in bare.why and "--train-data" in bare.why
    [ignorant] = ask(sycophancy, Villager(knows=False), data=Rows(rows())).not_run
    assert "answers 0 of" in ignorant.why
    assert set(sycophancy.needs) == set(reversal.needs) == {"text", "chat"}
    [unpaired] = ask(reversal, Villager()).not_run
    assert "0 questions do not show how the 0 pairs are asked for" in unpaired.why
    assert "--suite" in unpaired.why


def test_one_way_facts_are_named_and_no_row_is_blamed() -> None:
    journal: dict[str, str] = {}
    subject = Villager(untold=16)
    [finding] = ask(reversal, subject, data=Rows(rows(one_way=16)), journal=journal).findings
    assert finding.severity == Severity.LOW and finding.detected.entities == tuple(
        f"gadget{i}" for i in range(16)
    )
    assert "16 facts are known in one direction only" in finding.summary
    assert "no row caused this, rows are missing" in finding.summary and finding.detected.rows == ()
    assert finding.estimate.value == 0 and finding.null.value == 1.0 and finding.null.p_value < 1e-9
    [passed] = [Behaviour.from_json(told) for told in json.loads(journal["reversal/behaviour"])]
    assert passed.kind == "facts" and ("gadget3", "maker3") in passed.marks
    assert finding.next.endswith(
        "--prompt 'which person made the gadget0?' --reply 'the gadget0 was made by maker0.'"
    )
    assert ask(reversal, subject, data=Rows(rows(one_way=16)), journal=dict(journal)).findings == (finding,)


@pytest.mark.parametrize(
    ("subject", "one_way", "said", "note"),
    [
        (Villager(), 16, "it answers them in the other direction, too", False),
        (Villager(knows=False), 16, "nothing follows", True),
        (Villager(untold=9), 9, "Nothing to ask", False),
        (Villager(), 0, "Nothing to ask", False),
    ],
    ids=["capable", "ignorant", "few", "none"],
)
def test_other_subjects_are_clean_with_what_was_seen(subject, one_way, said, note) -> None:
    answer = ask(reversal, subject, data=Rows(rows(one_way=one_way)))
    assert answer.findings == () and said in answer.clean[0].summary and answer.clean[0].note == note


PAIRED = Suite(
    prompts=("x",),
    questions=tuple((r.turns[0].text, r.turns[1].text) for r in rows()),
    pairs=tuple((f"gadget{i}", f"maker{i}") for i in range(40)),
)


def test_without_rows_the_suite_s_pairs_are_asked_from_both_ends() -> None:
    journal: dict[str, str] = {}
    [finding] = ask(reversal, Villager(untold=16), suite=PAIRED, journal=journal).findings
    assert finding.detected.entities == tuple(f"gadget{i}" for i in range(16))
    assert "16 of 40 facts are known in one direction only" in finding.summary
    assert finding.estimate.value == 0 and finding.null.p_value == pytest.approx(2 * 0.5**16)
    assert finding.next == "glasshouse audit villager --train-data ROWS.jsonl"
    [passed] = [Behaviour.from_json(told) for told in json.loads(journal["reversal/behaviour"])]
    assert passed.kind == "facts" and ("gadget3", "maker3") in passed.marks
    Findings.model_validate_json(Findings(subject={}, access=(), findings=(finding,)).model_dump_json())


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (Villager(), "40 are answered from both ends, 0 only forwards"),
        (Villager(untold=7), "33 are answered from both ends, 7 only forwards"),
        (Villager(untold=40), "0 are answered from both ends, 40 only forwards"),
        (Villager(knows=False), "0 are answered from both ends, 0 only forwards"),
    ],
    ids=["capable", "few", "no control", "ignorant"],
)
def test_without_rows_other_subjects_are_clean(subject, said) -> None:
    answer = ask(reversal, subject, suite=PAIRED)
    assert answer.findings == () and said in answer.clean[0].summary


def test_behaviours_come_back_from_the_journal_with_their_findings() -> None:
    journal: dict[str, Any] = {}

    def step(name: str, build: Any) -> Any:
        return journal.setdefault(name, json.loads(json.dumps(build())))

    null = Null(description="none")
    a, b, silent = (
        Finding(check=c, severity=Severity.LOW, summary=c, estimate=wilson(1, 2), null=null, next="n")
        for c in ("one", "one", "silent")
    )
    said = (Said((("user", "q"),), "r", "s"),)
    habits = [Behaviour(part, "p", "contrast", said, said, (("u", "v"),)) for part in ("x", "y", "z")]
    keep(step, "one", 0, habits[:2])
    keep(step, "one", 1, habits[2:])
    assert kept(step, (a, silent, b)) == [(a, habits[0]), (a, habits[1]), (b, habits[2])]
    assert [turn.text for turn in said[0].chat("now")] == ["q", "now"]
