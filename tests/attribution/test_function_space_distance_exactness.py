"""The deterministic distance is the second moment of its own model: against enumeration, draws and data.

A recursion that forgot one covariance would still rank networks well, so ranks are no test of it. Here gates
are enumerated, networks without gates are compared with the data themselves, and fifty thousand draws must
scatter around the moment within their own standard error.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from fsd_models import mlp, moved, network, true_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glasshouse.attribution.function_space_distance import FSDSketch, InputMoments


@pytest.mark.parametrize("kind", ["mlp", "residual", "conv", "gelu", "gated"])
@pytest.mark.parametrize("cov", ["full", "diag", 3])
def test_it_is_the_limit_of_its_draws(kind, cov):
    """function-space-distance/t1d; every kind of step, with and without a diagonal beside the factor."""
    model, x = network(kind)
    sketch = FSDSketch(cov=cov, approx=True).fit(model, x)
    other = moved(model)
    with torch.no_grad():
        values, weights = sketch.samples(other, n=50_000, seed=5)
    drawn = float((weights * values).sum())
    error = float((weights**2 * (values - drawn) ** 2).sum().sqrt())
    assert abs(sketch.distance(other).item() - drawn) < 3 * error
    assert error < 0.02 * drawn, "the draws scatter too much to prove anything"


def test_it_is_the_limit_of_its_draws_by_class():
    """function-space-distance/t1d, class-conditional."""
    model, x = network("mlp")
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 1).long()
    sketch, other = FSDSketch(True, cov=4).fit(model, (x, labels)), moved(model)
    with torch.no_grad():
        values, weights = sketch.samples(other, n=50_000, seed=1)
    drawn = float((weights * values).sum())
    error = float((weights**2 * (values - drawn) ** 2).sum().sqrt())
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert abs(sketch.distance(other).item() - drawn) < 3 * error


def test_a_linear_network_is_exact():
    """function-space-distance/t2a: without gates every estimator is the truth, computed from moments."""
    torch.manual_seed(0)
    x = torch.randn(200, 6) @ torch.randn(6, 6) + 1
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    other = moved(model)
    sketch = FSDSketch().fit(model, x)
    assert sketch.distance(other).item() == pytest.approx(true_distance(model, other, x), rel=1e-5)
    drawn, _ = sketch.graphs_[""].moments.sample(500, 7)
    for method in ("stochastic", "relu-gaussian"):
        found = sketch.distance(other, method, n=500, seed=7).item()
        assert found == pytest.approx(true_distance(model, other, drawn), rel=1e-5)
    # The published recursion leaves out how the change of one layer meets the activations of the next.
    published = sketch.distance(other, variant="reference").item()
    assert abs(published / true_distance(model, other, x) - 1) > 1e-3


def test_one_linear_layer_is_exact_for_the_published_recursion_too():
    torch.manual_seed(0)
    x, model = torch.randn(50, 4), nn.Linear(4, 3).eval()
    other = moved(model)
    sketch = FSDSketch().fit(model, x)
    found = [sketch.distance(other, variant=v).item() for v in ("exact", "reference")]
    assert found == pytest.approx([true_distance(model, other, x)] * 2, rel=1e-5)


@pytest.mark.parametrize("cov", ["full", 2])
def test_independent_gates_are_exact(cov):
    """function-space-distance/t2b: all 2^6 patterns of six Bernoulli gates, each a linear network."""
    model, other = mlp(4, 6, 3, seed=2), moved(mlp(4, 6, 3, seed=2), 0.3)
    torch.manual_seed(4)
    sketch = FSDSketch(cov=cov).fit(model, torch.randn(100, 4) @ torch.randn(4, 4) + 0.5)
    graph = sketch.graphs_[""]
    m, C = graph.moments.mean[0].double(), graph.moments.covariance(0).double()
    mu = graph.gates["_1"]["mu"][0].double()
    layers = model[0], model[2], other[0], other[2]
    double = [(layer.weight.detach().double(), layer.bias.detach().double()) for layer in layers]
    (W0, b0), (V0, c0), (W1, b1), (V1, c1) = double
    total = 0.0
    for pattern in itertools.product([0.0, 1.0], repeat=6):
        z = torch.tensor(pattern, dtype=torch.double)
        chance = float(torch.where(z > 0, mu, 1 - mu).prod())
        A = V1 @ torch.diag(z) @ W1 - V0 @ torch.diag(z) @ W0
        shift = V1 @ (z * b1) + c1 - V0 @ (z * b0) - c0
        total += chance * 0.5 * float(((A @ m + shift) ** 2).sum() + (A @ C @ A.T).trace())
    assert sketch.distance(other).item() == pytest.approx(total, rel=1e-5)


def test_the_published_recursion_underestimates():
    """On the diagonal a gate meets itself: mu, not mu squared."""
    model, x = network("mlp")
    sketch, other = FSDSketch().fit(model, x), moved(model)
    assert sketch.distance(other, variant="reference").item() < 0.9 * sketch.distance(other).item()


@given(seed=st.integers(0, 10_000), size=st.floats(1e-4, 1.0))
@settings(max_examples=15, deadline=None)
def test_zero_at_home_and_never_negative(seed, size):
    model = mlp(4, 5, 3, seed=seed)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
    sketch = FSDSketch().fit(model, x)
    for method in ("deterministic", "stochastic", "relu-gaussian"):
        assert sketch.distance(model, method).item() == 0
        assert sketch.distance(moved(model, size, seed), method).item() >= 0


def test_tiny_moves_keep_their_quadratic_law():
    """A hundredth of a tiny move has a ten-thousandth of its distance: rounding must not make a floor."""
    model, x = network("mlp")
    sketch = FSDSketch().fit(model, x)
    far, near = (sketch.distance(moved(model, size)).item() for size in (1e-3, 1e-5))
    assert near == pytest.approx(far * 1e-4, rel=0.1)


def test_a_negative_trace_is_computed_again_in_float64():
    """Float32 may round a trace below zero; what comes back is the float64 number."""
    model, x = network("mlp")
    graph = FSDSketch().fit(model, x).graphs_[""]
    tensors = {name: p.detach() for name, p in moved(model, 0.01).named_parameters()}
    exact = float(graph._deterministic(tensors, torch.float64))
    graph._still.clear()
    joint = graph.joint(tensors, torch.float32)
    joint.run(graph.moments)
    last = ("form", "_0", "_0")
    graph._still[torch.float32, "cpu"][last] = -1e6 * torch.eye(8).expand(1, 8, 8)
    for key in [key for key in graph._still[torch.float32, "cpu"] if key[0] not in ("form", "ma", "Fa")]:
        del graph._still[torch.float32, "cpu"][key]
    assert float(graph._deterministic(tensors, torch.float32)) < 0
    assert float(graph.deterministic(tensors)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("method", ["deterministic", "stochastic", "relu-gaussian"])
def test_gradients_reach_the_other_network(method):
    """Central differences along a direction, for every weight at once."""
    model, x = network("mlp")
    sketch, other = FSDSketch().fit(model, x), moved(model)
    sketch.distance(other, method, n=50).backward()
    directions = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for p in other.parameters()
    ]
    slope = sum(float((p.grad * v).sum()) for p, v in zip(other.parameters(), directions, strict=True))
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(other.parameters(), directions, strict=True):
                p.add_(sign * 1e-3 * v)
            found.append(sketch.distance(other, method, n=50).item())
            for p, v in zip(other.parameters(), directions, strict=True):
                p.sub_(sign * 1e-3 * v)
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_gates_are_those_of_the_reference_not_of_moments():
    model, x = network("mlp")
    with torch.no_grad():
        true = (model[0](x) >= 0).float().mean(0)
    assert torch.allclose(FSDSketch().fit(model, x).graphs_[""].gates["_1"]["mu"][0], true)


def test_moments_alone_are_enough():
    """Fitted on somebody's moments, distances are near those fitted on the data behind them."""
    model, x = network("mlp")
    moments = InputMoments.of(x.mean(0), torch.cov(x.T, correction=0))
    other = moved(model)
    mine, theirs = FSDSketch().fit(model, x), FSDSketch().fit(model, moments)
    # The gates are those of Gaussian draws: 2,000 of them, so their shares err by a hundredth.
    assert theirs.distance(other).item() == pytest.approx(mine.distance(other).item(), rel=0.15)


def test_classes_matter():
    """Two far classes behind opposite gates: one Gaussian mixes what never meets."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(200, 4) + 3, torch.randn(200, 4) - 3])
    y = torch.tensor([0] * 200 + [1] * 200)
    model = mlp(4, 8, 3)
    other = moved(model)
    truth = true_distance(model, other, x)
    errors = [abs(FSDSketch(c).fit(model, (x, y)).distance(other).item() / truth - 1) for c in (True, False)]
    assert errors[0] < 0.5 * errors[1]


def test_the_breakdown_moves_one_layer_at_a_time():
    model, x = network("mlp")
    sketch, other = FSDSketch().fit(model, x), moved(model)
    found = sketch.breakdown(other)
    assert found.names == ("0", "2", "4") and found.total == pytest.approx(sketch.distance(other).item())
    alone = dict(model.named_parameters()) | {n: p for n, p in other.named_parameters() if n[0] == "2"}
    assert found.values[1] == pytest.approx(sketch.distance(alone).item(), rel=1e-5)


def test_gate_flips_are_counted():
    model, x = network("mlp")
    sketch, other = FSDSketch().fit(model, x), moved(model)
    with torch.no_grad():
        true = float(((model[0](x) >= 0) != (other[0](x) >= 0)).float().mean())
    found = sketch.gate_flips(other, x)["_1"]
    assert found.value == pytest.approx(true) and found.low <= true <= found.high
    assert sketch.gate_flips(model, x)["_1"].value == 0
