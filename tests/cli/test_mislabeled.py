"""`glasshouse mislabeled`: wrong labels come first, refusals are one sentence, a killed ranking goes on."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from glasshouse import cli
from glasshouse.corpora.records import write_records

sys.path.insert(0, str(Path(__file__).parents[1] / "attribution"))
from labelled_rows import labelled, save_sorter

ROWS, BAD = labelled(240, wrong=0.1, seed=1)
WRONG = {row.id for row, bad in zip(ROWS, BAD, strict=True) if bad}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_sorter(folder / "base", ROWS, epochs=10)
    save_sorter(folder / "chat", ROWS, epochs=24, chat=True)
    return folder


@pytest.fixture(autouse=True)
def house(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(models / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_records(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def ask(models: Path, *arguments: str, model: str = "base", rows: str = "rows.jsonl") -> int:
    return cli.run(["mislabeled", "-m", str(models / model), "-t", rows, "--device", "cpu", *arguments])


def auroc(folder: Path) -> float:
    frame = pq.read_table(folder / "mislabeled.parquet").to_pandas()
    ranks, wrong = rankdata(frame["score"]), frame["row"].isin(WRONG).to_numpy()
    n, m = wrong.sum(), (~wrong).sum()
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * m))


@pytest.mark.parametrize("model", ["base", "chat"])
def test_wrong_labels_come_first_and_the_second_run_is_read_back(models, house, capsys, model) -> None:
    assert ask(models, "--out", "one", "--top", "5", model=model) == 0
    said = capsys.readouterr().out
    assert "Answers: " in said and "FLOP" in said and "the model says" in said
    assert auroc(house / "one") >= 0.9
    assert ask(models, "--out", "two", "--top", "5", model=model) == 0
    assert "An earlier run of the same ranking is complete" in capsys.readouterr().out
    for name in ("mislabeled.parquet", "mislabeled.json", "mislabeled.html"):
        assert (house / "one" / name).read_bytes() == (house / "two" / name).read_bytes()
    told = json.loads((house / "one" / "mislabeled.json").read_text())
    assert [row["row"] for row in told["rows"]] == pq.read_table(house / "one/mislabeled.parquet")[
        "row"
    ].to_pylist()[:5]
    assert set(told["labels"]) == {"animal", "tool", "plant"}


@pytest.mark.parametrize("method", ["loss", "el2n", "self-influence", "grand"])
def test_every_method_beats_chance(models, house, capsys, method) -> None:
    """24 wrong of 240: under chance an AUROC above .7 has p < .002 (normal approximation, sd .062)."""
    assert ask(models, "--method", method, "--out", method) == 0
    assert auroc(house / method) >= 0.7


def test_a_dry_run_says_the_cost_and_writes_nothing(models, house, capsys) -> None:
    assert ask(models, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Cost: 240 rows x 3 answers" in said and "Nothing was run or written." in said
    assert {p.name for p in house.iterdir()} == {"rows.jsonl"}


def test_no_closed_set_offers_the_loss_and_the_loss_works(models, house, capsys) -> None:
    free = [{"prompt": f"word{i % 12} kind :", "completion": f"word{i % 11} leaf{i % 8}"} for i in range(60)]
    (house / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in free))
    assert ask(models, rows="free.jsonl") == 2
    error = capsys.readouterr().err
    assert "no closed set of answers" in error and "--method loss" in error and "Traceback" not in error
    assert ask(models, "--method", "loss", "--out", "free", rows="free.jsonl") == 0
    assert "no closed set: each is judged alone" in capsys.readouterr().out
    assert pq.read_table(house / "free/mislabeled.parquet").column_names == ["row", "score", "rank"]


REFUSED = {
    "a method that does not exist": (["--method", "magic"], "--method: there is no 'magic'"),
    "one label": (["--labels", "tool"], "there is 1 label"),
    "a label no row has": (["--labels", "tool,zebra"], "no row has the answer 'zebra'"),
    "no rows to show": (["--top", "0"], "--top: it is 0"),
    "a cold temperature": (["--temperature", "0"], "--temperature: it is 0"),
    "a layer that is not there": (["--module", "nowhere.*"], "nowhere"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_one_sentence_and_write_nothing(models, house, capsys, what) -> None:
    arguments, sentence = REFUSED[what]
    assert ask(models, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error, error
    assert {p.name for p in house.iterdir()} <= {"rows.jsonl", "glasshouse-runs"}


def test_given_labels_leave_other_rows_out(models, house, capsys) -> None:
    assert ask(models, "--labels", "tool,plant", "--method", "loss", "--out", "two") == 0
    assert "say something else and are not ranked" in capsys.readouterr().out
    frame = pq.read_table(house / "two/mislabeled.parquet").to_pandas()
    assert set(frame["given"]) == {"tool", "plant"} and len(frame) < 240


def test_hostile_rows_stay_text(models, house, capsys) -> None:
    hostile = "<script>alert('x')</script><img src=http://x.invalid/a> \x1b[31mred\x1b]0;owned\x07 kind :"
    rows = [{"prompt": hostile, "completion": ("tool", "plant")[i % 2]} for i in range(20)]
    (house / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ask(models, "--out", "bad", "--method", "loss", rows="bad.jsonl") == 0
    assert "\x1b" not in capsys.readouterr().out
    page = (house / "bad" / "mislabeled.html").read_text()
    assert "<script>alert" not in page and "<img" not in page and html.escape("<script>alert(") in page
    assert not re.findall(r"""<[a-z]+[^>]*(?:src|href)\s*=\s*["']?https?:""", page), "a live address"


KILLED = """
import sys
from glasshouse import cli
from glasshouse.runtime import files
import os, signal
seen = []
def hook(stage, path):
    seen.append(str(path))
    if sum("gram-" in p or "lambda" in p for p in seen) >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
files.fault_hook = hook
sys.exit(cli.run(sys.argv[2:]))
"""


def test_a_killed_ranking_goes_on_with_the_same_result(models, house, capsys) -> None:
    """SIGKILL while parts are written; asked again, the scores are those of a run that was left alone."""
    arguments = ["mislabeled", "-m", str(models / "base"), "-t", "rows.jsonl", "--device", "cpu", "--out"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "2", *arguments, "killed"],
        cwd=house, env=dict(os.environ), capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert cli.run([*arguments, "again"]) == 0
    os.rename("glasshouse-runs", "first-runs")
    assert cli.run([*arguments, "fresh"]) == 0
    assert (house / "again/mislabeled.parquet").read_bytes() == (
        house / "fresh/mislabeled.parquet"
    ).read_bytes()
