"""Every method of `trace` by name: its own scores, its page, its cost, and what it has no use for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trace_models import colour_queries, colour_rows, save_model, write_jsonl

from glasshouse.attribution import ScoreTable
from glasshouse.attribution.costing import expected_cost
from glasshouse.attribution.methods import DOORS
from glasshouse.attribution.trace_page import write_trace
from glasshouse.attribution.tracing import TraceOptions, prepare, trace
from glasshouse.corpora.records import Records, read_records
from glasshouse.subjects import as_subject

MODULES = ("transformer.h.*.attn.c_attn", "transformer.h.1.mlp.c_fc")
ON_A_RUN = ("source", "tracin")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Trainer's folder: three checkpoints of one run that move away from a random model, and rates."""
    root = tmp_path_factory.mktemp("methods") / "run"
    for k, step in enumerate((2, 4, 6)):
        folder = save_model(root / f"checkpoint-{step}")
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(folder)
        noise = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * k * torch.randn(parameter.shape, generator=noise))
        model.save_pretrained(folder)
        log = [{"step": s, "learning_rate": 0.1} for s in range(1, step + 1)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return root


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    return tmp_path


@pytest.fixture
def subject(run_folder: Path) -> Any:
    return as_subject(run_folder / "checkpoint-6", self_test=False, device="cpu")


@pytest.fixture
def rows(house: Path) -> Records:
    return read_records(write_jsonl(house / "rows.jsonl", colour_rows()))


@pytest.fixture
def queries(house: Path) -> Records:
    return read_records(write_jsonl(house / "q.jsonl", colour_queries()))


def options_of(method: str, run_folder: Path) -> TraceOptions:
    door, given = DOORS[method], {}
    if "modules" in door.uses:
        given["modules"] = MODULES
    if method in ON_A_RUN:
        given["checkpoints"] = str(run_folder)
    if method == "source":
        given["optimizer"] = "sgd"
    if method in ("logra", "trak"):
        given["rank"] = 8
    return TraceOptions(method=method, **given)


@pytest.mark.parametrize("method", [m for m in DOORS if m != "embedding"])
def test_scores_page_and_cost_of_every_method(subject, rows, queries, run_folder, house, method) -> None:
    options = options_of(method, run_folder)
    prepared = prepare(subject, rows, queries, options)
    assert "24 rows" in expected_cost(prepared)
    traced = trace(prepared, runs="runs")
    write_trace(house / "out", traced, top=3)

    own = options.door.make(options).fit(subject, prepared.units)
    wanted = own.score(
        prepared.wanted, "completion_logprob", **options.door.asks(options, prepared.row_norm)
    ).scores
    np.testing.assert_array_equal(traced.table.scores, wanted)
    page = (house / "out/trace.html").read_text()
    assert page.count("<script") <= 1 and "what is the sea ?" in page
    again = trace(prepare(subject, rows, queries, options), runs="runs")
    assert again.stored
    np.testing.assert_array_equal(again.table.scores, wanted)
    if traced.highlight is not None and prepared.row_norm == "none":
        tokens = traced.highlight(0, "r3")
        row = traced.table.train_ids.index("r3")
        assert float(tokens.sum()) == pytest.approx(float(wanted[0, row]), rel=1e-3, abs=1e-7)


def test_only_gradients_argue_against(subject, rows, queries, run_folder, house) -> None:
    for method, sides in (("tracin", 2), ("representation", 1), ("bm25", 1)):
        traced = trace(prepare(subject, rows, queries, options_of(method, run_folder)), runs="runs")
        write_trace(house / method, traced, top=3)
        told = json.loads((house / method / "trace.json").read_text())
        assert len(told["queries"][0]["evidence"]) == 1 + sides, method


def test_another_run_is_another_trace(subject, rows, queries, run_folder) -> None:
    options = options_of("tracin", run_folder)
    before = prepare(subject, rows, queries, options).spec()
    log = run_folder / "checkpoint-6" / "trainer_state.json"
    kept = log.read_text()
    log.write_text(kept.replace("0.1", "0.2"))
    try:
        assert prepare(subject, rows, queries, options).spec() != before
    finally:
        log.write_text(kept)
    assert prepare(subject, rows, queries, options).spec() == before


def test_every_method_scores_rows_of_the_same_names(subject, rows, queries, run_folder) -> None:
    names = {record.id for record in rows}
    for method in ("logra", "trak", "bm25"):
        table: ScoreTable = trace(
            prepare(subject, rows, queries, options_of(method, run_folder)), runs="runs"
        ).table
        assert set(table.train_ids) == names and table.query_ids == ("sea", "cat"), method
