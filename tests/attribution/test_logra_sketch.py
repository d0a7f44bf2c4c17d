"""The sketch itself: three ways to compute it agree, full rank loses nothing, random ones are unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, token_rows
from torch import nn
from transformers.pytorch_utils import Conv1D

from glasshouse.attribution.logra import GradientLog, LoGra
from glasshouse.attribution.logra.projection import Projection, drawn
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.subjects.capture import Pair, describe_modules

B = 5


class Pooled(nn.Module):
    """A layer over positions [B, T, in], summed to class scores."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.tanh(self.layer(x)).flatten(1)


def layers(T: int):
    torch.manual_seed(T)
    yield "linear", nn.Linear(7, 6, bias=False), torch.randn(B, T, 7)
    yield "biased", nn.Linear(7, 6), torch.randn(B, T, 7)
    yield "conv1d", Conv1D(6, 7), torch.randn(B, T, 7)
    yield "conv2d", nn.Conv2d(2, 5, 3, padding=1, bias=False), torch.randn(B, 2, T, 3)


def recorded(layer, x, mask, *, branch: bool, monkeypatch):
    """Sketches [B, r_o, r_i], and with a branch also dL/dB."""
    model = Pooled(layer)
    log = GradientLog(3, branch=branch, seed=4, dtype="float32", modules=["layer"])
    weight = None if mask is None else mask[..., None]
    with log.attach(model), log.record(ids=range(B), mask=mask):
        out = torch.tanh(model.layer(x))
        out = out if weight is None else out * weight
        (out.square().flatten(1).sum(1) * torch.arange(1.0, B + 1)).sum().backward()
        steps = log.branches_["layer"].B.grad if branch else None
    return log.finalize().log_.vectors().reshape(B, 3, 3), steps


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("padded", [False, True])
def test_hook_branch_and_dense_projection_agree(T: int, padded: bool, monkeypatch) -> None:
    """[logra/t1] P_o G P_i^T from hooks, as dL/dB of the branch, and densely from autograd's own G."""
    for kind, layer, x in layers(T):
        if padded and (kind == "conv2d" or T == 1):
            continue
        mask = (torch.arange(T)[None] < torch.tensor([7, 3, 1, 5, 2])[:, None]).float() if padded else None
        hook, _ = recorded(layer, x, mask, branch=False, monkeypatch=monkeypatch)
        branch, into_B = recorded(layer, x, mask, branch=True, monkeypatch=monkeypatch)
        (m,) = (m for m in describe_modules(Pooled(layer), ["layer"]) if m.selected)
        P = drawn([m], 3, "random", 4)["layer"]
        dense = []
        for n in range(B):  # one row at a time: its gradient is the parameter gradient
            out = torch.tanh(layer(x[n : n + 1]))
            out = out if mask is None else out * mask[n : n + 1, :, None]
            weight, *bias = torch.autograd.grad(out.square().sum() * (n + 1), list(layer.parameters()))
            G = weight.T if kind == "conv1d" else weight.flatten(1)
            G = torch.cat([G, bias[0][:, None]], 1) if bias else G
            dense.append(P.Po @ G @ P.Pi.T)
        dense = torch.stack(dense).numpy()
        for found in (hook, branch):
            assert np.abs(found - dense).max() < 1e-5 * np.abs(dense).max(), kind
        np.testing.assert_allclose(
            into_B.numpy(), dense.sum(0), atol=1e-5 * np.abs(dense).sum(0).max(), err_msg=kind
        )


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_conv])
def test_the_method_logs_the_same_sketches(family) -> None:
    model = family()
    rows = token_rows(6) if family is tiny_gpt2 else (torch.randn(6, 1, 4, 4), torch.arange(6) % 3)
    method = LoGra(3, dtype="float32", modules=["*c_fc", "*c_proj"] if family is tiny_gpt2 else "auto")
    method.fit(model, rows)
    job = method._job(method.train_, method.objective_)
    G = layer_gradients(job, range(6))
    dense = torch.cat([(p.Po @ G[n] @ p.Pi.T).flatten(1) for n, p in method.projections_.items()], 1).numpy()
    assert np.abs(method.log_.vectors() - dense).max() < 1e-5 * np.abs(dense).max()


def test_square_orthogonal_projections_lose_nothing() -> None:
    """[logra/t2] At full rank scores are those of the unprojected empirical Fisher, same absolute damping."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False))
    X, y = torch.randn(40, 5), torch.randint(0, 5, (40,))
    damping = 1e-2
    method = LoGra(5, init="pca", damping=damping, dtype="float32").fit(model, (X, y))
    for p in method.projections_.values():
        torch.testing.assert_close(p.Po @ p.Po.T, torch.eye(5), atol=1e-5, rtol=0)
    scores = method.score((X[:4], y[:4]), "loss").scores
    G = layer_gradients(method._job(method.train_, method.objective_), range(40))
    expected = torch.zeros(4, 40, dtype=torch.float64)
    for part in G.values():
        g = part.flatten(1).double()
        F = g.T @ g / 40 + damping * torch.eye(25, dtype=torch.float64)
        expected -= g[:4] @ torch.linalg.solve(F, g.T) / 40
    np.testing.assert_allclose(
        scores, expected.numpy(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()) / 10
    )
    # The null case: with half the rank the same comparison fails.
    half = LoGra(2, init="pca", damping=damping, dtype="float32")
    with pytest.warns(UserWarning) if half.rank > 5 else _quiet():
        other = half.fit(model, (X, y)).score((X[:4], y[:4]), "loss").scores
    assert np.abs(other - expected.numpy()).max() > 1e-2 * float(expected.abs().max())


def _quiet():
    from contextlib import nullcontext

    return nullcontext()


def _pairs() -> tuple[Pair, Pair]:
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    a, b = draw(1, 4, 48), draw(1, 4, 40)
    # Two gradients that have something in common, as rows of one task have.
    return Pair(a, b), Pair(a + 0.5 * draw(1, 4, 48), b + 0.5 * draw(1, 4, 40))


def _products(rank: int, seeds: int, init: str = "random") -> tuple[np.ndarray, float]:
    one, two = _pairs()
    model = nn.Sequential(nn.Linear(48, 40, bias=False))
    (module,) = (m for m in describe_modules(model) if m.selected)
    found = []
    for seed in range(seeds):
        P = drawn([module], rank, init, seed)["0"]
        found.append(float((P.sketch(one) * P.sketch(two)).sum()))
    G, H = (torch.bmm(p.g.mT, p.a)[0].double() for p in (one, two))
    return np.array(found), float((G * H).sum())


@pytest.mark.parametrize("rank", [4, 16])
def test_random_sketches_keep_inner_products_on_average(rank: int) -> None:
    """[logra/t3a] Mean of <Gp, Hp> over 200 seeds within 3 standard errors of <G, H>.

    A projection scaled by 1/sqrt(r) on one side only, the likeliest mistake, would be off by a factor r.
    """
    found, exact = _products(rank, 200)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - exact) < 3 * error
    assert error < 0.5 * abs(exact), "the test could not see a factor of two"
    uniform, _ = _products(rank, 200, "kaiming")
    assert abs(uniform.mean() - exact) > 3 * uniform.std(ddof=1) / np.sqrt(200), "kaiming is not unbiased"


def test_variance_falls_as_one_over_r() -> None:
    """[logra/t3b] log variance against log r has slope -1: a bootstrap interval over seeds holds it."""
    ranks = [12, 18, 24, 30]
    products = [_products(r, 400)[0] for r in ranks]
    draw = np.random.default_rng(0)

    def slope(samples) -> float:
        return float(np.polyfit(np.log(ranks), [np.log(s.var(ddof=1)) for s in samples], 1)[0])

    slopes = [slope([s[draw.integers(0, 400, 400)] for s in products]) for _ in range(300)]
    low, high = np.quantile(slopes, [0.01, 0.99])
    # r (1 + c/r) terms of the Kronecker product bend it to at most -1.25 at these ranks.
    assert low < -1 < high + 0.25 and high < -0.5 and low > -2


def test_a_side_that_fits_is_kept_whole() -> None:
    (m,) = (m for m in describe_modules(nn.Sequential(nn.Linear(9, 3, bias=False))) if m.selected)
    P = drawn([m], 5, "random", 0)["0"]
    assert P.shape == (3, 5) and torch.equal(P.Po, torch.eye(3))
    again, other = (drawn([m], 5, "random", seed)["0"] for seed in (0, 1))
    assert torch.equal(again.Pi, P.Pi) and not torch.equal(other.Pi, P.Pi)
    assert isinstance(P, Projection)
