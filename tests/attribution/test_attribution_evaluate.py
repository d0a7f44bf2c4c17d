"""Evaluation on cases whose answer is known in closed form, and the slow oracles against dense algebra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import EKFAC, ScoreTable, TensorUnits, TokenUnits, bm25_filter, bm25_scores
from glasshouse.attribution.ekfac import (
    GaussNewton,
    canary_search,
    conjugate_gradient,
    finetuned_response,
    lissa,
    pbrf_influence,
)
from glasshouse.attribution.evaluate import (
    RetrainBank,
    bm25_recall,
    lds,
    randomised,
    randomised_agreement,
    recall_at,
    recall_of,
    split_half_ceiling,
    top_overlap,
)
from glasshouse.attribution.objectives import ClassLoss, SquaredLoss, TokenLoss, measure
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError


def table(scores: np.ndarray) -> ScoreTable:
    q, n = scores.shape
    return ScoreTable(
        scores, tuple(f"q{i}" for i in range(q)), tuple(f"r{i}" for i in range(n)), {"n_train": n}
    )


def additive(effects: np.ndarray, noise: float = 0.0):
    """A training function whose measurement is the sum of known effects: scores equal to them have LDS 1."""

    def train(rows: list[int], seed: int) -> np.ndarray:
        error = np.random.default_rng(seed).normal(size=len(effects)) * noise
        return effects[:, rows].sum(1) + error

    return train


def test_lds_of_the_true_effects_is_one_and_of_noise_is_zero() -> None:
    g = np.random.default_rng(0)
    effects = g.normal(size=(30, 40))
    bank = RetrainBank.build(additive(effects), 40, subsets=60, seeds=2)
    assert lds(table(effects), bank).value == pytest.approx(1.0)
    assert lds(table(-effects), bank).value == pytest.approx(-1.0)
    unrelated = lds(table(g.normal(size=(30, 40))), bank)
    # 30 queries of rank correlations with SD 1/sqrt(59): five standard errors.
    assert abs(unrelated.value) < 5 / np.sqrt(59 * 30)
    assert split_half_ceiling(bank).value == pytest.approx(1.0)


def test_the_ceiling_falls_with_the_noise_of_retraining() -> None:
    effects = np.random.default_rng(0).normal(size=(20, 40))
    noisy = RetrainBank.build(additive(effects, noise=5.0), 40, subsets=60, seeds=2)
    assert split_half_ceiling(noisy).value < 0.6
    assert not split_half_ceiling(RetrainBank.build(additive(effects), 40, subsets=4, seeds=1)).defined


def test_a_killed_bank_goes_on_and_another_is_refused(tmp_path: Path, monkeypatch) -> None:
    effects, calls = np.random.default_rng(0).normal(size=(3, 8)), []
    build = additive(effects, noise=1.0)

    def counted(rows: list[int], seed: int) -> np.ndarray:
        calls.append(seed)
        return build(rows, seed)

    calm = RetrainBank.build(build, 8, subsets=4, seeds=2)

    def kill(stage: str, path: Path) -> None:
        if stage == "before" and path.name == "f-0002-01.npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "fault_hook", kill)
    with pytest.raises(KeyboardInterrupt):
        RetrainBank.build(counted, 8, subsets=4, seeds=2, store=tmp_path)
    monkeypatch.setattr(files, "fault_hook", None)
    again = RetrainBank.build(counted, 8, subsets=4, seeds=2, store=tmp_path)
    assert np.array_equal(again.values, calm.values) and len(calls) == 9  # one of eight repeated
    with pytest.raises(StaleError):
        RetrainBank.build(build, 8, subsets=5, seeds=2, store=tmp_path)
    with pytest.raises(NumericalError, match="subset 0"):
        RetrainBank.build(lambda rows, seed: np.array([np.nan]), 8, subsets=2)
    with pytest.raises(InputError):
        RetrainBank.build(build, 8, alpha=1.0)


def test_recall_counts_hits_and_breaks_ties_at_random() -> None:
    assert recall_at(["a", "b", "c"], {"a", "c", "x"}, k=2) == 0.5
    with pytest.raises(InputError):
        recall_at(["a"], set())
    flat = table(np.zeros((200, 50)))
    found = recall_of(flat, {"r0", "r1", "r2", "r3", "r4"}, k=10)
    # Nothing but ties: the expectation is 10/50; hypergeometric SD of one query is .165.
    assert abs(found.value - 0.2) < 5 * 0.165 / np.sqrt(200)


def test_bm25_by_hand() -> None:
    corpus = ["red fox", "red red dog", "blue cat"]
    scores = bm25_scores(["red", "zebra"], corpus)
    idf, average = np.log(1 + (3 - 2 + 0.5) / 2.5), 7 / 3
    by_hand = [idf * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * n / average)) for tf, n in ((1, 2), (2, 3))]
    np.testing.assert_allclose(scores[0], [*by_hand, 0.0])
    assert not scores[1].any()
    assert bm25_filter(["red"], corpus, keep=1) == [[1]]
    assert bm25_recall(["red"], corpus, ["a", "b", "c"], {"b"}, k=1).value == 1.0
    assert np.array_equal(bm25_scores([[4, 5]], [[4], [6]])[0] > 0, [True, False])


def test_controls_tell_a_constant_method_from_a_good_one(mlp, classes) -> None:
    asked = (classes[0][:8], classes[1][:8])
    scores = EKFAC().fit(mlp, classes).score(asked)
    same = table(np.tile(np.arange(24.0), (3, 1)))
    assert top_overlap(same, 5) == 1.0 > top_overlap(scores, 5)
    shuffled = EKFAC().fit(randomised(mlp), classes).score(asked)
    assert randomised_agreement(scores, scores).value == pytest.approx(1.0)
    assert abs(randomised_agreement(scores, shuffled).value) < 0.6


def dense(operator: GaussNewton, shapes: dict[str, tuple[int, int]]) -> torch.Tensor:
    """The matrix of an operator, column by column."""
    size = sum(o * i for o, i in shapes.values())
    eye, parts, start = torch.eye(size), {}, 0
    for name, (o, i) in shapes.items():
        parts[name] = eye[:, start : start + o * i].reshape(size, o, i)
        start += o * i
    return torch.cat([v.flatten(1) for v in operator(parts).values()], 1)


@pytest.mark.parametrize("kind", ["classes", "tokens"])
def test_gauss_newton_is_the_expected_outer_product_of_sampled_gradients(kind: str, mlp, classes) -> None:
    """G = sum_y p(y) g_y g_y^T: brute force over all labels of one-token rows or classes."""
    from glasshouse.attribution.stages.passes import layer_gradients
    from glasshouse.corpora.rows import TokenRow

    if kind == "classes":
        model, objective, labels = mlp, ClassLoss(), range(3)
        units = TensorUnits(classes[0][:4], classes[1][:4])
        variants = [TensorUnits(units.inputs, torch.full((4,), y)) for y in labels]
        with torch.no_grad():
            p = torch.softmax(model(units.inputs), 1)
    else:
        model, objective, labels = tiny_gpt2(n_layer=1, n_embd=4), TokenLoss(), range(23)
        units = TokenUnits([TokenRow((3, 5, 7), (-100, -100, 7), "a"), TokenRow((9, 2), (-100, 2), "b")])
        variants = [
            TokenUnits([TokenRow(r.ids, (*[-100] * (len(r) - 1), y), r.row_id) for r in units.rows])
            for y in labels
        ]
        with torch.no_grad():
            logits = [model(torch.tensor([r.ids[:-1]])).logits[0, -1] for r in units.rows]
        p = torch.softmax(torch.stack(logits), 1)
    method = EKFAC("identity", label_mode="empirical").fit(model, units, objective=objective)
    flat = [
        torch.cat(
            [v.flatten(1) for v in layer_gradients(method._job(u, objective), range(len(u))).values()], 1
        )
        for u in variants
    ]
    expected = sum(torch.einsum("n,na,nb->ab", p[:, y], flat[y], flat[y]) for y in labels) / len(units)
    shapes = {m.name: (m.out_features, m.in_features) for m in method.tracked_}
    G = dense(GaussNewton(model, units, objective, method.names_), shapes)
    torch.testing.assert_close(G, expected.detach(), atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


def test_cg_and_lissa_solve_the_same_system(mlp, classes) -> None:
    units = TensorUnits(*classes)
    method = EKFAC(damping=0.5).fit(mlp, units)
    operator = GaussNewton(mlp, units, ClassLoss(), method.names_, damping=0.5)
    shapes = {m.name: (m.out_features, m.in_features) for m in method.tracked_}
    g = torch.Generator().manual_seed(0)
    b = {name: torch.randn(2, o, i, generator=g) for name, (o, i) in shapes.items()}
    exact = torch.linalg.solve(
        dense(operator, shapes).double(), torch.cat([v.flatten(1) for v in b.values()], 1).T.double()
    ).T
    cg = conjugate_gradient(operator, b, iterations=100, tolerance=1e-6)
    steps = lissa(operator, b, scale=6.0, iterations=150)
    for solved in (cg, steps):
        x = torch.cat([v.flatten(1) for v in solved.x.values()], 1).double()
        torch.testing.assert_close(x, exact, atol=2e-3 * float(exact.abs().max()), rtol=1e-2)
    with pytest.raises(InputError, match="diverges"):
        lissa(operator, b, scale=0.3, iterations=60)
    from glasshouse.attribution.stages.passes import Tensors

    def precondition(v: Tensors) -> Tensors:
        return {k: method.factors_[k].precondition(part.clone(), 0.5) for k, part in v.items()}

    faster = conjugate_gradient(operator, b, preconditioner=precondition, iterations=100, tolerance=1e-6)
    assert float(faster.residual.max()) < 1e-4


def test_pbrf_by_cg_and_by_fine_tuning_agree_on_ridge_regression() -> None:
    """Quadratic loss: the finite step is linear in eps, so both ways must give one number."""
    g = torch.Generator().manual_seed(0)
    units = TensorUnits(torch.randn(30, 4, generator=g), torch.randn(30, 2, generator=g))
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    method = EKFAC(damping=0.2).fit(model, units)
    asked = units.subset([1, 2])
    f = measure("output")
    by_cg = pbrf_influence(method, asked, [5], f, tolerance=1e-7)
    assert by_cg.residual.max() < 1e-5
    # The pushed row's own curvature enters at second order in eps.
    tuned = finetuned_response(method, asked, 5, f, eps=1e-4, tolerance=1e-3)
    assert tuned.reliable
    np.testing.assert_allclose(tuned.change, by_cg.scores[:, 0], rtol=2e-2)
    assert isinstance(method.objective_, SquaredLoss)


def test_canary_search_finds_the_row_that_taught_the_token() -> None:
    """One row alone holds the pair (7 -> 19); after training, its token must rank first for that query."""
    from glasshouse.corpora.rows import TokenRow

    g = torch.Generator().manual_seed(3)
    rows = [r for r in token_rows(40, seed=5, prompt=1) if 19 not in r.ids]
    planted = TokenRow((3, 7, 19, 4), (-100, 7, 19, 4), "planted")
    rows.insert(11, planted)
    model = tiny_gpt2(n_embd=16).train(False)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    units, loss = TokenUnits(rows), TokenLoss()
    for _ in range(40):
        order = torch.randperm(len(units), generator=g).tolist()
        optimiser.zero_grad()
        loss(model, units.batch(order)).sum().div(len(units)).backward()
        optimiser.step()
    method = EKFAC().fit(model, units)
    found = canary_search(method, [TokenRow((5, 7, 19), (-100, -100, 19), "ask")], shortlist=15)
    assert found.rows[0] == "planted" and found.tokens[0] == 2
    assert len(found.rows) == 15 and list(found.scores) == sorted(found.scores, reverse=True)
