"""`glasshouse curate`: a real tiny run on disk, a given trajectory, resumption, and every refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glasshouse import cli
from glasshouse.attribution.pre_memorization import Trajectory, dataset_accuracy
from glasshouse.attribution.pre_memorization.curating import CurateOptions, curate, prepare
from glasshouse.corpora.records import read_records, write_records
from glasshouse.corpora.rows import Record, Turn
from glasshouse.organisms.chain_arithmetic import new_model, problems, records, tokenizer
from glasshouse.runtime.errors import InputError

N = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of an untrained model (each of other weights) and thirty rows."""
    folder = tmp_path_factory.mktemp("curate")
    for step in (2, 10):
        new_model(step, width=16).save_pretrained(folder / f"run/checkpoint-{step}")
        tokenizer().save_pretrained(folder / f"run/checkpoint-{step}")
    rows = [
        Record(row.id, row.turns, fields={"topic": "odd" if i % 2 else "even"})
        for i, row in enumerate(records(problems(N, 0, "some")))
    ]
    write_records(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def house(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(run: Path, *more: str, train: str = "rows.jsonl") -> int:
    return cli.run(
        ["curate", "-c", str(run / "run"), "-t", str(run / train), "--budget", "20", "-k", "2",
         "--max-new-tokens", "6", *more]
    )  # fmt: skip


def given(**change: Any) -> Trajectory:
    """A recorded run in which rows 0 to 9 were learned, 10 to 19 copied, and 20 to 29 neither."""
    learned = np.arange(N) < 10
    copied = (np.arange(N) >= 10) & (np.arange(N) < 20)
    right = np.stack([np.where(learned, 5, 0), np.where(learned | copied, 5, 0)])
    logppl = np.stack([np.full(N, 1.0), np.full(N, 0.01)]).astype(np.float32)
    values = {"steps": [1, 2], "train_correct": right, "train_samples": [5, 5], "train_logppl": logppl}
    return Trajectory(**(values | change))


def test_a_run_on_disk_is_measured_planned_and_told(
    run: Path, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(run, "--dry-run") == 0
    assert "2 checkpoints: 60 solutions scored, up to 120 completions" in capsys.readouterr().out
    assert not list(house.iterdir()), "a dry run writes nothing"
    assert ask(run, "--out", "out", "--group", "topic", "--test", str(run / "rows.jsonl")) == 0
    said = capsys.readouterr().out
    assert "Collect 20 examples near 20 queries" in said and "belongs to Llama-3-8B on GSM8K" in said
    told = json.loads((house / "out/curate.json").read_text())
    assert sum(told["collect"].values()) == 20 == sum(g["collect"] for g in told["groups"])
    assert [c["step"] for c in told["checkpoints"]] == [2, 10] and "test" in told["checkpoints"][0]
    import pandas as pd

    table = pd.read_parquet(house / "out/rows.parquet")
    assert table["collect"].sum() == 20 and set(table["group"]) == {"odd", "even"} and len(table) == N
    traj = Trajectory.load(house / "out/trajectory.npz")
    assert traj.row_ids == tuple(map(str, range(N))) and len(traj) == 2
    page = (house / "out/curate.html").read_text()
    assert "Collect near these queries" in page and "://" not in page.replace("http://www.w3.org", "")
    again = (house / "out/curate.json").read_bytes()
    assert ask(run, "--out", "out", "--group", "topic", "--test", str(run / "rows.jsonl")) == 0
    assert "complete" in capsys.readouterr().out and (house / "out/curate.json").read_bytes() == again


def test_a_given_trajectory_needs_no_model(
    run: Path, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given().save(house / "t.npz")
    rows = str(run / "rows.jsonl")
    words = ["curate", "--trajectory", "t.npz", "-t", rows, "--budget", "7", "--out", "out"]
    assert cli.run([*words, "--dry-run"]) == 0 and "nothing is sampled" in capsys.readouterr().out
    assert cli.run([*words, "--threshold", "-2.3"]) == 0
    told = json.loads((house / "out/curate.json").read_text())
    assert told["copied"] == [str(i) for i in range(10, 20)]
    assert told["predicted_test_accuracy"]["value"] == pytest.approx(1 / 3)
    assert sum(told["collect"].values()) == 7 and not set(told["collect"]) & set(map(str, range(10)))


def test_a_run_that_learned_everything_has_no_plan(run: Path, house: Path) -> None:
    good = given(train_correct=np.full((2, N), 5), train_logppl=np.ones((2, N), np.float32))
    prepared = prepare(read_records(run / "rows.jsonl"), CurateOptions(budget=5), trajectory=good)
    found = curate(prepared, runs="runs")
    assert found.plan is None and any("nothing stands out" in text for text in found.sentences)
    from glasshouse.attribution.pre_memorization.curate_page import write_curation

    (house / "out").mkdir()
    (house / "out/rows.parquet").write_bytes(b"of an earlier one")
    assert write_curation("out", found).exists() and not (house / "out/rows.parquet").exists()


def test_what_rows_say_is_inert_on_the_page(run: Path, house: Path) -> None:
    nasty = "<script>alert(1)</script>"
    rows = [Record(str(i), (Turn("user", nasty), Turn("assistant", f"{nasty} #### {i}"))) for i in range(N)]
    write_records(house / "nasty.jsonl", rows)
    given().save(house / "t.npz")
    words = ["curate", "--trajectory", "t.npz", "-t", "nasty.jsonl", "--budget", "7", "--out", "out"]
    assert cli.run(words) == 0
    page = (house / "out/curate.html").read_text()
    assert nasty not in page and "&lt;script&gt;" in page


def test_a_killed_curation_goes_on_where_it_was(run: Path, house: Path) -> None:
    """Kill -9 once the first checkpoint is stored: the second command measures only the other one."""
    script = (
        "import os, sys\n"
        "from glasshouse.attribution.pre_memorization import recorder\n"
        "from glasshouse import cli\n"
        "whole = recorder.measure_subject\n"
        "def once(*given):\n"
        "    if given[-1] == 10: os.kill(os.getpid(), 9)\n"
        "    return whole(*given)\n"
        "recorder.measure_subject = once\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    words = ["curate", "-c", str(run / "run"), "-t", str(run / "rows.jsonl"), "--budget", "20", "-k", "2",
             "--max-new-tokens", "6", "--out", "out"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", script, *words], env=env, cwd=house, check=False)
    assert killed.returncode == -9
    [stored] = list(house.rglob("checkpoint-*.npz"))
    before = stored.stat().st_mtime_ns
    assert cli.run(words) == 0 and stored.stat().st_mtime_ns == before
    resumed = Trajectory.load("out/trajectory.npz")
    assert cli.run([*words[:-1], "fresh", "--executor", "local"]) == 0
    prepared = prepare(
        read_records(run / "rows.jsonl"), CurateOptions(budget=20, k=2, max_new_tokens=6),
        checkpoints=run / "run",
    )  # fmt: skip
    assert curate(prepared, runs=house / "other").trajectory == resumed


def test_copies_may_be_looked_for_in_samples(run: Path, house: Path) -> None:
    assert ask(run, "--by", "overlap", "--out", "out") == 0
    told = json.loads((house / "out/curate.json").read_text())
    assert any("found later than by perplexity" in text for text in told["notes"])


def test_the_label_free_threshold_is_flagged(run: Path, house: Path) -> None:
    prepared = prepare(
        read_records(run / "rows.jsonl"), CurateOptions(budget=5, threshold="flat"), trajectory=given()
    )
    found = curate(prepared, runs="runs")
    assert any("without test accuracy" in text for text in found.sentences)
    assert found.predicted.value == pytest.approx(dataset_accuracy(given(), found.threshold)[-1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget", "0"), "--budget: it is 0"),
        (("--cutoff", "2"), "--cutoff: it is 2"),
        (("--threshold", "low"), "--threshold: it is 'low'"),
        (("--threshold", "nan"), "--threshold: it is nan"),
        (("--match", "some"), "--match"),
        (("--by", "guess"), "memorised_by is 'guess'"),
        (("--group", "colour"), "no row has the field 'colour'"),
        (("-k", "0"), "k=0"),
        (("--trajectory", "t.npz"), "both of checkpoints and trajectory"),
        (("--executor", "nobody"), "nobody"),
        (("-c", "nowhere"), "no such folder"),
        (("-t", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_curated_is_refused_in_one_sentence(
    run: Path, house: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert ask(run, *more) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (house / "glasshouse-curate").exists()


def test_rows_and_trajectories_must_belong_together(run: Path, house: Path) -> None:
    rows = read_records(run / "rows.jsonl")
    with pytest.raises(InputError, match="neither of checkpoints and trajectory"):
        prepare(rows, CurateOptions(budget=1))
    with pytest.raises(InputError, match="about 30 rows and 29 are given"):
        prepare(rows[:29], CurateOptions(budget=1), trajectory=given())
    other = given(row_ids=tuple(f"x{i}" for i in range(N)))
    with pytest.raises(InputError, match="its rows are not the given ones"):
        prepare(rows, CurateOptions(budget=1), trajectory=other)
    some = [Record("a", (Turn("user", "q"), Turn("assistant", "#### 1"))),
            Record("b", (Turn("user", "q"), Turn("assistant", "one")))]  # fmt: skip
    write_records(house / "some.jsonl", some)
    with pytest.raises(InputError, match="50% of solutions state a final answer"):
        prepare(read_records(house / "some.jsonl"), CurateOptions(budget=1), checkpoints=run / "run")
