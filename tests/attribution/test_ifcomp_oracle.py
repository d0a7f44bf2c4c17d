"""IF-COMP against brute force: explicit Jacobians, one label at a time, models trained on one more row."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from glasshouse.attribution import EKFAC
from glasshouse.attribution.ifcomp import Complexity, IFComp, log_normaliser
from glasshouse.attribution.ifcomp.results import label_norms


def explicit_gradients(model: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients of every logit by autograd, one at a time: [n, C, out, in + 1] of each module."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for point in x:
        z = model(point[None])[0]
        for name in names:
            module = model.get_submodule(name)
            rows = []
            for k in range(len(z)):
                parts = torch.autograd.grad(z[k], [module.weight, module.bias], retain_graph=True)
                rows.append(torch.cat([parts[0].flatten(1), parts[1][:, None]], 1))
            found[name].append(torch.stack(rows))
    return {name: torch.stack(rows) for name, rows in found.items()}


def brute_force(method: IFComp, model: nn.Module, x: Tensor) -> np.ndarray:
    """`K` [n, C, C]: each logit's gradient against the preconditioned gradient of every other."""
    total: Any = 0.0
    for name, J in explicit_gradients(model, x, method.names_).items():
        solved = method.factors_[name].precondition(J, method.damping)
        total = total + torch.einsum("ncoi,ndoi->ncd", J, solved)
    return total.double().numpy()


def convolutional() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=2), nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval(), (6,)),
    "convolutions": (convolutional, (1, 6, 6)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)).eval(), (3, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("damping", ["auto", 0.5])
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_gram_matrix_is_that_of_explicit_jacobians(kind: str, damping: Any, temperature: float) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    model, x, y = make(), torch.randn(12, *shape), torch.randint(0, 3, (12,))
    method = IFComp(temperature, damping=damping, batch_rows=5).fit(model, (x, y))
    found, expected = method.complexity(x[:4]), brute_force(method, model, x[:4])
    # Float32 sums of a few hundred terms.
    np.testing.assert_allclose(found.gram, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_norms_are_those_of_each_label_s_own_loss(temperature: float) -> None:
    """`g_k^T F^-1 g_k` with g_k the gradient of the tempered cross-entropy, not through any K."""
    torch.manual_seed(1)
    model, x, y = MODELS["mlp"][0](), torch.randn(10, 6), torch.randint(0, 3, (10,))
    method = IFComp(temperature).fit(model, (x, y))
    found = method.complexity(x[:3])
    for n in range(3):
        for k in range(3):
            loss = F.cross_entropy(model(x[n : n + 1]) / temperature, torch.tensor([k]))
            total = 0.0
            for name in method.names_:
                module = model.get_submodule(name)
                w, b = torch.autograd.grad(loss, [module.weight, module.bias], retain_graph=True)
                G = torch.cat([w, b[:, None]], 1)
                total += float((G * method.factors_[name].precondition(G, "auto")).sum())
            assert found.norms[n, k] * found.parameters == pytest.approx(total, rel=2e-4)


def test_the_fisher_is_that_of_the_tempered_loss() -> None:
    """With one linear layer and many draws the trace of Lambda is E |a|^2 |p_T - e_y|^2 / T^2."""
    torch.manual_seed(2)
    model, x = nn.Linear(3, 4).eval(), torch.randn(400, 3)
    T, samples = 5.0, 8
    method = IFComp(T, samples=samples).fit(model, (x, torch.zeros(400, dtype=torch.long)))
    p = (model(x).detach() / T).softmax(1)
    a = torch.cat([x, torch.ones(400, 1)], 1).square().sum(1)
    expected = (a * (p * (1 - p)).sum(1)).mean() / T**2  # trace of the covariance of e_y
    found = float(method.factors_[""].Lambda.sum())
    # 3,200 draws; the spread of |e_y - p|^2 |a|^2 around its mean is about its size: 4 standard errors.
    assert found == pytest.approx(float(expected), rel=4 / (400 * samples) ** 0.5)


def test_temperature_one_with_ekfac_s_factors_is_self_influence(mlp: nn.Module, classes: Any) -> None:
    """At T = 1 the norm of the given label over N is EK-FAC's self score: two ways to the same number."""
    ekfac = EKFAC().fit(mlp, classes)
    method = IFComp(1.0).fit(mlp, classes, factors=ekfac)
    np.testing.assert_allclose(
        method.self_score() * method._parameters(), ekfac.self_score(), rtol=1e-4, atol=1e-7
    )


# -- [ifcomp/t6]: training on one more row ------------------------------------------------------------------


def _refitted(x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    """Weights [3, 3] (bias last) of a multinomial logistic regression at its optimum, by Newton's method."""
    a, Y, w = np.c_[x, np.ones(len(x))], np.eye(3)[y], np.zeros((3, 3))
    for _ in range(12):
        p = softmax(a @ w.T, axis=1)
        gradient = (p - Y).T @ a + decay * w
        W = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
        H = np.einsum("ncd,ni,nj->cidj", W, a, a).reshape(9, 9) + decay * np.eye(9)
        w = w - np.linalg.solve(H, gradient.ravel()).reshape(3, 3)
    assert np.abs(gradient).max() < 1e-6, "not at the optimum"
    return w


def _plane(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of three overlapping classes."""
    draw = np.random.default_rng(seed)
    centres = np.array([[0.0, 1.5], [1.3, -0.8], [-1.3, -0.8]])
    y = np.arange(n) % 3
    return centres[y] + draw.normal(size=(n, 2)), y


def _linear(w: np.ndarray) -> nn.Module:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w[:, :2])), model.bias.copy_(torch.from_numpy(w[:, 2]))
    return model.eval()


def test_pnml_of_logistic_regression_follows_refitting() -> None:
    """[ifcomp/t6] N = 40 points in the plane: hindsight probabilities against those of 3 refits a point.

    The weight decay is the damping; alpha is P, so that one more row counts as much as the others.
    """
    (x, y), (asked, _), decay = _plane(40, seed=0), _plane(60, seed=1), 1.0
    w = _refitted(x, y, decay)
    brute = np.zeros((60, 3))
    for n in range(60):
        for k in range(3):
            again = _refitted(np.r_[x, asked[n : n + 1]], np.r_[y, k], decay)
            brute[n, k] = softmax(np.r_[asked[n], 1.0] @ again.T)[k]
    regret, brute = np.log(brute.sum(1)), brute / brute.sum(1, keepdims=True)
    rows = torch.from_numpy(x).float(), torch.from_numpy(y)
    method = IFComp(1.0, damping=decay / 40, samples=20).fit(_linear(w), rows)
    found = method.complexity(torch.from_numpy(asked).float())
    told = found.hindsight(float(found.parameters))
    assert np.corrcoef(told.ravel(), brute.ravel())[0, 1] >= 0.9
    assert np.abs(told - brute).mean() < np.abs(found.proba - brute).mean(), "no better than doing nothing"
    # The linear step overshoots where the regret is large: the order of the regrets is kept only loosely.
    order = log_normaliser(found, float(found.parameters))
    assert spearmanr(order, regret).statistic >= 0.5
    assert spearmanr(np.random.default_rng(0).permutation(order), regret).statistic < 0.4, "the control"
    other = np.random.default_rng(0).permutation(told)
    assert np.corrcoef(other.ravel(), brute.ravel())[0, 1] < 0.5, "the control: other points"


# -- results on plain arrays ---------------------------------------------------------------------------------


def _complexity(n: int = 5, C: int = 4, seed: int = 0) -> Complexity:
    draw = np.random.default_rng(seed)
    J = draw.normal(size=(n, C, 7))
    z = 3 * draw.normal(size=(n, C))
    lse = np.log(np.exp(z).sum(1))
    labels = np.tile(np.arange(C), (n, 1))
    ids = tuple(str(i) for i in range(n))
    return Complexity(ids, z, J @ J.transpose(0, 2, 1), labels, lse, 2.0, 100, 28, z[:, 1])


def test_alpha_zero_is_the_model_and_hindsight_is_normalised() -> None:
    found = _complexity()
    for space in ("logit", "prob"):
        np.testing.assert_allclose(found.hindsight(0.0, space), found.proba, rtol=1e-12)
        np.testing.assert_allclose(found.hindsight(50.0, space).sum(1), 1.0, rtol=1e-12)
    raised = found.hindsight(50.0, "prob")
    np.testing.assert_allclose(
        raised,
        found.proba * (1 + 0.5 * found.norms) / (found.proba * (1 + 0.5 * found.norms)).sum(1)[:, None],
    )


def test_a_shift_of_all_logits_changes_nothing() -> None:
    """Ground truth of the algebra: K with a constant direction added leaves every norm as it was."""
    found = _complexity()
    p = found.tempered
    np.testing.assert_allclose(
        label_norms(found.gram + 5.0, p, 2.0), label_norms(found.gram, p, 2.0), rtol=1e-10, atol=1e-12
    )


def test_complexity_is_the_expected_norm_and_the_code_length_adds_the_loss() -> None:
    found = _complexity()
    np.testing.assert_allclose(found.parametric, (found.tempered * found.norms).sum(1))
    one, ten = found.codelength(), found.codelength(weight=10.0)
    np.testing.assert_allclose(ten - one, 9 * found.loss() / 2.0)
    np.testing.assert_allclose(found.codelength(weight=0.0), found.parametric / 100)
    np.testing.assert_allclose(found.loss(np.ones(5)), found.loss())
    np.testing.assert_allclose(found.loss(), -np.log(found.proba[:, 1]))


def test_results_go_to_disk_and_back(tmp_path: Any) -> None:
    found = _complexity()
    again = Complexity.load(found.save(tmp_path))
    np.testing.assert_array_equal(again.gram, found.gram)
    assert again.ids == found.ids and again.temperature == 2.0 and again.n_train == 100
    np.testing.assert_array_equal(again.codelength(), found.codelength())
    assert list(found.to_frame().columns) == ["id", "complexity", "label", "probability"]
    copied = copy.copy(found)
    assert copied.parametric.max() == found.to_frame()["complexity"].max()
