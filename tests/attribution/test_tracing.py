"""`trace`: the scores are the method's own, whatever kills it on the way; cuts and pools are said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trace_models import colour_queries, colour_rows, save_model, write_jsonl

from glasshouse.attribution import base
from glasshouse.attribution.bm25 import bm25_scores
from glasshouse.attribution.ekfac import EKFAC
from glasshouse.attribution.trace_page import write_trace
from glasshouse.attribution.tracing import Prepared, Traced, TraceOptions, prepare, trace
from glasshouse.corpora.records import Records, read_records
from glasshouse.corpora.rows import IGNORE
from glasshouse.corpora.tokens import encode_records
from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError, InputError
from glasshouse.subjects import as_subject

MODULES = ("transformer.h.*.attn.c_attn", "transformer.h.1.mlp.c_fc")
FEW = TraceOptions(modules=MODULES)


class Counting:
    """An executor that runs here and remembers which shards it was given."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def map(self, fn: Callable[[Any], Any], shards: Iterable[Any]) -> Iterator[Any]:
        for shard in shards:
            self.done.append(f"{fn.func.__name__} {shard[0]}")  # type: ignore[attr-defined]
            yield fn(shard)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("trace") / "model")


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def subject(model_folder: Path) -> Any:
    return as_subject(model_folder, self_test=False, device="cpu")


@pytest.fixture
def rows(house: Path) -> Records:
    return read_records(write_jsonl(house / "rows.jsonl", colour_rows()))


@pytest.fixture
def queries(house: Path) -> Records:
    return read_records(write_jsonl(house / "q.jsonl", colour_queries()))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of 24 rows a pass, where a real trace has one for 65,536 tokens."""
    monkeypatch.setattr(base, "SHARD_TOKENS", 170)


def run(prepared: Prepared, name: str, executor: Any = None, runs: str = "runs") -> Traced:
    traced = trace(prepared, runs=runs, executor=executor)
    write_trace(Path(name), traced, top=3)
    return traced


def test_a_fault_at_every_write_costs_at_most_one_step(subject, rows, queries, small_shards, faults) -> None:
    def fresh() -> Prepared:  # a new process would have a method that was never fitted
        return prepare(subject, rows, queries, FEW)

    whole, points = Counting(), faults.at()
    run(fresh(), "whole", whole)
    steps, points = whole.done, list(points)
    assert len(steps) == len(set(steps)) == 6, "covariance, lambda and scores, two shards each"
    assert {"before spec.json", "before run.json", "after scores.parquet", "after trace.html"} <= set(points)
    wanted = Path("whole/scores.parquet").read_bytes()
    for n, point in enumerate(points, 1):
        shutil.rmtree("runs")
        out, counting = Path(f"out-{n}"), Counting()
        faults.at(n)
        with pytest.raises(faults.Killed):
            run(fresh(), str(out), counting)
        left = {p.name for p in out.rglob("*")}
        assert left <= {"scores.parquet", "trace.json", "trace.html"}, f"{point}: half-written {left}"
        faults.off()
        run(fresh(), str(out), counting)
        assert (out / "scores.parquet").read_bytes() == wanted, point
        assert set(counting.done) == set(steps) and len(counting.done) <= len(steps) + 1, (
            f"{point}: {counting.done}"
        )
        assert not [p for p in Path("runs").rglob("*") if p.name.endswith(".part")]


def test_kill_minus_nine_and_resume(subject, model_folder, rows, queries, small_shards, house) -> None:
    """A real process killed by the kernel once its first scores are stored; another finishes the work."""
    code = f"""
import os, signal, torch
from glasshouse.attribution import base
from glasshouse.attribution.tracing import TraceOptions, prepare, trace
from glasshouse.corpora.records import read_records
from glasshouse.runtime import files
from glasshouse.subjects import as_subject

def hook(stage, path):
    if stage == "after" and path.name == "scores-00000.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)

files.fault_hook = hook
base.SHARD_TOKENS = {base.SHARD_TOKENS}
torch.set_num_threads({torch.get_num_threads()})  # sums round by the number of threads
subject = as_subject({str(model_folder)!r}, self_test=False, device="cpu")
rows, queries = read_records("rows.jsonl"), read_records("q.jsonl")
trace(prepare(subject, rows, queries, TraceOptions(modules={MODULES!r})), runs="runs")
"""
    dead = subprocess.run(
        [sys.executable, "-c", code], cwd=house, env=os.environ, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    counting = Counting()
    run(prepare(subject, rows, queries, FEW), "killed", counting)
    assert [step.split()[0] for step in counting.done] == ["score_shard"], "all but the last shard was stored"
    run(prepare(subject, rows, queries, FEW), "whole", runs="other")
    assert Path("killed/scores.parquet").read_bytes() == Path("whole/scores.parquet").read_bytes()


def test_a_finished_trace_is_read_back(subject, rows, queries) -> None:
    first = run(prepare(subject, rows, queries, FEW), "one")
    counting = Counting()
    again = run(prepare(subject, rows, queries, FEW), "two", counting)
    assert (first.stored, again.stored, counting.done) == (False, True, [])
    for name in ("scores.parquet", "trace.json", "trace.html"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_what_decides_the_scores_makes_another_run(subject, rows, queries) -> None:
    specs = [
        prepare(subject, data, asked, options).spec()
        for data, asked, options in [
            (rows, queries, FEW),
            (rows[:20], queries, FEW),
            (rows, queries[:1], FEW),
            (rows, queries, replace(FEW, seed=1)),
            (rows, queries, replace(FEW, damping=0.5)),
        ]
    ]
    specs.append(prepare(subject, rows, queries, FEW, unfinished=True).spec())
    hashes = [files.sha256_json(spec) for spec in specs]
    assert len(set(hashes)) == len(hashes)
    assert all(spec["code"] and spec["versions"]["torch"] for spec in specs)


@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "identity"])
def test_scores_are_those_of_the_method(subject, rows, queries, strategy) -> None:
    options = replace(FEW, method=strategy, query_agg="unit_mean")
    traced = trace(prepare(subject, rows, queries, options), runs="runs")
    bare = EKFAC(strategy, modules=list(MODULES)).fit(subject, rows)
    wanted = encode_records(subject.tokenizer, list(queries))
    table = bare.score(wanted, "completion_logprob", query_agg="unit_mean", row_norm="grad")
    np.testing.assert_array_equal(traced.table.scores, table.scores)
    frame = pq.read_table(write_trace(Path("out"), traced).parent / "scores.parquet").to_pandas()
    assert frame["row"].tolist() == [row for row, _ in table.top(0, len(rows))]
    assert frame["rank"].tolist() == list(range(1, len(rows) + 1))


def test_bm25_is_the_plain_baseline(subject, rows, queries) -> None:
    traced = trace(prepare(subject, rows, queries, TraceOptions(method="bm25")), runs="runs")
    direct = bm25_scores([q.plain for q in queries], [r.plain for r in rows]).astype(np.float32)
    np.testing.assert_array_equal(traced.table.scores, direct)
    assert rows[int(direct[0].argmax())].said("assistant") == queries[0].said("assistant")


def test_a_filter_scores_its_rows_and_as_many_random_others(subject, rows, queries) -> None:
    whole = trace(prepare(subject, rows, queries, FEW), runs="runs").table
    traced = trace(prepare(subject, rows, queries, replace(FEW, bm25_filter=4)), runs="runs")
    pools = traced.prepared.pools
    assert sorted(pools.values()).count("random pool") == 4
    assert 4 <= sorted(pools.values()).count("shares words") <= 8
    places = [whole.train_ids.index(row) for row in traced.table.train_ids]
    np.testing.assert_allclose(traced.table.scores, whole.scores[:, places], rtol=1e-4, atol=1e-7)
    page = write_trace(Path("out"), traced).read_text()
    assert f"Only {len(pools)} of 24 rows were scored" in page
    assert set(pq.read_table("out/scores.parquet")["pool"].to_pylist()) == {"random pool", "shares words"}


def test_rows_beyond_the_context_are_cut_aloud(subject, house, queries) -> None:
    long = {"id": "long", "prompt": "what is the sea ?", "completion": "the sea is blue . " * 8}
    rows = read_records(write_jsonl(house / "long.jsonl", [*colour_rows(), long]))
    prepared = prepare(subject, rows, queries, FEW)
    assert prepared.cut == ("long",) and len(prepared.units[-1]) == subject.context == 32
    assert prepared.notes[0].startswith("1 of 25 rows are longer than the model's context of 32 tokens")
    page = run(prepared, "out") and Path("out/trace.html").read_text()
    assert "1 of 25 rows are longer" in page
    assert json.loads(Path("out/trace.json").read_text())["cut_rows"] == ["long"]


def test_the_end_token_is_asked_for_only_where_it_was_said(subject, tmp_path, queries) -> None:
    base = as_subject(save_model(tmp_path / "base", chat=False), self_test=False, device="cpu")
    rows = read_records(write_jsonl(tmp_path / "rows.jsonl", colour_rows()))

    def asked(of: Any, **more: Any) -> str:
        row = prepare(of, rows, queries, FEW, **more).wanted[0]
        return of.tokenizer.decode([label for label in row.labels if label != IGNORE])

    assert asked(subject) == "the sea is blue . <eot>"
    assert asked(subject, unfinished=True) == asked(base) == "the sea is blue ."


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "magic"}, "--method"),
        ({"query_agg": "median"}, "--query-agg"),
        ({"row_norm": "both"}, "--row-norm"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"query_rank": 0}, "--query-rank"),
        ({"bm25_filter": 0}, "--bm25-filter"),
        ({"factor_rows": 0}, "--factor-rows"),
        ({"modules": ("nowhere.*",)}, "nowhere"),
        ({"method": "bm25", "damping": 0.1}, "--damping"),
        ({"method": "bm25", "query_agg": "unit_mean"}, "--query-agg"),
        ({"method": "trak", "row_norm": "grad"}, "--row-norm"),
        ({"method": "logra", "row_norm": "grad"}, "--row-norm"),
        ({"method": "ekfac", "rank": 8}, "--rank"),
        ({"method": "tracin"}, "--checkpoints"),
        ({"method": "source", "checkpoints": "nowhere"}, "nowhere"),
    ],
)
def test_bad_options_are_refused_before_a_run_exists(subject, rows, queries, options, says) -> None:
    with pytest.raises(GlasshouseError, match=says):
        prepare(subject, rows, queries, TraceOptions(**options))
    assert not Path("runs").exists()


def test_queries_that_cannot_be_asked(subject, rows, house) -> None:
    for bad, says in [
        ({"text": "the sea is blue ."}, "a prompt and a completion"),
        ({"turns": [["user", "what is the sea ?"]]}, "a prompt and a completion"),
        ({"prompt": "sea " * 40, "completion": "blue"}, "the model's context holds 32"),
    ]:
        queries = read_records(write_jsonl(house / "bad.jsonl", [bad]))
        with pytest.raises(InputError, match=says) as caught:
            prepare(subject, rows, queries, FEW)
        assert "bad.jsonl:1" in str(caught.value)


def test_another_live_trace_keeps_its_run(subject, rows, queries) -> None:
    from glasshouse.runtime.runs import Run

    prepared = prepare(subject, rows, queries, FEW)
    code = "import json, sys; from glasshouse.runtime.runs import Run\n"
    code += "Run.open('runs', 'trace', json.loads(sys.argv[1]))"
    with Run.open("runs", "trace", prepared.spec()):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(prepared.spec())], capture_output=True, text=True
        )
    assert "is working on this run" in done.stderr
