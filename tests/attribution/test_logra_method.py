"""`LoGra`: what must not change a score, what modes, tokens, sharing and whitening mean, and the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, tiny_llama, token_rows

from glasshouse.attribution import TokenUnits
from glasshouse.attribution.logra import LoGra
from glasshouse.attribution.logra import sketching as sketching_module
from glasshouse.attribution.logra.convert import to_logix
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.runtime.errors import InputError


def close(a: np.ndarray, b: np.ndarray, share: float = 1e-4) -> None:
    np.testing.assert_allclose(a, b, atol=share * np.abs(b).max(), rtol=0)


def exact(**options) -> LoGra:
    return LoGra(3, **{"dtype": "float32", **options})


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_batches_padding_shards_and_order_change_nothing(family) -> None:
    model, rows = family(), token_rows(12)
    asked = rows[:3]
    reference = exact(batch_rows=1).fit(model, rows).score(asked).scores
    close(exact(batch_rows=5).fit(model, rows).score(asked).scores, reference)
    close(exact(shards=4, batch_rows=3).fit(model, rows).score(asked).scores, reference)
    left = TokenUnits(rows, side="left")
    close(exact(batch_rows=5).fit(model, left).score(TokenUnits(asked, side="left")).scores, reference)
    order = [7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6]
    shuffled = exact(batch_rows=5).fit(model, [rows[i] for i in order]).score(asked).scores
    close(shuffled[:, np.argsort(order)], reference)
    assert not np.allclose(exact(seed=1).fit(model, rows).score(asked).scores, reference, rtol=0.1)


@pytest.mark.parametrize("curvature", ["raw", "kfac", "ekfac", None])
def test_scores_are_the_formula(curvature) -> None:
    """Brute force in float64 from dense layer gradients: sign, 1/N, and every curvature."""
    model, rows = tiny_gpt2(n_layer=1), token_rows(10)
    method = exact(curvature=curvature).fit(model, rows)
    G = layer_gradients(method._job(method.train_, method.objective_), range(10))
    expected = np.zeros((2, 10))
    for name, p in method.projections_.items():
        v = (p.Po @ G[name] @ p.Pi.T).double()
        u = -v[:2]  # the measurement is the log-probability, minus the loss
        flat = v.flatten(1)
        if curvature is None:
            product = u.flatten(1) @ flat.T
        elif curvature == "raw":
            F = flat.T @ flat / 10
            F += 0.1 * F.trace() / len(F) * torch.eye(len(F), dtype=F.dtype)
            product = u.flatten(1) @ torch.linalg.solve(F, flat.T)
        else:
            factor = method.factors_[name]
            Qs, Qa = factor.Qs.double(), factor.Qa.double()
            L = (Qs.T @ v @ Qa).square().mean(0) if curvature == "ekfac" else factor.Lambda.double()
            turned = (Qs.T @ u @ Qa) / (L + 0.1 * L.mean())
            product = turned.flatten(1) @ (Qs.T @ v @ Qa).flatten(1).T
        expected -= (product / 10).numpy()
    close(method.score(rows[:2]).scores, expected, 1e-3)


def test_kronecker_bases_are_those_of_projected_pairs() -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(6)
    method = exact(curvature="kfac").fit(model, rows)
    from glasshouse.attribution.stages.steps import steps

    job = method._job(method.train_, method.objective_)
    name = method.names_[0]
    P, A, count = method.projections_[name], 0, 0
    for step in steps(job, range(6)):
        half = P.halves(step.pairs[name])
        valid = step.valid if step.valid is not None else torch.ones(half.a.shape[:2], dtype=torch.bool)
        A = A + half.a[valid].T @ half.a[valid]
        count += int(valid.sum())
    factor = method.factors_[name]
    torch.testing.assert_close(
        factor.Qa @ torch.diag(factor.extra["la"]) @ factor.Qa.T, A / count, atol=1e-4, rtol=1e-3
    )


def test_modes_are_what_they_say() -> None:
    model, rows = tiny_gpt2(), token_rows(9)
    method = exact().fit(model, rows)
    dot, cosine, l2 = (method.score(rows[:2], mode=m).scores for m in ("dot", "cosine", "l2"))
    own = method.self_score() * 9  # v^T F^-1 v
    close(cosine, dot * 9 / np.sqrt(own))
    close(l2, dot - own / (2 * 81))
    assert np.array_equal(method.score(rows[:2]).scores, dot), "auto is dot for score"
    found = method.search(rows[:2], 4)
    assert found.meta["mode"] == "cosine" and dict(found.top(0, 4)) == dict(
        method.score(rows[:2], mode="cosine").top(0, 4)
    )
    # A row's own log-probability: self-influence is the score's diagonal.
    close(np.diag(dot[:, :2]), own[:2] / 9, 1e-3)


def test_logix_converter_undoes_sign_and_scale() -> None:
    """logix: +grad loss on both sides, no 1/N; l2 is its dot minus half its self-influence."""
    model, rows = tiny_gpt2(n_layer=1), token_rows(7)
    method = exact(curvature=None).fit(model, rows)
    V = method.log_.vectors().astype(np.float64)
    dot, own = V[:2] @ V.T, (V**2).sum(1)
    expected = {"dot": dot, "cosine": dot / np.sqrt(own), "l2": dot - own / 2}
    for mode, values in expected.items():
        table = method.score(rows[:2], "loss", mode=mode)
        close(to_logix(table, self_score=method.self_score()), values, 1e-3)


def test_search_keeps_the_best_of_a_full_sort(tmp_path: Path) -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(40)
    method = exact(shards=7).fit(model, rows, store=tmp_path)
    for mode in ("dot", "cosine", "l2"):
        full = method.score(rows[:3], mode=mode).keep_top(6)
        found = method.search(rows[:3], 6, mode=mode)
        assert np.array_equal(found.columns, full.columns)
        close(found.scores, full.scores)
    assert method.search(rows[:1], 999).scores.shape == (1, 40)


def test_ties_keep_the_order_of_rows() -> None:
    from glasshouse.attribution.logra.search import _top

    scores = np.random.default_rng(0).integers(0, 4, (5, 200)).astype(np.float32)
    for k in (1, 7, 150):
        values, at = _top(scores, k)
        assert np.array_equal(at, np.argsort(-scores, axis=1, kind="stable")[:, :k])
        assert np.array_equal(values, np.take_along_axis(scores, at, 1))


@pytest.mark.parametrize("curvature", ["raw", "ekfac", None])
def test_whitened_sketches_answer_by_plain_products(curvature, tmp_path: Path) -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(12)
    method = exact(curvature=curvature, shards=3).fit(model, rows)
    scores, cosine, own = (
        method.score(rows[:2]).scores,
        method.score(rows[:2], mode="cosine").scores,
        method.self_score(),
    )
    method.whiten(store=tmp_path)
    close(method.score(rows[:2]).scores, scores, 1e-3)
    close(method.score(rows[:2], mode="cosine").scores, cosine, 1e-3)
    close(method.self_score(), own, 1e-3)
    index, asked = method.log_.vectors(), method.query_vectors(rows[:2])
    close(-asked @ index.T / 12, scores, 1e-3)
    with pytest.raises(InputError, match="already"):
        method.whiten()


def test_token_logs_hold_the_same_rows_and_their_tokens() -> None:
    model, rows = tiny_gpt2(), token_rows(8)
    whole = exact(batch_rows=3).fit(model, rows)
    parts = exact(unit="token", batch_rows=3, shards=2).fit(model, rows)
    asked = rows[:2]
    close(parts.score(asked).scores, whole.score(asked).scores, 1e-3)
    tokens = parts.score(asked, unit="token")
    grouped = tokens.group([name.rpartition("#")[0] for name in tokens.train_ids])
    close(grouped.scores, whole.score(asked).scores, 1e-3)
    cosine = parts.score(asked, unit="token", mode="cosine")
    close(
        cosine.group([n.rpartition("#")[0] for n in cosine.train_ids]).scores,
        parts.score(asked, mode="cosine").scores,
    )
    whole.score(asked)
    close(whole.per_token(1, 3), parts.score(asked, unit="token").scores[1, _tokens_of(parts, 3)], 1e-3)
    r, M = 3, len(whole.names_)
    assert parts.log_.layout.stored == 2 * r * M and whole.log_.layout.stored == r * r * M
    with pytest.raises(InputError, match="one sketch a row"):
        whole.score(asked, unit="token")


def _tokens_of(method: LoGra, row: int) -> slice:
    start = sum(method.log_.sizes[:row])
    return slice(start, start + method.log_.sizes[row])


def test_shared_sketches_are_sums() -> None:
    model, rows = tiny_gpt2(), token_rows(6)
    each = exact(modules=["*mlp.c_fc"]).fit(model, rows)
    one = exact(modules=["*mlp.c_fc"], share=["*mlp.c_fc"]).fit(model, rows)
    blocks = each.log_.vectors().reshape(6, 2, -1)
    close(one.log_.vectors(), blocks.sum(1))
    assert one.cost(1)["sketch_bytes"] == each.cost(1)["sketch_bytes"] / 2
    one.score(rows[:1])
    close(one.per_token(0, 2).sum(), one.score(rows[:1]).scores[0, 2], 1e-3)


@pytest.mark.parametrize(("dtype", "share"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_short_numbers_follow_float32(dtype: str, share: float) -> None:
    model, rows = tiny_gpt2(), token_rows(9)
    reference = exact().fit(model, rows).score(rows[:3]).scores
    close(exact(dtype=dtype).fit(model, rows).score(rows[:3]).scores, reference, share)


def test_scaled_float16_keeps_what_plain_float16_drops(mlp, classes) -> None:
    """A fitted row's gradient of 1e-9 underflows in float16; with one power of two a row it does not."""

    def tiny(model, batch):
        return 1e-9 * torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    norms = {
        scaling: np.linalg.norm(
            LoGra(3, scaling=scaling).fit(mlp, classes, objective=tiny).log_.vectors(), axis=1
        )
        for scaling in ("line", "none")
    }
    truth = np.linalg.norm(exact().fit(mlp, classes, objective=tiny).log_.vectors(), axis=1)
    np.testing.assert_allclose(norms["line"], truth, rtol=1e-3)
    assert (norms["none"] == 0).all()


def test_disk_and_memory_agree(tmp_path: Path) -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(12)
    memory = LoGra(3, shards=3, curvature="ekfac", init="pca").fit(model, rows)
    disk = LoGra(3, shards=3, curvature="ekfac", init="pca").fit(model, rows, store=tmp_path)
    assert np.array_equal(disk.score(rows[:2]).scores, memory.score(rows[:2]).scores)
    mapped = disk.score(rows[:2], executor="local", store=tmp_path, per_module=True)
    close(mapped.scores, memory.score(rows[:2]).scores)
    close(sum(mapped.per_module.values()), mapped.scores)
    index = disk.log_.frame()
    assert list(index["id"]) == [row.row_id for row in rows] and index["loss"].gt(0).all()
    close(memory.log_.loss.numpy(), disk.log_.loss.numpy())
    arrays = [np.load(path) for path in (tmp_path / "log" / "sketches").glob("*.npy")]
    assert disk.log_.bytes == disk.cost(1)["sketch_bytes"] == sum(array.nbytes for array in arrays)


@pytest.mark.slow
def test_processes_and_one_process_agree(tmp_path: Path) -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(12)
    one = LoGra(3, shards=3, curvature=None).fit(model, rows)
    two = LoGra(3, shards=3, curvature=None).fit(model, rows, store=tmp_path, executor="processes:2")
    assert np.array_equal(two.log_.vectors(), one.log_.vectors())
    assert np.array_equal(two.score(rows[:2]).scores, one.score(rows[:2]).scores)


def test_damping_curvature_and_mode_may_change_without_logging_again(tmp_path: Path, monkeypatch) -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(8)
    LoGra(3).fit(model, rows, store=tmp_path)
    calls = []
    monkeypatch.setattr(sketching_module, "steps", lambda *a: calls.append(a) or iter(()))
    again = LoGra(3, damping=0.5, curvature=None, mode="cosine").fit(model, rows, store=tmp_path)
    assert not calls and again.factors_ and set(again.factors_.values()) == {None}


def test_damping_is_a_share_of_the_mean_or_a_number(mlp, classes) -> None:
    for curvature in ("raw", "ekfac"):
        auto = exact(curvature=curvature, modules=["0"], damping_share=0.01).fit(mlp, classes)
        factor = auto.factors_["0"]
        mean = factor.mean if curvature == "raw" else float(factor.Lambda.mean())
        named = exact(curvature=curvature, modules=["0"], damping=0.01 * mean).fit(mlp, classes)
        usual = exact(curvature=curvature, modules=["0"]).fit(mlp, classes)
        scores = auto.score(classes).scores
        close(named.score(classes).scores, scores)
        assert np.abs(usual.score(classes).scores - scores).max() > 0.05 * np.abs(scores).max()


def test_candidates_are_scored_without_the_log() -> None:
    model, rows = tiny_gpt2(), token_rows(9)
    method = exact().fit(model, rows)
    for mode in ("dot", "cosine"):
        close(
            method.score(rows[:2], candidates=rows[4:7], mode=mode).scores,
            method.score(rows[:2], mode=mode).scores[:, 4:7],
        )


def test_aggregated_and_contrasted_queries() -> None:
    model, rows = tiny_gpt2(), token_rows(9)
    method = exact().fit(model, rows)
    each = method.score(rows[:3])
    close(method.score(rows[:3], query_agg="mean").scores, each.scores.mean(0, keepdims=True))
    norms = np.array(each.meta["query_norms"])[:, None]
    close(method.score(rows[:3], query_agg="unit_mean").scores, (each.scores / norms).mean(0, keepdims=True))
    contrast = method.score(rows[:1], unwanted=rows[3:4], query_agg="contrast")
    assert contrast.query_ids == ("contrast",)


@pytest.mark.parametrize("init", ["random", "pca"])
def test_save_and_load_keep_every_score(tmp_path: Path, init: str) -> None:
    model, rows = tiny_gpt2(), token_rows()
    method = LoGra(3, init=init, shards=2).fit(model, rows, store=tmp_path / "store")
    method.save(tmp_path / "saved")
    loaded = LoGra.load(tmp_path / "saved", model, rows)
    alone = LoGra.load(tmp_path / "saved", model)
    for found in (loaded, alone):
        assert np.array_equal(found.search(rows[:2], 3).scores, method.search(rows[:2], 3).scores)
    assert np.array_equal(loaded.explain(0, 1).scores, method.explain(0, 1).scores)
    with pytest.raises(InputError, match="without its rows"):
        alone.explain(0, 1)
    assert LoGra.load(method.whiten().save(tmp_path / "white"), model, rows).whitened_


def test_conv_layers_are_logged() -> None:
    X, y = torch.randn(10, 1, 4, 4), torch.arange(10) % 3
    method = exact().fit(tiny_conv(), (X, y))
    assert method.score((X[:2], y[:2])).scores.shape == (2, 10)
    with pytest.raises(InputError, match="positions for 1 token"):
        exact(unit="token").fit(tiny_conv(), (X, y))


def test_a_fault_at_any_write_resumes_to_the_same_bytes(tmp_path: Path, faults) -> None:
    """Kill at every durable write of a log and a score pass; each time the rerun equals the calm run."""
    model, rows = tiny_gpt2(n_layer=1), token_rows(4)

    def trace(folder: Path) -> np.ndarray:
        method = LoGra(3, shards=2, modules=["*mlp.c_fc"]).fit(model, rows, store=folder)
        return method.score(rows[:2], store=folder).scores

    events = faults.at()
    calm = trace(tmp_path / "calm")
    faults.off()
    assert len(events) > 16
    for number, point in enumerate(events, 1):
        folder = tmp_path / str(number)
        faults.at(number)
        with pytest.raises(faults.Killed):
            trace(folder)
        faults.off()
        assert np.array_equal(trace(folder), calm), point


def test_kill_minus_nine_repeats_one_shard(tmp_path: Path, monkeypatch) -> None:
    """A real process killed by the kernel when its second shard is on disk; another finishes the work."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from attribution_models import tiny_gpt2, token_rows
from glasshouse.attribution.logra import LoGra
from glasshouse.runtime import files

def hook(stage, path):
    if stage == "after" and path.name == "log-00001.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)

files.fault_hook = hook
LoGra(3, shards=4).fit(tiny_gpt2(), token_rows(8), store={str(tmp_path / "killed")!r})
"""
    dead = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    made, original = [], sketching_module.write_shard
    monkeypatch.setattr(sketching_module, "write_shard", lambda f, n, s: made.append(n) or original(f, n, s))
    model, rows = tiny_gpt2(), token_rows(8)
    resumed = LoGra(3, shards=4).fit(model, rows, store=tmp_path / "killed")
    assert made == [2, 3]
    whole = LoGra(3, shards=4).fit(model, rows, store=tmp_path / "whole")
    assert np.array_equal(resumed.score(rows[:2]).scores, whole.score(rows[:2]).scores)
    for path in sorted((tmp_path / "whole" / "log" / "sketches").glob("*.npy")):
        assert (tmp_path / "killed" / "log" / "sketches" / path.name).read_bytes() == path.read_bytes()
