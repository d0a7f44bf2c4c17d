"""What must not change a score: batches, padding, shards, order, disk, a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, tiny_llama, token_rows

from glasshouse.attribution import EKFAC, ScoreTable, TokenUnits
from glasshouse.attribution.stages.contract import low_rank, row_scores
from glasshouse.subjects.capture import Pair


def close(a: np.ndarray, b: np.ndarray, share: float = 1e-4) -> None:
    np.testing.assert_allclose(a, b, atol=share * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_batches_padding_shards_and_order_change_nothing(family) -> None:
    model, rows = family(), token_rows(12)
    asked = rows[:3]
    reference = EKFAC(batch_rows=1).fit(model, rows).score(asked).scores
    close(EKFAC(batch_rows=5).fit(model, rows).score(asked).scores, reference)
    close(EKFAC(shards=4, batch_rows=3).fit(model, rows).score(asked).scores, reference)
    left = TokenUnits(rows, side="left")
    close(EKFAC(batch_rows=5).fit(model, left).score(TokenUnits(asked, side="left")).scores, reference)
    order = [7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6]
    shuffled = EKFAC(batch_rows=5).fit(model, [rows[i] for i in order]).score(asked).scores
    close(shuffled[:, np.argsort(order)], reference)


def test_sampled_labels_differ_from_data_labels_and_follow_the_seed() -> None:
    model, rows = tiny_gpt2(), token_rows(12)
    one = EKFAC(seed=0).fit(model, rows).factors_["transformer.h.0.mlp.c_fc"].Lambda
    again = EKFAC(seed=0).fit(model, rows).factors_["transformer.h.0.mlp.c_fc"].Lambda
    other = EKFAC(seed=1).fit(model, rows).factors_["transformer.h.0.mlp.c_fc"].Lambda
    empirical = EKFAC(label_mode="empirical").fit(model, rows).factors_["transformer.h.0.mlp.c_fc"].Lambda
    assert torch.equal(one, again)
    assert not torch.allclose(one, other) and not torch.allclose(one, empirical)


def test_token_parts_add_up_to_row_scores_and_to_module_parts() -> None:
    model, rows = tiny_gpt2(), token_rows()
    method = EKFAC(batch_rows=4).fit(model, rows)
    tokens = method.score(rows[:2], unit="token")
    whole = method.score(rows[:2])
    grouped = tokens.group([name.rpartition("#")[0] for name in tokens.train_ids])
    assert grouped.train_ids == whole.train_ids
    close(grouped.scores, whole.scores)
    one = method.explain(1, 4)
    close(sum(one.per_module.values()), one.scores)
    assert one.scores.shape == (1, len(rows[4]))
    assert float(method.per_token(1, 4).sum()) == pytest.approx(float(whole.scores[1, 4]), rel=1e-3)


def test_row_norms_and_aggregations_do_what_they_say() -> None:
    model, rows = tiny_gpt2(), token_rows()
    method = EKFAC("identity").fit(model, rows)
    table, normed = method.score(rows[:3]), method.score(rows[:3], row_norm="grad")
    self_normed = method.score(rows[:3], row_norm="self")
    norms = np.sqrt(method.self_score() * len(rows))
    close(normed.scores, table.scores / norms)
    close(self_normed.scores, table.scores / norms)  # identity: self-influence is the squared norm
    close(method.score(rows[:3], query_agg="mean").scores, table.scores.mean(0, keepdims=True))
    unit = (table.scores / norms[:3, None]).mean(0, keepdims=True)
    close(method.score(rows[:3], query_agg="unit_mean").scores, unit)
    assert method.score(rows[:1], unwanted=rows[3:4], query_agg="contrast").query_ids == ("contrast",)


def test_ekfac_self_norm_is_the_self_score() -> None:
    model, rows = tiny_gpt2(), token_rows()
    method = EKFAC(batch_rows=4).fit(model, rows)
    plain, normed = method.score(rows[:2]), method.score(rows[:2], row_norm="self")
    close(normed.scores, plain.scores / np.sqrt(method.self_score() * len(rows)), 1e-3)
    # A row's score for its own log-probability is its self score.
    np.testing.assert_allclose(np.diag(plain.scores[:, :2]), method.self_score()[:2], rtol=1e-3)


def test_low_rank_queries_store_less_and_agree() -> None:
    """[ekfac/t5b] Stored queries shrink by out*in / (k (out + in)); rank min(out, in) - 1 already agrees."""
    g = torch.Generator().manual_seed(0)
    V = torch.randn(5, 64, 4, generator=g) @ torch.randn(5, 4, 48, generator=g)
    full, thin = low_rank(V, None, method="full", seed=0), low_rank(V, 8, method="randomized", seed=0)
    assert full.floats / thin.floats == pytest.approx(64 * 48 / (8 * (64 + 48)))
    pair = Pair(torch.randn(6, 3, 48, generator=g), torch.randn(6, 3, 64, generator=g))
    for query in (thin, low_rank(V, 8, method="full", seed=0)):
        torch.testing.assert_close(query.matrix, V, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(row_scores(query, pair), row_scores(full, pair), atol=1e-2, rtol=1e-3)
    rows, model = token_rows(), tiny_gpt2()
    exact = EKFAC().fit(model, rows).score(rows[:2]).scores
    rank1 = EKFAC(query_rank=1).fit(model, rows).score(rows[:2]).scores
    rank6 = EKFAC(query_rank=6, svd="full").fit(model, rows).score(rows[:2]).scores
    errors = [np.abs(r - exact).max() for r in (rank1, rank6)]
    assert errors[1] < errors[0] / 2


def test_save_and_load_keep_every_score(tmp_path: Path) -> None:
    model, rows = tiny_gpt2(), token_rows()
    method = EKFAC(damping=0.01, query_rank=3).fit(model, rows)
    method.save(tmp_path / "fit")
    loaded = EKFAC.load(tmp_path / "fit", model, rows)
    table = method.score(rows[:2], per_module=True)
    assert np.array_equal(loaded.score(rows[:2]).scores, table.scores)
    table.save(tmp_path / "table")
    back = ScoreTable.load(tmp_path / "table", model_hash=method.model_hash_)
    assert np.array_equal(back.scores, table.scores) and back.meta == table.meta
    assert back.per_module.keys() == table.per_module.keys()
    sparse = table.keep_top(3)
    assert sparse.top(0, 3) == table.top(0, 3)


def test_bfloat16_scores_follow_float32() -> None:
    model, rows = tiny_gpt2(), token_rows(16)
    exact = EKFAC("identity").fit(model, rows).score(rows[:2]).scores
    half = EKFAC("identity").fit(tiny_gpt2().bfloat16(), rows).score(rows[:2]).scores
    assert np.corrcoef(exact.ravel(), half.ravel())[0, 1] > 0.98


def test_a_fault_at_any_write_resumes_to_the_same_bytes(tmp_path: Path, faults) -> None:
    """Kill at every durable write of a fit and a score pass; each time the rerun equals the calm run."""
    model, rows = tiny_gpt2(n_layer=1), token_rows(8)

    def trace(folder: Path) -> np.ndarray:
        method = EKFAC(shards=3).fit(model, rows, store=folder)
        return method.score(rows[:2], store=folder).scores

    events = faults.at()
    calm = trace(tmp_path / "calm")
    faults.off()
    assert len(events) > 20
    for number, point in enumerate(events, 1):
        folder = tmp_path / str(number)
        faults.at(number)
        with pytest.raises(faults.Killed):
            trace(folder)
        faults.off()
        assert np.array_equal(trace(folder), calm), point


def test_a_killed_fit_repeats_at_most_one_shard(tmp_path: Path, monkeypatch, faults) -> None:
    from glasshouse.attribution.stages import fitting as module

    model, rows, seen = tiny_gpt2(n_layer=1), token_rows(8), []
    original = module.covariance_shard

    def counted(job, shard):
        if len(seen) == 3:
            seen.append(tuple(shard))
            raise faults.Killed
        seen.append(tuple(shard))
        return original(job, shard)

    monkeypatch.setattr(module, "covariance_shard", counted)
    with pytest.raises(faults.Killed):
        EKFAC(shards=4).fit(model, rows, store=tmp_path)
    EKFAC(shards=4).fit(model, rows, store=tmp_path)
    assert len(seen) == 5 and len(set(seen)) == 4
