"""Scores against brute force: materialised per-row gradients from torch.func, and dense inverses.

A wrong transpose, a mean instead of a sum, padding that leaks, or a token-level square changes these
numbers by far more than float32 rounding, which is what the tolerances allow.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, tiny_llama, token_rows
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call, grad, vmap

from glasshouse.attribution import EKFAC
from glasshouse.attribution.objectives import ClassLoss, TokenLoss
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.units import TensorUnits, TokenUnits
from glasshouse.subjects.capture import as_matrix


def brute(model: nn.Module, names: tuple[str, ...], units, objective) -> dict[str, torch.Tensor]:
    """Row gradients [N, out, in(+1)] by plain autograd, one row at a time, in the layout of the pairs."""
    found: dict[str, list[torch.Tensor]] = {n: [] for n in names}
    for i in range(len(units)):
        model.zero_grad()
        objective(model, units.batch([i])).sum().backward()
        for name in names:
            module = model.get_submodule(name)
            bias = None if getattr(module, "bias", None) is None else module.bias.grad
            found[name].append(as_matrix(module, module.weight.grad, bias).clone())
    return {n: torch.stack(v) for n, v in found.items()}


def images():
    g = torch.Generator().manual_seed(2)
    return TensorUnits(torch.randn(7, 1, 4, 4, generator=g), torch.randint(0, 3, (7,), generator=g))


def cases():
    rows = TokenUnits(token_rows())
    return {
        "gpt2": (tiny_gpt2(), rows, TokenLoss()),
        "llama": (tiny_llama(), rows, TokenLoss()),
        "conv": (tiny_conv(), images(), ClassLoss()),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "conv"])
@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
def test_scores_equal_the_formula_on_materialised_gradients(name: str, strategy: str) -> None:
    model, units, objective = cases()[name]
    method = EKFAC(strategy, label_mode="empirical", batch_rows=4).fit(model, units)
    asked = units.subset([0, 2, 3])
    table = method.score(asked, "loss", per_module=True)
    G = brute(model, method.names_, units, objective)
    expected = torch.zeros(3, len(units), dtype=torch.float64)
    for module, rows in G.items():
        rows = rows.double()
        factor = method.factors_[module]
        if strategy == "identity":
            inverse = rows[[0, 2, 3]]
        elif strategy == "diagonal":
            Lambda = rows.square().mean(0)
            inverse = rows[[0, 2, 3]] / (Lambda + 0.1 * Lambda.mean())
        else:
            Qa, Qs = factor.Qa.double(), factor.Qs.double()
            rotated = Qs.T @ rows @ Qa
            Lambda = (
                rotated.square().mean(0)
                if strategy == "ekfac"
                else torch.outer(factor.extra["ls"].double(), factor.extra["la"].double())
            )
            inverse = Qs @ (rotated[[0, 2, 3]] / (Lambda + 0.1 * Lambda.mean())) @ Qa.T
        part = -(inverse.flatten(1) @ rows.flatten(1).T) / len(units)
        scale = float(part.abs().max())
        np.testing.assert_allclose(table.per_module[module], part, atol=2e-4 * scale)
        expected += part
    np.testing.assert_allclose(table.scores, expected, atol=2e-4 * float(expected.abs().max()))


def test_layer_gradients_equal_vmap_of_grad(mlp: nn.Module, classes) -> None:
    units = TensorUnits(*classes)
    method = EKFAC("identity").fit(mlp, units)
    found = layer_gradients(method._job(units, ClassLoss()), range(len(units)))
    parameters = {k: v.detach() for k, v in mlp.named_parameters()}

    def loss(p, x, y):
        return nn.functional.cross_entropy(functional_call(mlp, p, (x[None],)), y[None], reduction="sum")

    oracle = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *classes)
    for name, G in found.items():
        torch.testing.assert_close(G[:, :, :-1], oracle[f"{name}.weight"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(G[:, :, -1], oracle[f"{name}.bias"], atol=1e-5, rtol=1e-4)


def linear_problem(loss: str, seed: int, n: int = 200, d: int = 20, c: int = 4):
    """A fitted bias-free linear layer: weak teacher, labels drawn from it (or its noisy outputs)."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g) * torch.linspace(0.5, 1.5, d)
    logits = X @ torch.randn(d, c, generator=g) * (0.5 / d**0.5)
    model = nn.Linear(d, c, bias=False)
    nn.init.zeros_(model.weight)
    if loss == "squared":
        y = logits + torch.randn(n, c, generator=g)
    else:
        y = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    f = nn.functional.mse_loss if loss == "squared" else nn.functional.cross_entropy
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=100)

    def closure():
        optimiser.zero_grad()
        value = f(model(X), y) + 0.005 * model.weight.square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return model.eval(), X, y


def output_hessian(model, X, y) -> torch.Tensor:
    """H_n [N, C, C] of the loss in the outputs, float64."""
    z = (X @ model.weight.detach().T).double()
    if y.is_floating_point():
        return torch.eye(z.shape[1], dtype=torch.float64).expand(len(X), -1, -1)
    p = torch.softmax(z, 1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def with_exact_lambda(method: EKFAC, model, X, y) -> EKFAC:
    """EK-FAC with the expectation over labels in place of one draw a row."""
    H, f, X = output_hessian(model, X, y).float(), method.factors_[""], X
    Lambda = torch.einsum("nab,ai,bi,nj->ij", H, f.Qs, f.Qs, (X @ f.Qa).square()) / len(X)
    method.factors_ = {"": Factor("", Lambda, f.Qa, f.Qs)}
    return method


def dense_influence(model, X, y, damping: float, queries: int) -> np.ndarray:
    """`-(1/N) grad f^T (G + damping)^-1 grad L` with the exact Gauss-Newton matrix of a linear layer."""
    H, X = output_hessian(model, X, y), X.double()
    z = X @ model.weight.detach().double().T
    target = y.double() if y.is_floating_point() else nn.functional.one_hot(y, z.shape[1]).double()
    g = (z if y.is_floating_point() else torch.softmax(z, 1)) - target
    size = z.shape[1] * X.shape[1]
    G = torch.einsum("nab,ni,nj->aibj", H, X, X).reshape(size, size) / len(X)
    L = (g.unsqueeze(2) * X.unsqueeze(1)).flatten(1)
    solved = torch.linalg.solve(G + damping * torch.eye(size, dtype=torch.float64), L[:queries].T)
    return -(solved.T @ L.T / len(X)).numpy()


# Per query, the least Spearman over 20 queries. A softmax layer's G is not a Kronecker product, because H_n
# depends on x_n: 0.95 per query is met for squared loss only, and for cross-entropy by the mean over queries.
LEAST = {"squared": (0.95, 0.95), "softmax": (0.85, 0.95)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_linear_layer_against_the_dense_inverse(loss: str, seed: int) -> None:
    """[ekfac/t1a] Spearman with the dense damped inverse; [ekfac/t1b] higher than identity's."""
    model, X, y = linear_problem(loss, seed)
    method = with_exact_lambda(EKFAC().fit(model, (X, y)), model, X, y)
    truth = dense_influence(model, X, y, method.factors_[""].damping("auto"), 20)

    def agreement(m: EKFAC) -> np.ndarray:
        scores = m.score((X[:20], y[:20]), "loss").scores
        return np.array([spearmanr(a, b).statistic for a, b in zip(scores, truth, strict=True)])

    ekfac, identity = agreement(method), agreement(EKFAC("identity").fit(model, (X, y)))
    least, mean = LEAST[loss]
    assert ekfac.min() >= least and ekfac.mean() >= mean, f"min {ekfac.min():.3f}, mean {ekfac.mean():.3f}"
    assert ekfac.mean() > identity.mean()


def test_whitened_linear_regression_is_exact() -> None:
    """[ekfac/t1c] Bias-free linear regression on whitened inputs: equal to the dense inverse to 1e-5.

    G = H (x) E[x x^T] is then a Kronecker product; Lambda is its expectation over the noise.
    """
    g = torch.Generator().manual_seed(0)
    X = torch.linalg.qr(torch.randn(200, 20, generator=g))[0] * 200**0.5
    y = torch.randn(200, 1, generator=g)
    model = nn.Linear(20, 1, bias=False)
    method = with_exact_lambda(EKFAC(damping=0.1).fit(model, (X, y)), model, X, y)
    dense = dense_influence(model, X, y, 0.1, 10)
    scores = method.score((X[:10], y[:10]), "loss").scores
    np.testing.assert_allclose(scores, dense, atol=1e-5 * float(np.abs(dense).max()))


def test_upweighting_a_helpful_row_raises_the_measurement(mlp: nn.Module, classes) -> None:
    """The sign of the wing, checked by a real step down the row's loss along the preconditioned direction."""
    from glasshouse.attribution.ekfac.pbrf import perturbed
    from glasshouse.attribution.objectives import measure

    units = TensorUnits(*classes)
    method = EKFAC(label_mode="empirical").fit(mlp, units)
    asked = units.subset([0])
    table = method.score(asked, "margin")
    f = measure("margin")
    best, worst = int(table.scores[0].argmax()), int(table.scores[0].argmin())
    for row, sign in ((best, 1), (worst, -1)):
        L = layer_gradients(method._job(units, ClassLoss()), [row])
        push = {k: -method.factors_[k].precondition(v, "auto")[0] / len(units) for k, v in L.items()}
        step = 1e-3
        moved = perturbed(method, push, step)
        with torch.no_grad():
            change = float(f(moved, asked.batch([0])) - f(mlp, asked.batch([0]))) / step
        assert np.sign(change) == sign
        assert change == pytest.approx(float(table.scores[0, row]), rel=0.05)


def test_kronfluence_convention_is_the_negative_times_n(mlp: nn.Module, classes) -> None:
    from glasshouse.attribution import ScoreTable

    table = EKFAC("identity").fit(mlp, classes).score((classes[0][:2], classes[1][:2]), "loss")
    theirs = table.to_kronfluence()
    assert theirs[0, 0] > 0  # grad f . grad loss of the same row with itself
    back = ScoreTable.from_kronfluence(
        theirs, n_train=24, query_ids=table.query_ids, train_ids=table.train_ids
    )
    np.testing.assert_allclose(back.scores, table.scores, rtol=1e-6)
