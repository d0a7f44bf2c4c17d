"""The check on a model trained here: planted wrong labels are named, true ones accuse no one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "attribution"))
from labelled_rows import labelled, save_sorter

from glasshouse.audit.checks import mislabelled_rows as module
from glasshouse.audit.checks.mislabelled_rows import SLUG, mislabelled_rows
from glasshouse.corpora.records import Records
from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.suites import Suite
from glasshouse.evidence.checks import Question
from glasshouse.runtime.cache import Cache
from glasshouse.subjects import as_subject

ROWS = 480


def question(subject: Any, rows: Records, step: Callable[..., Any] | None = None) -> Question:
    def no_folder(name: str) -> Path:
        raise AssertionError("not asked for")

    return Question(
        subject=subject, suite=Suite(prompts=(), source="test"), rows=rows, reference=None, seed=0,
        cache=Cache(), executor=None,  # type: ignore[arg-type]
        step=step or (lambda name, build: build()), folder=no_folder, report=lambda text: None,
    )  # fmt: skip


def grown(folder: Path, wrong: float, *, chat: bool) -> tuple[Any, Records, Any]:
    rows, bad = labelled(ROWS, wrong=wrong, seed=1)
    path = save_sorter(folder / "m", rows, epochs=6, chat=chat)
    return as_subject(path, self_test=False, device="cpu"), rows, bad


@pytest.fixture(scope="module", params=["base", "chat"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return grown(tmp_path_factory.mktemp("planted"), 0.1, chat=request.param == "chat")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return grown(tmp_path_factory.mktemp("honest"), 0.0, chat=False)


def test_planted_wrong_labels_are_named(planted: Any) -> None:
    subject, rows, bad = planted
    answer = mislabelled_rows(question(subject, rows))
    [finding] = answer.findings
    guilty = {record.id for record, is_bad in zip(rows, bad, strict=True) if is_bad}
    named = set(finding.detected.rows)
    assert len(named & guilty) >= 0.9 * len(named) and len(named & guilty) >= 0.7 * len(guilty)
    assert finding.null.p_value is not None and finding.null.p_value < 0.01
    assert finding.estimate.value > finding.null.value == pytest.approx(finding.null.value)
    assert finding.detected.entities == ("animal", "plant", "tool")
    [shown] = [e for e in finding.evidence if e.kind == "rows"]
    assert "the model says" in shown.rows[0].note and "glasshouse mislabeled --model" in finding.next


def test_true_labels_give_no_finding(honest: Any) -> None:
    subject, rows, _ = honest
    answer = mislabelled_rows(question(subject, rows))
    assert not answer.findings and not answer.not_run
    [clean] = answer.clean
    assert clean.null is not None and clean.null.p_value > 0.05
    assert "by heart" in clean.summary, "a model that agrees everywhere may have memorised: it is said"


def test_a_model_that_has_not_learnt_the_labels_says_nothing(tmp_path: Path) -> None:
    rows, _ = labelled(ROWS, wrong=0.1, seed=1)
    subject = as_subject(save_sorter(tmp_path / "m", rows, epochs=0), self_test=False, device="cpu")
    answer = mislabelled_rows(question(subject, rows))
    assert not answer.findings and not answer.clean
    assert "use a model that has learnt the labels" in answer.not_run[0].why


def test_free_replies_are_not_asked_about(honest: Any) -> None:
    rows = Records(
        [Record(str(i), (Turn("user", "word1 kind :"), Turn("assistant", f"word{i}"))) for i in range(12)]
    )
    answer = mislabelled_rows(question(honest[0], rows))
    assert not answer.findings and not answer.clean
    assert "no closed set of answers" in answer.not_run[0].why
    assert mislabelled_rows.cost(question(honest[0], rows)).startswith("nothing")


def test_stored_steps_are_not_asked_again(planted: Any) -> None:
    """What a killed audit had scored is taken from the journal, and the answer is the same."""
    subject, rows, _ = planted
    kept: dict[str, Any] = {}

    def first(name: str, build: Callable[[], Any]) -> Any:
        kept[name] = build()
        return kept[name]

    one = mislabelled_rows(question(subject, rows, first))
    other = mislabelled_rows(question(subject, rows, lambda name, build: kept[name]))
    assert one == other and list(kept) == [f"{SLUG}/logprobs-0"]


def test_of_many_rows_some_are_drawn(honest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, rows, _ = honest
    monkeypatch.setattr(module, "MOST_ROWS", 200)
    answer = mislabelled_rows(question(subject, rows))
    assert "of 200 rows" in answer.clean[0].summary
    assert "200 rows with each of 3 answers" in mislabelled_rows.cost(question(subject, rows))
