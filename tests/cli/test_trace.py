"""`glasshouse trace`: it says the cost, ranks, refuses in one sentence, and hostile text stays text."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from glasshouse import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "attribution"))
from trace_models import colour_queries, colour_rows, save_model, write_jsonl

QUICK = ["--module", "transformer.h.1.mlp.c_fc", "--device", "cpu"]
HOSTILE = "<script>alert('x')</script><img src=http://x.invalid/a onerror=alert(1)> "
HOSTILE += "\x1b[31mred\x1b]0;owned\x07 \u202eevil"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chat` and `base`, and one cache, so that each model's self-test runs once."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "chat")
    save_model(folder / "base", chat=False)
    return folder


@pytest.fixture(autouse=True)
def house(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(models / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_jsonl(tmp_path / "rows.jsonl", colour_rows())
    write_jsonl(tmp_path / "q.jsonl", colour_queries())
    return tmp_path


def trace(models: Path, *arguments: str, model: str = "chat", rows: str = "rows.jsonl") -> int:
    return cli.run(["trace", "-m", str(models / model), "-t", rows, *QUICK, *arguments])


def made(house: Path) -> set[str]:
    return {p.name for p in house.iterdir()} - {"rows.jsonl", "q.jsonl", "bad.jsonl"}


def test_a_dry_run_says_the_cost_and_writes_nothing(models, house, capsys) -> None:
    assert trace(models, "-q", "q.jsonl", "--dry-run") == 0
    said = capsys.readouterr().out
    assert (
        "Cost: 24 rows (336 tokens) x 2 queries" in said
        and "FLOP" in said
        and "Nothing was run or written." in said
    )
    assert made(house) == set()


def test_a_trace_ranks_and_the_second_is_read_back(models, house, capsys) -> None:
    assert trace(models, "-q", "q.jsonl", "--out", "one", "--top", "3") == 0
    first = capsys.readouterr().out
    assert "Query sea:" in first and "Query cat:" in first and "one/trace.html" in first
    assert trace(models, "-q", "q.jsonl", "--out", "two", "--top", "3") == 0
    assert "An earlier run of the same trace is complete" in capsys.readouterr().out
    for name in ("scores.parquet", "trace.json", "trace.html"):
        assert (house / "one" / name).read_bytes() == (house / "two" / name).read_bytes()
    scores = pq.read_table(house / "one/scores.parquet").to_pandas()
    told = json.loads((house / "one/trace.json").read_text())
    for query, part in scores.groupby("query"):
        [entry] = [q for q in told["queries"] if q["query"] == query]
        best = [row["row_id"] for row in entry["evidence"][1]["rows"]]
        assert best == part["row"].tolist()[: len(best)] and part["score"].is_monotonic_decreasing
    assert f"row {scores['row'][0]}:" in first


def test_the_page_says_what_it_leaves_out(models, house) -> None:
    many = [{**row, "id": f"{k}-{row['id']}"} for k in range(8) for row in colour_rows()]
    write_jsonl(house / "rows.jsonl", many)
    words = ["-q", "q.jsonl", "--method", "bm25", "--top", "60"]
    assert cli.run(["trace", "-m", str(models / "chat"), "-t", "rows.jsonl", *words, "--out", "out"]) == 0
    page = (house / "out/trace.html").read_text()
    assert "10 more rows in trace.json." in page and "findings.json" not in page
    assert trace(models, "-q", "q.jsonl", "--out", "out") == 0
    told = json.loads((house / "out/trace.json").read_text())
    left_out = [name for names in told["provenance"]["modules_left_out"].values() for name in names]
    assert "transformer.ln_f" in left_out


@pytest.mark.parametrize(
    "arguments", [["--query-agg", "unit_mean"], ["--row-norm", "none"], ["--method", "identity"]]
)
def test_options_change_the_answer(models, house, arguments) -> None:
    assert trace(models, "-q", "q.jsonl", "--out", "plain") == 0
    assert trace(models, "-q", "q.jsonl", "--out", "other", *arguments) == 0
    plain, other = (pq.read_table(house / name / "scores.parquet") for name in ("plain", "other"))
    assert plain["score"].to_pylist() != other["score"].to_pylist()


def test_one_prompt_with_or_without_its_reply(models, house, capsys) -> None:
    assert trace(models, "--prompt", "what is the cat ?", "--out", "asked") == 0
    assert (
        trace(models, "--prompt", "what is the cat ?", "--reply", "the cat is black .", "--out", "given") == 0
    )
    page = (house / "given/trace.html").read_text()
    assert "what is the cat ?" in page and "the cat is black ." in page
    assert (house / "asked/scores.parquet").read_bytes() != (house / "given/scores.parquet").read_bytes()
    # A random model talks on and on: the reply it gives is cut, and that is said.
    assert "Note: The reply goes on" in capsys.readouterr().out


def test_a_base_model_with_texts(models, house) -> None:
    texts = [{"text": f"the {row['completion']} ."} for row in colour_rows()]
    write_jsonl(house / "rows.jsonl", texts)
    assert trace(models, "-q", "q.jsonl", "--out", "out", model="base") == 0
    told = json.loads((house / "out/trace.json").read_text())
    assert told["provenance"]["row_norm"] == "none"
    tokens = told["queries"][0]["evidence"][1]["rows"][0]["turns"][0][1]
    assert max(abs(token["weight"]) for token in tokens) == 1


def test_words_alone(models, house, capsys) -> None:
    words = ["-q", "q.jsonl", "--method", "bm25", "--out", "out"]
    assert cli.run(["trace", "-m", str(models / "chat"), "-t", "rows.jsonl", *words]) == 0
    said = capsys.readouterr().out
    assert "no pass through the model" in said
    assert re.search(r"Query cat:\n  \+\S+  row r21: what is the cat", said)


BAD_ROWS = [
    ("not json", "bad.jsonl:1"),
    ("", "no rows"),
    ('{"turns": [["user", "what is the sea ?"]]}', "bad.jsonl:1"),
    ('{"id": "a", "text": "the sea"}\n{"id": "a", "text": "the sky"}', "used before"),
    ('{"prompt": "%s", "completion": "red"}' % ("sea " * 40), "cut at 32 tokens"),
    ('{"text": "sea"}', "no labelled token"),
]


@pytest.mark.parametrize(("content", "says"), BAD_ROWS)
def test_rows_that_cannot_be_traced_are_one_sentence(models, house, capsys, content, says) -> None:
    (house / "bad.jsonl").write_text(content)
    assert trace(models, "-q", "q.jsonl", "--out", "out", rows="bad.jsonl") == 2
    told = capsys.readouterr()
    assert says in told.err and len(told.err.strip().splitlines()) == 1
    assert made(house) == set(), "nothing half-written"


BAD_USE = [
    ([], "nothing to explain"),
    (["-q", "q.jsonl", "--prompt", "hi"], "given twice"),
    (["-q", "missing.jsonl"], "missing.jsonl"),
    (["-q", "q.jsonl", "--method", "magic"], "choose from ekfac, kfac, diagonal, identity, logra"),
    (["-q", "q.jsonl", "--damping", "lots"], "give auto or a number"),
    (["-q", "q.jsonl", "--damping", "-1"], "damping"),
    (["-q", "q.jsonl", "--module", "attic.*"], "attic"),
    (["-q", "q.jsonl", "--top", "0"], "--top"),
    (["-q", "q.jsonl", "--executor", "cloud"], "cloud"),
    (["-q", "q.jsonl", "--dtype", "fp16"], "float16"),
    (["-q", "q.jsonl", "--out", "rows.jsonl"], "is a file"),
    (["--prompt", "what is the cat ?", "--reply", " "], "no reply"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_USE)
def test_misuse_is_one_sentence(models, house, capsys, arguments, says) -> None:
    assert trace(models, *arguments) == 2
    told = capsys.readouterr()
    assert says in told.err and len(told.err.strip().splitlines()) == 1
    assert made(house) == set(), "nothing half-written"


def test_a_model_that_is_not_there(house, capsys) -> None:
    assert cli.run(["trace", "-m", "nowhere", "-t", "rows.jsonl", "-q", "q.jsonl"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert made(house) == set()


def test_hostile_rows_ids_and_queries_stay_text(models, house, capsys) -> None:
    row: dict[str, Any] = {
        "id": HOSTILE,
        "prompt": f"what is {HOSTILE} ?",
        "completion": f"the sea {HOSTILE} .",
    }
    write_jsonl(house / "rows.jsonl", [*colour_rows(), row])
    write_jsonl(house / "q.jsonl", [{**row, "id": f"q {HOSTILE}"}, colour_queries()[0]])
    for method in ("ekfac", "bm25"):
        extra = ["-q", "q.jsonl", "--out", method, "--method", method]
        quick = QUICK if method == "ekfac" else []
        assert cli.run(["trace", "-m", str(models / "chat"), "-t", "rows.jsonl", *quick, *extra]) == 0
        printed = capsys.readouterr()
        assert "alert" in printed.out, "the row is shown"
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x9b\u202e]", printed.out + printed.err)
        page = (house / method / "trace.html").read_text()
        assert html.escape("<script>alert(", quote=False) in page and "␛[31m" in page and "⟦U+202E⟧" in page
        assert (
            page.count("<script") == 1 and "<img" not in page and "\x1b" not in page and "\u202e" not in page
        )
    ids = set(pq.read_table(house / "ekfac/scores.parquet")["row"].to_pylist())
    assert HOSTILE in ids, "tables keep the id as it is"
