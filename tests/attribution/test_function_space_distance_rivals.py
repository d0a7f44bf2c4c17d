"""The other estimators against brute force, and the uses of a distance against dense linear algebra."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fsd_models import mlp, moved, network, true_distance
from torch import nn
from torch.func import functional_call, jacrev

from glasshouse.attribution.function_space_distance import (
    Breakdown,
    ContinualTrainer,
    CoresetDistance,
    EWCDistance,
    FSDInfluence,
    FSDSketch,
    GGNDistance,
    L2Distance,
    NTKDistance,
    penalty,
)


@pytest.fixture
def rows():
    model, x = network("mlp")
    y = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(0))
    return model, x, y


def _flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _jacobian(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[n, C, P] in the order of the parameters."""
    named = dict(model.named_parameters())
    found = jacrev(lambda p: functional_call(model, p, (x,)))(named)
    return torch.cat([found[name].flatten(2).detach() for name in named], 2)


def test_coreset_of_all_rows_is_the_truth(rows):
    model, x, y = rows
    other = moved(model)
    assert CoresetDistance(None).fit(model, x).distance(other).item() == pytest.approx(
        true_distance(model, other, x)
    )
    kl = nn.functional.kl_div(other(x).log_softmax(1), model(x).log_softmax(1), log_target=True,
                              reduction="batchmean")  # fmt: skip
    assert CoresetDistance(None).fit(model, (x, y)).distance(other, rho="kl").item() == pytest.approx(
        kl.item()
    )
    squares = 0.5 * (other(x).softmax(1) - model(x).softmax(1)).square().sum(1).mean()
    found = CoresetDistance(None).fit(model, (x, y)).distance(other, rho="prob_l2")
    assert found.item() == pytest.approx(squares.item(), rel=1e-5)


def test_a_coreset_is_even_over_labels_and_not_over_places(rows):
    model, x, y = rows
    kept = CoresetDistance(12).fit(model, (x, y)).rows_
    assert torch.bincount(kept.targets).tolist() == [4, 4, 4]
    other = CoresetDistance(12, seed=1).fit(model, (x, y)).rows_
    assert set(kept.ids) != set(other.ids)


def test_ntk_is_the_jacobian(rows):
    model, x, _ = rows
    other = moved(model)
    J = _jacobian(model, x)
    true = 0.5 * (J @ (_flat(other) - _flat(model))).square().sum(1).mean()
    assert NTKDistance().fit(model, x).distance(other).item() == pytest.approx(float(true), rel=1e-4)


@pytest.mark.parametrize("rho", ["l2", "kl"])
def test_the_diagonal_gauss_newton_matches_brute_force(rho):
    """Sampled labels estimate `diag(J^T H J)`; over 1,000 rows to some per cent of their sum."""
    model = mlp(4, 5, 3)
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    other = moved(model)
    J = _jacobian(model, x)
    if rho == "l2":
        diagonal = J.square().sum(1).mean(0)
    else:
        p = model(x).softmax(1).detach().unsqueeze(2)
        diagonal = ((p * J.square()).sum(1) - (p * J).sum(1).square()).mean(0)
    true = float(0.5 * (diagonal * (_flat(other) - _flat(model)).square()).sum())
    found = GGNDistance("diagonal", rho=rho).fit(model, x).distance(other).item()
    assert found == pytest.approx(true, rel=0.15)
    if rho == "kl":
        assert EWCDistance().fit(model, x).distance(other).item() == pytest.approx(found, rel=1e-5)


def test_ekfac_is_nearer_than_the_diagonal(rows):
    """On a move that training makes; for noise in all directions the diagonal is unbiased."""
    model, x, y = rows
    other = copy.deepcopy(model)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.02)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        optimiser.step()
    truth = true_distance(model, other, x)
    errors = [
        abs(np.log(GGNDistance(s).fit(model, x).distance(other).item() / truth))
        for s in ("ekfac", "diagonal")
    ]
    assert errors[0] < errors[1]


def test_the_last_batch_is_no_fisher(rows):
    """It squares a mean of gradients: a batch of 32 gives about a thirty-second of the Fisher, or less."""
    model, x, y = rows
    other = moved(model)
    mean = model(x[-32:])
    loss = nn.functional.cross_entropy(mean, y[-32:])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    pairs = zip(grads, model.parameters(), other.parameters(), strict=True)
    true = sum(float((g.square() * (q - p).detach().square()).sum()) for g, p, q in pairs) / 2
    found = EWCDistance("last-batch").fit(model, (x, y)).distance(other).item()
    assert found == pytest.approx(true, rel=1e-4)
    assert found < 0.5 * EWCDistance("empirical").fit(model, (x, y)).distance(other).item()


def test_l2(rows):
    model, x, _ = rows
    other = moved(model)
    true = 0.5 * (_flat(other) - _flat(model)).square().sum()
    assert L2Distance().fit(model, x).distance(other).item() == pytest.approx(float(true), rel=1e-5)


@pytest.mark.parametrize(
    "make", [CoresetDistance, NTKDistance, GGNDistance, EWCDistance, L2Distance, FSDSketch]
)
def test_every_estimator_gives_gradients_and_a_breakdown(make, rows, tmp_path):
    model, x, y = rows
    fitted, other = make().fit(model, (x, y)), moved(model)
    assert fitted.distance(model).item() == 0
    distance = fitted.distance(other)
    distance.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in other.parameters())
    found = fitted.breakdown(other)
    assert found.names == ("0", "2", "4") and found.total == pytest.approx(distance.item(), rel=1e-5)
    assert found.ranked()[0][1] == max(found.values) and len(found.to_frame()) == 3
    again = Breakdown.load(found.save(tmp_path / "found.json"))
    assert (again.names, again.values, again.total) == (found.names, found.values, found.total)
    assert "<table>" in again._repr_html_() and len(again.plot().data) == 1


# -- continual learning --------------------------------------------------------------------------------------


def test_a_penalty_holds_the_network_where_it_was():
    """Two tasks with opposite labels for shifted inputs: the first is forgotten without a penalty only."""
    g = torch.Generator().manual_seed(0)
    first = torch.randn(300, 8, generator=g) + 1.5
    second = torch.randn(300, 8, generator=g) - 1.5
    tasks = [(first, (first[:, 0] > 1.5).long()), (second, (second[:, 0] <= -1.5).long())]
    kept = {}
    for weight in (0.0, 10.0):
        model = mlp(8, 32, 2)
        trainer = ContinualTrainer(weight=weight, make=lambda: FSDSketch(cov=4))
        for data in tasks:
            trainer.learn(model, data, epochs=8, batch=30, rate=1e-2).remember(model, data)
        kept[weight] = [float((model(x).argmax(1) == y).float().mean()) for x, y in tasks]
    assert kept[10.0][0] > kept[0.0][0] + 0.05
    assert min(kept[10.0]) > 0.85


def test_the_penalty_is_the_weighted_mean_of_distances(rows):
    model, x, y = rows
    other = moved(model)
    sketches = [FSDSketch().fit(model, x), CoresetDistance(None).fit(model, (x, y))]
    true = 3 * (sketches[0].distance(other) + sketches[1].distance(other)) / 2
    assert penalty(sketches, other, weight=3.0).item() == pytest.approx(true.item())
    assert penalty([], other).item() == 0
    trainer = ContinualTrainer(sketches[:1], 2.0, method="stochastic", n=20)
    first, same, later = (trainer.penalty(other, epoch).item() for epoch in (0, 0, 1))
    assert first == same and first != later


# -- influence -----------------------------------------------------------------------------------------------


def _hessian(sketch: FSDSketch, model: nn.Module) -> torch.Tensor:
    """Second derivative of the deterministic distance at the reference, by differences of its gradient."""
    from torch.func import hessian

    graph = sketch.graphs_[""]
    named = {name: p.detach().double() for name, p in model.named_parameters()}
    names, sizes = list(named), [p.numel() for p in named.values()]

    def distance(flat: torch.Tensor) -> torch.Tensor:
        parts = zip(names, flat.split(sizes), strict=True)
        tensors = {name: part.view(named[name].shape) for name, part in parts}
        return graph._deterministic(tensors, torch.float64)

    return hessian(distance)(torch.cat([p.flatten() for p in named.values()]))


@pytest.fixture
def small():
    model = mlp(4, 5, 3, seed=1)
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(2))
    y = torch.randint(0, 3, (80,), generator=torch.Generator().manual_seed(3))
    return model, x, y, FSDSketch().fit(model, x)


def test_cg_inverts_the_hessian_of_the_distance(small):
    model, x, y, sketch = small
    H = _hessian(sketch, model) + 0.05 * torch.eye(_flat(model).numel(), dtype=torch.double)
    gradients = []
    for i in range(6):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        )
    G = torch.stack(gradients).double()
    table = -(G @ torch.linalg.solve(H, G.T)) / 80
    method = FSDInfluence(sketch, solver="cg", damping=0.05)
    points = x[:6], y[:6]
    assert np.allclose(method.self_influence(points), -table.diagonal(), rtol=2e-3)
    scores = method.influence(points, points, "loss")
    assert np.allclose(scores.scores, table, rtol=5e-3, atol=1e-4 * float(table.abs().max()))
    assert scores.meta["n_train"] == 80 and scores.is_loss


def test_draws_approach_the_moments(small):
    _, x, y, sketch = small
    exact = FSDInfluence(sketch, solver="cg", damping=0.05).self_influence((x, y))
    few, many = (FSDInfluence(sketch, damping=0.05, draws=n).self_influence((x, y)) for n in (20, 600))
    assert np.abs(many / exact - 1).mean() < 0.08 < np.abs(few / exact - 1).mean()


def test_real_inputs_give_the_exact_influence(small):
    """With the data themselves H is `J^T J / N` of the outputs: dense, and no sketch in it."""
    model, x, y, sketch = small
    J = _jacobian(model, x).double()
    H = torch.einsum("ncp,ncq->pq", J, J) / len(x)
    G = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
            )])
            for i in range(5)
        ]
    ).double()  # fmt: skip
    true = (G * torch.linalg.solve(H + 0.1 * torch.eye(len(H)), G.T).T).sum(1) / 80
    found = FSDInfluence(sketch, inputs=x, damping=0.1).self_influence((x[:5], y[:5]))
    assert np.allclose(found, true, rtol=1e-3)


def test_a_finite_response_agrees_with_its_first_order(small):
    _, x, y, sketch = small
    method = FSDInfluence(sketch, solver="cg", damping=0.2)
    queries, point = (x[:6], y[:6]), (x[10:11], y[10:11])
    linear = method.influence(queries, point).scores[:, 0]
    finite = method.response(queries, point, eps=1e-3, steps=150)
    assert finite.gradient < 0.05
    assert np.corrcoef(linear, finite.change)[0, 1] > 0.99


def test_conv_pairs_are_written_out():
    model, x = network("conv")
    sketch = FSDSketch(cov="diag").fit(model, x)
    y = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(1))
    J = [p for name, p in model.named_parameters() if name[0] in "049"]
    loss = nn.functional.cross_entropy(model(x[:1]), y[:1])
    square = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, J))
    # With a damping that drowns H, self-influence is the squared gradient.
    found = FSDInfluence(sketch, draws=30, damping=1e8).self_influence((x[:1], y[:1]))[0]
    assert found == pytest.approx(square / 1e8 / 300, rel=1e-3)
