"""TRAK against the dense formula, projections against the theorem they rest on, resume and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_models import tiny_conv, tiny_gpt2, token_rows
from torch import nn

from glasshouse.attribution import TensorUnits, TokenUnits
from glasshouse.attribution.checkpoints import Checkpoint, loaded
from glasshouse.attribution.objectives import ClassLoss, SquaredLoss, TokenLoss, measure
from glasshouse.attribution.projection import Projector
from glasshouse.attribution.trak import TRAK
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.subjects.capture import Pair, as_matrix


def gradients(f, model: nn.Module, names: tuple[str, ...], units) -> torch.Tensor:
    """Gradients [N, P] of every row by plain autograd, modules flattened as [out, in(+1)] side by side."""
    found = []
    for i in range(len(units)):
        model.zero_grad()
        f(model, units.batch([i])).sum().backward()
        parts = []
        for name in names:
            module = model.get_submodule(name)
            bias = None if getattr(module, "bias", None) is None else module.bias.grad
            parts.append(as_matrix(module, module.weight.grad, bias).flatten().double())
        found.append(torch.cat(parts))
    return torch.stack(found)


def images() -> TensorUnits:
    g = torch.Generator().manual_seed(2)
    return TensorUnits(torch.randn(12, 1, 4, 4, generator=g), torch.randint(0, 3, (12,), generator=g))


def values() -> TensorUnits:
    g = torch.Generator().manual_seed(3)
    return TensorUnits(torch.randn(15, 4, generator=g), torch.randn(15, 2, generator=g))


def regression(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", ["conv", "gpt2", "regression"])
def test_scores_equal_the_dense_formula(name: str, kind: str, monkeypatch) -> None:
    """Two members; blocks of P made small, so that several of them meet in one module."""
    monkeypatch.setattr("glasshouse.attribution.projection.BLOCK_FLOATS", 200)
    if name == "conv":
        model, units, loss, output = tiny_conv(), images(), ClassLoss(), "margin"
    elif name == "gpt2":
        model, units, loss, output = tiny_gpt2(n_layer=1), TokenUnits(token_rows()), TokenLoss(), "margin"
    else:
        model, units, loss, output = regression(0), values(), SquaredLoss(), "output"
    other = tiny_gpt2(seed=3, n_layer=1) if name == "gpt2" else None
    members = [Checkpoint(None, 1), Checkpoint(other or model, 2)]
    asked = units.subset([0, 3, 5])
    method = TRAK(members, dim=6, damping=0.5, projection=kind, batch_rows=4).fit(model, units)
    table = method.score(asked, "margin" if name != "regression" else "output")
    products, weights = [], []
    for k, member in enumerate(members):
        P = method._projector(k).matrix().double()
        with loaded(model, member) as working:
            phi = gradients(measure(output), working, method.names_, units) @ P
            psi = -gradients(loss, working, method.names_, units) @ P
            p = torch.exp(-loss(working, units.batch(range(len(units)))).detach().double())
        K = phi.T @ phi / len(units) + 0.5 * torch.eye(6)
        if name == "conv":  # -grad L = (1 - p) grad margin, and the two factors are averaged apart
            torch.testing.assert_close(psi, (1 - p)[:, None] * phi, atol=1e-5, rtol=1e-4)
            products.append(phi[[0, 3, 5]] @ torch.linalg.solve(K, phi.T))
            weights.append(1 - p)
        else:
            products.append(phi[[0, 3, 5]] @ torch.linalg.solve(K, psi.T))
            weights.append(torch.ones(len(units)))
    expected = torch.stack(products).mean(0) * torch.stack(weights).mean(0) / len(units)
    np.testing.assert_allclose(table.scores, expected, atol=2e-4 * float(expected.abs().max()))
    assert (method.self_score() > 0).all()


def test_projected_products_are_unbiased_with_the_variance_of_the_theorem() -> None:
    """Over 400 projections of 16 dimensions: the mean of phi.phi' is g.g', with variance at most
    (|g|^2 |g'|^2 + (g.g')^2) / 16 a draw (equal for Gaussians). Five standard errors are allowed for the
    mean; a missing 1/sqrt(dim) would be off by a factor 16, a block used twice would double the variance.
    """
    g = torch.Generator().manual_seed(0)
    pair = Pair(torch.randn(2, 3, 4, generator=g), torch.randn(2, 3, 5, generator=g), ones=True)
    G = pair.gradient().flatten(1).double()
    exact, bound = float(G[0] @ G[1]), float(G[0].square().sum() * G[1].square().sum())
    variance = (bound + exact**2) / 16
    for kind in ("gaussian", "rademacher"):
        drawn = []
        for seed in range(400):
            phi = Projector(kind, 16, seed, (("m", 5, 5),)).project({"m": pair})
            drawn.append(float(phi[0] @ phi[1]))
        assert abs(np.mean(drawn) - exact) < 5 * np.sqrt(variance / 400), kind
        # A sample variance of 400 near-Gaussian draws has a relative SD of .07.
        assert np.var(drawn) < 1.4 * variance, kind
    thin = [
        Projector("kronecker", 16, seed, (("m", 5, 5),)).project({"m": pair}).double() for seed in range(400)
    ]
    products = [float(phi[0] @ phi[1]) for phi in thin]
    assert thin[0].shape == (2, 16)
    assert abs(np.mean(products) - exact) < 5 * np.std(products) / 20


def test_blocks_kept_or_drawn_again_are_the_same(monkeypatch) -> None:
    pair = Pair(torch.ones(2, 1, 30), torch.ones(2, 1, 40))
    monkeypatch.setattr("glasshouse.attribution.projection.BLOCK_FLOATS", 500)
    whole = Projector("gaussian", 8, 0, (("m", 40, 30),))
    first = whole.project({"m": pair})
    assert len(whole._kept) == 20 and torch.equal(whole.project({"m": pair}), first)
    monkeypatch.setattr("glasshouse.attribution.projection.KEPT_FLOATS", 0)
    poor = Projector("gaussian", 8, 0, (("m", 40, 30),))
    assert torch.equal(poor.project({"m": pair}), first) and not poor._kept
    torch.testing.assert_close(first[0], poor.matrix().sum(0), atol=1e-3, rtol=1e-4)
    assert not torch.equal(Projector("gaussian", 8, 1, (("m", 40, 30),)).project({"m": pair}), first)
    assert not torch.equal(Projector("gaussian", 8, 0, (("n", 40, 30),)).project({"n": pair}), first)


def test_a_full_kronecker_projection_loses_nothing_but_a_basis() -> None:
    """Square factors are invertible: without damping the scores are those of the whole kernel."""
    g = torch.Generator().manual_seed(3)
    units = TensorUnits(torch.randn(15, 4, generator=g), torch.randn(15, 1, generator=g))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).eval()
    method = TRAK(dim=1000, projection="kronecker", damping=0.0, modules=["2"]).fit(model, units)
    assert method._projector(0).width == 6
    phi = gradients(measure("output"), model, ("2",), units)
    psi = -gradients(SquaredLoss(), model, ("2",), units)
    expected = phi @ torch.linalg.solve(phi.T @ phi, psi.T)
    scores = method.score(units, "output").scores
    np.testing.assert_allclose(scores, expected, atol=1e-3 * float(expected.abs().max()))


def test_members_are_averaged_and_damping_is_applied_when_asked(mlp, classes) -> None:
    asked = (classes[0][:4], classes[1][:4])
    method = TRAK(dim=8).fit(mlp, classes)
    auto = method.score(asked).scores
    method.damping = 0.1 * float(method.kernels_[0].diagonal().mean())
    np.testing.assert_allclose(method.score(asked).scores, auto, rtol=1e-5)
    method.damping = 1e3  # the kernel no longer matters: plain projected products
    flat = method.score(asked).scores
    phi, weight = method.features_[0]["phi"], method.features_[0]["weight"]
    plain = (phi[:4] @ phi.T * weight / 1e3 / 24).numpy()
    np.testing.assert_allclose(flat, plain, atol=1e-2 * np.abs(plain).max())
    twice = TRAK([mlp, mlp], dim=8).fit(mlp, classes)
    assert not np.array_equal(twice.features_[0]["phi"], twice.features_[1]["phi"])  # own projections
    cost = twice.cost(4)
    assert cost["covariance"] == 2 * TRAK(dim=8).bind(mlp, classes).cost(4)["covariance"]
    named = TRAK(dim=8, output="logit").fit(mlp, classes)
    assert "psi" in named.features_[0] and not np.allclose(named.score(asked).scores, auto)


def test_killed_fit_and_candidates_go_on(tmp_path: Path, monkeypatch, mlp, classes) -> None:
    asked, members = (classes[0][:4], classes[1][:4]), [mlp, mlp]
    calm = TRAK(members, dim=8, shards=2).fit(mlp, classes).score(asked, candidates=asked)

    for folder, name in (("fit", "features-001-00001"), ("score", "features-000-00001")):

        def kill(stage: str, path: Path, dead: tuple[str, str] = (folder, name)) -> None:
            if stage == "before" and (path.parent.name, path.stem) == dead:
                raise KeyboardInterrupt

        method = TRAK(members, dim=8, shards=2)
        monkeypatch.setattr(files, "fault_hook", kill)
        with pytest.raises(KeyboardInterrupt):
            method.fit(mlp, classes, store=tmp_path).score(asked, candidates=asked, store=tmp_path)
        monkeypatch.setattr(files, "fault_hook", None)
    again = TRAK(members, dim=8, shards=2).fit(mlp, classes, store=tmp_path)
    assert np.array_equal(again.score(asked, candidates=asked, store=tmp_path).scores, calm.scores)
    with pytest.raises(StaleError):
        TRAK(members, dim=9, shards=2).fit(mlp, classes, store=tmp_path)


def test_saved_and_read_back(tmp_path: Path, mlp, classes) -> None:
    asked = (classes[0][:4], classes[1][:4])
    method = TRAK([mlp, Checkpoint(None, 1)], dim=8).fit(mlp, classes)
    method.save(tmp_path / "saved")
    with pytest.raises(InputError, match="in memory"):
        TRAK.load(tmp_path / "saved", mlp, classes)
    again = TRAK.load(tmp_path / "saved", mlp, classes, models=[mlp, Checkpoint(None, 1)])
    assert np.array_equal(again.score(asked).scores, method.score(asked).scores)
    with pytest.raises(InputError, match="others"):
        TRAK.load(tmp_path / "saved", mlp, classes, models=[Checkpoint(None, 0), mlp])
    with pytest.raises(StaleError):
        TRAK.load(tmp_path / "saved", mlp, asked, models=[mlp])
    TRAK(dim=8).fit(mlp, classes).save(tmp_path / "alone")
    assert TRAK.load(tmp_path / "alone", mlp, classes).models == ()


def test_two_processes_give_the_same_scores(mlp, classes) -> None:
    asked = (classes[0][:4], classes[1][:4])
    here = TRAK(dim=8, shards=2).fit(mlp, classes).score(asked).scores
    there = TRAK(dim=8, shards=2).fit(mlp, classes, executor="processes:1").score(asked).scores
    assert np.array_equal(here, there)


def test_refusals(mlp, classes) -> None:
    with pytest.raises(NumericalError, match="singular"):
        TRAK(dim=40, damping=0).fit(mlp, classes).score(classes)
    with pytest.raises(InputError, match="do not fit the model"):
        TRAK([nn.Linear(6, 3)]).fit(mlp, classes)
    with pytest.raises(InputError, match="one number a module"):
        TRAK(dim=2, projection="kronecker").fit(mlp, classes)
    for options in ({"dim": 0}, {"projection": "fourier"}, {"damping": -1.0}):
        with pytest.raises(InputError):
            TRAK(**options).fit(mlp, classes)
    bad = {k: v * float("nan") for k, v in mlp.state_dict().items()}
    with pytest.raises(NumericalError):
        TRAK([bad]).fit(mlp, classes)
    with pytest.raises(InputError, match="not fitted"):
        TRAK().score(classes)
