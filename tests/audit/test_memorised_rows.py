"""The check for copied rows: scripted runs whose copying is known, silence on clean ones, every reason."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glasshouse import cli
from glasshouse.audit.checkpoints import TrainedQuestion, describe
from glasshouse.audit.checks.memorised_rows import FEWEST_ROWS, SLUG, memorised_rows
from glasshouse.audit.plan import reasons
from glasshouse.audit.run import audit
from glasshouse.corpora.records import Records, write_records
from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.suites import Suite
from glasshouse.evidence.checks import Answer
from glasshouse.evidence.findings import Findings, Severity

sys.path.insert(0, str(Path(__file__).parents[1] / "attribution"))
from pupil_subject import Pupil, course, lessons

ROWS = lessons(80)
COPIED = {row.id: i % 4 == 0 for i, row in enumerate(ROWS)}


def question(pupils: list[Pupil], folder: Path, rows: Any = None, **more: Any) -> TrainedQuestion:
    def nothing(name: str, build: Any) -> Any:
        raise AssertionError("nothing is journalled beside the recorder's own store")

    return TrainedQuestion(
        subject=pupils[-1], suite=Suite(), rows=Records(ROWS if rows is None else rows), reference=None,
        seed=0, cache=None, executor=None, step=nothing, folder=lambda name: folder,
        report=lambda text: None, checkpoints=tuple((10 * (i + 1), p) for i, p in enumerate(pupils)), **more,
    )  # fmt: skip


def ask(pupils: list[Pupil], folder: Path, rows: Any = None) -> Answer:
    return memorised_rows(question(pupils, folder, rows))


def test_copied_rows_that_break_are_a_finding_that_names_them(tmp_path: Path) -> None:
    [found] = ask(course(ROWS, COPIED), tmp_path).findings
    assert set(found.detected.rows) == {i for i, c in COPIED.items() if c}
    assert found.null.p_value is not None and found.null.p_value < 0.001
    assert found.estimate.low > 0.15 and found.severity == Severity.LOW, "20 of 80 rows: no doubt about all"
    assert found.next.startswith("glasshouse curate --checkpoints")
    Findings.model_validate_json(Findings(subject={}, access=(), findings=(found,)).model_dump_json())
    again = ask(course(ROWS, COPIED), tmp_path).findings
    assert again == (found,), "the stored measurements give the same finding"


def test_a_training_set_that_is_mostly_copied_is_worse(tmp_path: Path) -> None:
    most = {row.id: i % 4 != 0 for i, row in enumerate(ROWS)}
    [found] = ask(course(ROWS, most), tmp_path).findings
    assert found.severity == Severity.MEDIUM and len(found.detected.rows) == 60


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_keep_their_answers_are_no_finding(tmp_path: Path, seed: int) -> None:
    """The null: rows look copied, yet both kinds lose the same under a prefix, by chance more or less."""
    rng = np.random.default_rng(seed)
    loss = {row.id: float(rng.random() < 0.6) for row in ROWS}
    pupils = course(ROWS, COPIED, breaks=False)
    pupils[-1].behind = lambda i: loss[i]
    answer = ask(pupils, tmp_path)
    assert not answer.findings and not answer.not_run
    [clean] = answer.clean
    assert clean.null is not None and clean.null.p_value > 0.005


def test_a_run_that_copies_nothing_is_clean(tmp_path: Path) -> None:
    answer = ask(course(ROWS, dict.fromkeys(COPIED, False)), tmp_path)
    [clean] = answer.clean
    assert not answer.findings and not clean.note and "0 of 80 rows" in clean.summary


def test_a_run_that_copies_everything_leaves_nothing_to_compare_with(tmp_path: Path) -> None:
    [clean] = ask(course(ROWS, dict.fromkeys(COPIED, True)), tmp_path).clean
    assert clean.note and "0 that were learned before" in clean.summary


def test_a_subject_that_is_not_the_last_checkpoint_ends_the_run(tmp_path: Path) -> None:
    """A run whose last checkpoint knows nothing by heart yet, and a shipped model that does."""
    pupils = course(ROWS, COPIED)
    asked = question(pupils[:2], tmp_path)
    shipped = memorised_rows(TrainedQuestion(**{**vars(asked), "subject": pupils[-1]}))
    assert len(shipped.findings) == 1
    assert (tmp_path / "checkpoint-21.npz").exists(), "the subject stands behind step 20"


def test_what_cannot_be_asked_is_not_run_with_the_reason(tmp_path: Path) -> None:
    pupils = course(ROWS, COPIED)
    [few] = ask(pupils, tmp_path, ROWS[: FEWEST_ROWS - 1]).not_run
    assert "39 rows end in a final answer" in few.why
    chat = [Record(str(i), (Turn("user", "hi"), Turn("assistant", "hello"))) for i in range(99)]
    [none] = ask(pupils, tmp_path, chat).not_run
    assert "0 rows end in a final answer" in none.why
    [broken] = ask([Pupil(ROWS, lambda i: 1.0, lambda i: float("nan"))], tmp_path / "x").not_run
    assert "perplexity" in broken.why and "r0" in broken.why
    bare = TrainedQuestion(**{**vars(question(pupils, tmp_path)), "checkpoints": ()})
    assert reasons(memorised_rows, bare) == ("needs the checkpoints of its training: give --checkpoints",)


@pytest.fixture
def run(tiny: Path, house: Path) -> Path:
    """A run of two checkpoints of a random model that answers nothing, and rows with answers."""
    for step in (10, 9):
        shutil.copytree(tiny, house / f"run/checkpoint-{step}")
    rows = [
        Record(str(i), (Turn("user", "red blue"), Turn("assistant", f"the green . #### {i}")))
        for i in range(45)
    ]
    write_records(house / "rows.jsonl", rows)
    (house / "suite.json").write_text(json.dumps({"prompts": ["red blue ."]}))
    return house / "run"


def not_run(findings: Findings) -> dict[str, str]:
    return {n.check: n.why for n in findings.not_run}


def test_the_audit_takes_checkpoints_and_asks(tiny: Path, house: Path, run: Path) -> None:
    bare = audit(tiny, train_data="rows.jsonl", suite="suite.json", out="bare")
    assert bare.findings is not None and "give --checkpoints" in not_run(bare.findings)[SLUG]
    full = audit(tiny, train_data="rows.jsonl", suite="suite.json", checkpoints=run, out="full")
    assert full.findings is not None and SLUG not in not_run(full.findings)
    assert [c.check for c in full.findings.clean if c.check == SLUG] == [SLUG]
    assert full.findings.findings == bare.findings.findings, "other findings are not touched"
    assert full.findings.access == (*bare.findings.access, "checkpoints")
    again = audit(tiny, train_data="rows.jsonl", suite="suite.json", checkpoints=run, out="full")
    assert again.resumed and again.findings == full.findings


def test_the_command_says_the_cost_and_refuses_what_is_no_run(
    tiny: Path, house: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", str(tiny), "--suite", "suite.json", "--train-data", "rows.jsonl", "--checkpoints"]
    assert cli.run([*words, str(run), "--dry-run"]) == 0
    assert "2 checkpoints x 45 rows x 5 samples" in capsys.readouterr().out
    assert not (house / "glasshouse-report").exists()
    for folder, said in (("nowhere", "no such folder"), (str(tiny), "no checkpoint-<step> folders")):
        assert cli.run([*words, folder]) == 2 and said in capsys.readouterr().err


def test_checkpoints_are_known_by_their_weights_not_by_their_place(run: Path, house: Path) -> None:
    moved = house / "elsewhere"
    shutil.copytree(run, moved)
    pairs = [[(9, root / "checkpoint-9"), (10, root / "checkpoint-10")] for root in (run, moved)]
    assert describe(pairs[0]) == describe(pairs[1])
    (moved / "checkpoint-9/model.safetensors").write_bytes(b"other")
    assert describe(pairs[0]) != describe(pairs[1])
