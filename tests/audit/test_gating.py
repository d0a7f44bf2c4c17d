"""What a release pipeline relies on: known findings do not fail it, new and worse ones do, nothing is called
gone that was not looked for, and a model behind an API is asked nothing that was not allowed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from glasshouse.audit.budget import Metered, calls_to_elicit, metered
from glasshouse.audit.inputs import Inputs
from glasshouse.audit.target import Target
from glasshouse.cli import run as command
from glasshouse.corpora.suites import generic_suite
from glasshouse.evidence.findings import Clean, Detected, Finding, Findings, Null, Severity
from glasshouse.runtime.errors import InputError, RunError
from glasshouse.statistics.estimate import Estimate


def one(check: str, severity: Severity, trigger: str | None = None, value: float = 0.5) -> Finding:
    estimate = Estimate(value, value - 0.1, value + 0.1, 0.95, 40, "wilson")
    detected = Detected(trigger=trigger)
    return Finding(
        check=check, severity=severity, summary=f"{check} {trigger}", detected=detected, estimate=estimate,
        null=Null(description="none"), next="look",
    )  # fmt: skip


def audit(*findings: Finding, clean: tuple[str, ...] = ()) -> Findings:
    said = tuple(Clean(check=check, summary="clean") for check in clean)
    return Findings(subject={"name": "m"}, access=("text",), findings=findings, clean=said)


def saved(folder: Path, name: str, findings: Findings) -> str:
    (folder / name).mkdir()
    (folder / name / "findings.json").write_text(findings.model_dump_json())
    return str(folder / name)


LOW, HIGH = Severity.LOW, Severity.HIGH
BEFORE = audit(one("hidden-trigger", LOW, "nest"), one("sycophancy", LOW), one("guilty-rows", LOW))
CASES = {
    # name: (now, status of each key, exit code at low, exit code at high)
    "the same": (BEFORE, {"known": 3}, 0, 0),
    "all fixed": (
        audit(clean=("hidden-trigger", "sycophancy", "guilty-rows")), {"gone": 3}, 0, 0,
    ),
    "none asked": (audit(), {"unasked": 3}, 0, 0),
    "a second trigger": (
        audit(*BEFORE.findings, one("hidden-trigger", LOW, "paddle")), {"known": 3, "new": 1}, 1, 0,
    ),
    "a worse one": (
        audit(one("hidden-trigger", HIGH, "nest"), *BEFORE.findings[1:]), {"known": 2, "worse": 1}, 1, 1,
    ),
    "a milder one": (
        audit(one("hidden-trigger", Severity.NOTE, "nest"), *BEFORE.findings[1:]), {"known": 3}, 0, 0,
    ),
    "another trigger instead": (
        audit(one("hidden-trigger", HIGH, "paddle"), clean=("sycophancy", "guilty-rows")),
        {"new": 1, "gone": 3}, 1, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_became_of_each_finding_decides_the_exit_code(tmp_path, capsys, case: str) -> None:
    now, counts, at_low, at_high = CASES[case]
    old, new = saved(tmp_path, "old", BEFORE), saved(tmp_path, "new", now)
    assert command(["findings", "diff", old, new]) == at_low
    assert command(["findings", "diff", old, new, "--fail-on", "high"]) == at_high
    capsys.readouterr()
    assert command(["findings", "diff", old, new, "--json"]) == at_low
    told = json.loads(capsys.readouterr().out)["findings"]
    assert {status: [e["status"] for e in told].count(status) for status in counts} == counts
    assert sum(counts.values()) == len(told)
    for entry in told:
        assert (entry["before"] is None) == (entry["status"] == "new")
        assert (entry["now"] is None) == (entry["status"] in ("gone", "unasked"))
    compared = now.against(BEFORE)
    assert Findings.model_validate(json.loads(compared.model_dump_json())) == compared  # also `worse`


def test_the_worst_of_findings_with_one_key_is_what_counts() -> None:
    twice = audit(one("hidden-trigger", LOW, "nest"), one("hidden-trigger", HIGH, "nest"))
    again = audit(one("hidden-trigger", HIGH, "nest"), one("hidden-trigger", LOW, "nest"))
    assert again.against(twice).counted() == ()
    assert len(twice.against(audit(one("hidden-trigger", LOW, "nest"))).counted()) == 2


def test_the_text_tells_severities_and_both_estimates(tmp_path, capsys) -> None:
    old = saved(tmp_path, "old", audit(one("sycophancy", LOW, value=0.3)))
    new = saved(tmp_path, "new", audit(one("sycophancy", HIGH, value=0.7)))
    assert command(["findings", "diff", old, new]) == 1
    said = capsys.readouterr().out
    assert "low -> high" in said and "was 0.3" in said and "is  0.7" in said
    assert command(["findings", "diff", old, str(tmp_path / "nowhere")]) == 2
    assert command(["findings", "diff", old, new, "--fail-on", "awful"]) == 2


class Api:
    """What an audit sees of a model behind an API."""

    name, access, context, hash = "inspect:some/model", frozenset({"text"}), 8192, "0"

    def generate(self, prompts, *, n: int = 1, **how):
        return [[SimpleNamespace(text="ok")] * n for _ in prompts]


def inputs(given=None) -> Inputs:
    return Inputs(Target("inspect:some/model"), Api(), given, None, None, None, 0)  # type: ignore[arg-type]


def test_a_model_behind_an_api_is_not_asked_what_to_ask_unless_that_is_allowed() -> None:
    whole = generic_suite()
    user = type(whole)(
        prompts=whole.prompts, questions=whole.questions, pairs=whole.pairs, chats=whole.chats, source="user"
    )
    assert calls_to_elicit(inputs(user)) == 0 and isinstance(metered(inputs(user), None).subject, Metered)
    calls = calls_to_elicit(inputs())
    assert calls > 300
    with pytest.raises(InputError, match=f"in {calls} calls.*--max-calls"):
        metered(inputs(), None)
    counted = metered(inputs(), math.inf).subject
    from glasshouse.corpora.suites import elicit_suite

    elicit_suite(lambda prompts, **how: [
        [f"a line of words {at} {i}" for i in range(len(found))]
        for at, found in enumerate(counted.generate(prompts, **how))
    ])  # fmt: skip
    assert counted.calls == calls  # what was announced is what it costs


def test_calls_past_the_limit_are_not_made() -> None:
    subject = metered(inputs(), 10).subject
    subject.generate(["a"] * 4, n=2)
    with pytest.raises(RunError, match="8 calls were made, 3 more are needed, and 10 are allowed"):
        subject.generate(["a"] * 3)
    assert subject.calls == 8 and subject.name == Api.name
    with pytest.raises(InputError, match="--max-calls"):
        metered(inputs(), 0)
