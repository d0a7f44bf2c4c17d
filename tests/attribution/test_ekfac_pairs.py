"""The pair cache saves passes and changes no number; layer gradients do not care where the ones live."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, tiny_llama, token_rows
from torch import nn

from glasshouse.attribution import EKFAC
from glasshouse.attribution.stages.contract import Query, outer, row_scores, squared_norms, token_scores
from glasshouse.attribution.stages.pairs import PairCache, budget_bytes, fingerprint
from glasshouse.attribution.stages.passes import gram_, mirrored
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import Capture, Pair


def forwards(model: nn.Module) -> list[int]:
    """Counts the model's forward passes with gradients."""
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1) if torch.is_grad_enabled() else None)
    return seen


@pytest.mark.parametrize("label_mode", ["sampled", "empirical"])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_any_budget_gives_the_same_scores_to_the_bit(family, label_mode) -> None:
    """No budget, one for some batches, one for all: the factors and scores are equal, the passes fewer."""
    model, rows = family(), token_rows(12)
    counted, found = forwards(model), []
    for budget in (0, 60_000, "auto"):
        counted.clear()
        method = EKFAC(label_mode=label_mode, batch_rows=3, pair_cache=budget).fit(model, rows)
        table = method.score(rows[:2], row_norm="self", per_module=True)
        found.append((len(counted), table, method))
    (none, reference, plain), (some, *_), (least, *_) = found
    assert none > some > least
    for _, table, method in found[1:]:
        assert np.array_equal(table.scores, reference.scores)
        for name, factor in method.factors_.items():
            assert torch.equal(factor.Lambda, plain.factors_[name].Lambda)
            assert np.array_equal(table.per_module[name], reference.per_module[name])


def test_memory_is_bounded_and_let_go() -> None:
    model, rows = tiny_gpt2(), token_rows(12)
    sampled = EKFAC(batch_rows=3).fit(model, rows)
    assert sampled._cache.bytes == 0  # scores need other labels
    method = EKFAC(label_mode="empirical", batch_rows=3, pair_cache=100_000).fit(model, rows)
    assert 0 < method._cache.bytes <= 100_000
    before = method.score(rows[:2]).scores
    elsewhere = copy.copy(method._cache)  # as pickle does: what another process would get
    assert elsewhere.budget == 0 and elsewhere.bytes == 0
    method.release()
    assert method._cache.bytes == 0
    assert np.array_equal(method.score(rows[:2]).scores, before)
    tiny = EKFAC(label_mode="empirical", batch_rows=3, pair_cache=10).fit(model, rows)
    assert tiny._cache.bytes == 0


def test_pairs_of_an_older_state_are_not_used() -> None:
    """Weights written behind autograd's back, modes and hooks all make the kept pairs stale."""
    model, rows = tiny_gpt2(), token_rows(8)
    method = EKFAC(label_mode="empirical", damping=0.01).fit(model, rows)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.data.mul_(1.5)
    changed = method.score(rows[:2]).scores
    method.release()
    assert np.array_equal(method.score(rows[:2]).scores, changed)
    marks = [fingerprint(model)]
    handle = model.transformer.register_forward_hook(lambda *_: None)
    marks.append(fingerprint(model))
    handle.remove()
    model.train()
    marks.append(fingerprint(model))
    model.eval()
    assert fingerprint(model) == marks[0] and len(set(marks)) == 3


def test_budgets() -> None:
    assert budget_bytes(7, torch.device("cpu")) == 7
    assert 0 <= budget_bytes("auto", torch.device("cpu")) <= 4 << 30
    assert not PairCache(0).put("key", {"m": Pair(torch.ones(1, 1, 1), torch.ones(1, 1, 1))})
    for wrong in (-1, "much"):
        with pytest.raises(InputError, match="pair_cache"):
            EKFAC(pair_cache=wrong).fit(nn.Linear(3, 2), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))


def test_layers_that_read_one_activation_are_counted_once() -> None:
    a, g = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
    cache = PairCache(4 * (a.numel() + 2 * g.numel()))
    assert cache.put("key", {"q": Pair(a, g), "k": Pair(a.view(2, 3, 4), g.clone())})
    assert cache.bytes == cache.budget


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_ones_left_out_are_ones_put_in(tokens: int, shape: tuple[int, int]) -> None:
    """Every contraction of (a, g, ones) equals the one of ([a, 1], g): rounding of short float64 sums."""
    g = torch.Generator().manual_seed(tokens)
    o, i = shape
    a = torch.randn(4, tokens, i, generator=g, dtype=torch.float64)
    b = torch.randn(4, tokens, o, generator=g, dtype=torch.float64)
    bare, whole = Pair(a, b, ones=True), Pair(torch.cat([a, torch.ones_like(a[..., :1])], 2), b)
    weight = torch.rand(o, i + 1, generator=g, dtype=torch.float64)
    full = Query(torch.randn(3, o, i + 1, generator=g, dtype=torch.float64))
    thin = Query(left=full.matrix[..., :2].contiguous(), right=torch.rand(3, 2, i + 1, dtype=torch.float64))
    same = torch.testing.assert_close
    assert bare.in_features == whole.in_features == i + 1
    same(bare.gradient(), whole.gradient())
    same(outer(bare), outer(whole))
    same(squared_norms(bare), squared_norms(whole))
    same(squared_norms(bare, weight), squared_norms(whole, weight))
    for query in (full, full.parted(ones=True), thin):
        same(query.matrix, (thin if query is thin else full).matrix)
        for score in (row_scores, token_scores):
            same(score(query, bare), score(query, whole))
        same(row_scores(query.at(1), bare), row_scores(query, whole)[1:2])


def test_capture_without_ones_shares_the_activation() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).eval()
    x = torch.randn(5, 3)
    with Capture(model, ["0", "2"], ones=False) as capture:
        bare = capture.gradients(model(x).square().sum())
    with Capture(model, ["0", "2"]) as capture:
        whole = capture.gradients(model(x).square().sum())
    assert bare["0"].ones and not bare["2"].ones and not whole["0"].ones
    assert bare["0"].a.data_ptr() == x.data_ptr()
    for name in bare:
        torch.testing.assert_close(bare[name].gradient(), whole[name].gradient())


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
def test_gram_adds_the_upper_triangle(width: int) -> None:
    x = torch.randn(9, width, dtype=torch.float64)
    total = torch.zeros(width, width, dtype=torch.float64)
    gram_(total, x[:4])
    gram_(total, x[4:])
    torch.testing.assert_close(mirrored(total), x.T @ x)


def test_stage_seconds_are_learned() -> None:
    model, rows = tiny_gpt2(n_layer=1), token_rows(6)
    method = EKFAC().fit(model, rows)
    assert list(method.seconds_) == ["covariance", "eigen", "lambda"]
    method.score(rows[:1])
    assert list(method.seconds_) == ["covariance", "eigen", "lambda", "scores"]
    assert all(value >= 0 for value in method.seconds_.values())
    assert list(EKFAC("identity").fit(model, rows).seconds_) == []
