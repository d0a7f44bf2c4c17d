"""The simulated game: gradients, certificates against brute force, invariances, what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition import (
    CompetitionMarket,
    Equilibrium,
    bayes_loss,
    closed_form,
    equilibrium,
    standardise,
    with_bias,
)
from glasshouse.society.model_competition import _maths as maths
from glasshouse.society.model_competition._engine import Engine, Options
from glasshouse.society.model_competition._users import Users
from glasshouse.society.model_competition.settings import gaussians, no_information, subpopulations

NUMERICAL = 0.002
"""Predictors saturate but never reach 0 and 1."""


def users(n=60, d=3, classes=2, seed=0):
    draws = np.random.default_rng(seed)
    X = with_bias(draws.normal(size=(n, d)))
    return X, np.concatenate([np.arange(classes), draws.integers(classes, size=n - classes)])


def engine(loss="l1_sigmoid", classes=2, **more):
    X, y = users(classes=classes)
    return Engine(Users.of(X, y), CompetitionMarket(m=3, c=0.3, T=0.5, loss=loss, **more), Options())


@pytest.mark.parametrize(("loss", "classes"), [("l1_sigmoid", 2), ("l1_softmax", 2), ("l1_softmax", 4)])
@pytest.mark.parametrize("which", ["payoff", "accuracy"])
def test_gradients_are_the_finite_differences(loss, classes, which):
    made = engine(loss, classes)
    draws = np.random.default_rng(1)
    W = draws.normal(0, 0.5, (2, *made.shape))
    others = made.others(made.losses(draws.normal(0, 0.5, (3, *made.shape))), 0)
    value = maths.payoff(made.exact, -1.1, others) if which == "payoff" else maths.accuracy(made.exact)
    _, gradient = value(W)
    step = 1e-6
    for index in np.ndindex(*W.shape):
        up, down = W.copy(), W.copy()
        up[index] += step
        down[index] -= step
        slope = (value(up)[0][index[0]] - value(down)[0][index[0]]) / (2 * step)
        assert gradient[index] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize(("loss", "classes"), [("l1_sigmoid", 2), ("l1_softmax", 3)])
def test_torch_computes_what_numpy_computes(loss, classes):
    import torch

    made = engine(loss, classes)
    task = made.exact
    send = lambda a: None if a is None else torch.as_tensor(a)  # noqa: E731
    twin = maths.Task(
        torch, send(task.X), send(task.sign), send(task.hot), send(task.mass), task.T, task.c
    )  # fmt: skip
    W = np.random.default_rng(2).normal(0, 1, (5, *made.shape))
    others = np.zeros((len(task.mass), 1))
    ours, theirs = maths.payoff(task, -1.0, others)(W), maths.payoff(twin, -1.0, send(others))(send(W))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-12)
    search = dict(steps=60, lr=0.05, keep=2)
    here, _ = maths.maximise(maths.payoff(task, -1.0, others), W, xp=np, **search)
    there, _ = maths.maximise(maths.payoff(twin, -1.0, send(others)), send(W), xp=torch, **search)
    np.testing.assert_allclose(here, there.numpy(), atol=1e-8)


def test_the_whole_game_on_torch_is_the_game_on_numpy():
    """`cpu:0` names the processor as torch names a GPU: the same path as `cuda`."""
    data, market = no_information(0.36), CompetitionMarket(m=3)
    ours = equilibrium(data.X, data.y, market)
    other = equilibrium(data.X, data.y, market, device="cpu:0")
    assert other.converged and other.k_hetero == ours.k_hetero
    assert abs(other.SL - ours.SL) <= NUMERICAL


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("m", "alpha"), [(3, 0.2), (3, 0.33), (3, 0.36), (3, 0.45), (2, 0.4), (4, 0.3)])
def test_the_game_lands_on_the_closed_form(m, alpha, seed):
    data = no_information(alpha)
    found = equilibrium(data.X, data.y, CompetitionMarket(m=m, c=0.3, T=0.1), seed=seed)
    known = closed_form([alpha], m, 0.3).iloc[0]
    assert pytest.approx(known["SL"], abs=NUMERICAL) == found.SL
    assert found.k_hetero == min(known["k"], m - known["k"])
    assert found.converged and found.eps_nash <= 1e-4


@pytest.mark.parametrize("alpha", [0.2, 0.4])
def test_the_certificate_bounds_every_deviation_on_a_fine_grid(alpha):
    """With one feature all predictors can be tried: none gains more than eps_nash (and the search's 1e-6)."""
    data, market = no_information(alpha), CompetitionMarket(m=3, c=0.3, T=0.1)
    found = equilibrium(data.X, data.y, market)
    made = Engine(Users.of(data.X, data.y), market, Options())
    loss = made.losses(found.weights)
    every = np.linspace(-5, 5, 4001)[:, None]
    for j in range(3):
        others = made.others(loss, j)
        now = made.shares_of(found.weights[j][None], others, j)[0]
        assert made.shares_of(every, others, j).max() <= now + found.eps_nash + 1e-6


def test_local_search_ends_at_a_false_equilibrium_and_says_so():
    data = no_information(0.3)
    market = CompetitionMarket(m=3, c=0.3, T=0.1)
    with pytest.warns(UserWarning, match="still gains"):
        found = equilibrium(data.X, data.y, market, search="warm-start", init_std=0.1)
    assert not found.converged and found.eps_nash > 0.01 and found.SL < 0.05
    assert "current predictor only" in found.search


def test_best_responses_cycle_where_no_pure_equilibrium_exists():
    """Two providers of unequal reputation above alpha = w_2 (users who hardly err)."""
    data = no_information(0.4)
    market = CompetitionMarket(m=2, c=0.03, T=0.1, w=(0.75, 0.25))
    with pytest.warns(UserWarning, match="cycle"):
        found = equilibrium(data.X, data.y, market)
    assert found.cycle is not None and found.cycle >= 2 and not found.converged
    assert found.regime == "cycle" and found.shares.sum() == pytest.approx(1)


def test_softmax_predictors_reach_the_closed_form_of_two_labels():
    data = no_information(0.4)
    found = equilibrium(data.X, data.y, CompetitionMarket(m=3, c=0.3, T=0.1, loss="l1_softmax"))
    assert pytest.approx(closed_form([0.4], 3, 0.3)["SL"].iloc[0], abs=NUMERICAL) == found.SL


def test_with_three_labels_hedging_beats_every_single_label():
    """Softmax providers may spread their prediction: 0-1 theory is no bound, the certificate is the proof."""
    y, market = np.repeat([0, 1, 2], [50, 30, 20]), CompetitionMarket(m=3, c=0.3, T=0.1, loss="l1_softmax")
    found = equilibrium(np.ones((100, 1)), y, market)
    made = Engine(Users.of(np.ones((100, 1)), y), market, Options())
    loss = made.losses(found.weights)
    simplex = np.array([(a, b, 40 - a - b) for a in range(41) for b in range(41 - a)]) / 40
    every = 0.1 * np.log(simplex + 1e-9)[:, None, :]  # z / T = log p
    for j in range(3):
        others = made.others(loss, j)
        now = made.shares_of(found.weights[j][None], others, j)[0]
        assert made.shares_of(every, others, j).max() <= now + found.eps_nash + 1e-6
    assert found.converged and found.SL > 0.25


def test_two_providers_serve_users_as_one_would():
    data = gaussians(1.5, n=600)
    found = equilibrium(data.X, data.y, CompetitionMarket(m=2))
    assert pytest.approx(found.bayes, abs=0.006) == found.SL
    three = equilibrium(data.X, data.y, CompetitionMarket(m=3))
    assert three.bayes - three.SL > 0.05


def test_rows_may_be_repeated_reordered_or_weighed():
    data = subpopulations(2, n=40)
    market = CompetitionMarket(m=3)
    plain = equilibrium(data.X, data.y, market)
    order = np.random.default_rng(0).permutation(len(data.y))
    twice = np.concatenate([order, order])
    again = equilibrium(data.X[twice], data.y[twice], market)
    weighed = equilibrium(data.X, data.y, market, mass=np.full(len(data.y), 7.0))
    # Sums of masses round differently, so weights agree only in what they predict.
    for other in (again, weighed):
        assert pytest.approx(plain.SL, abs=1e-3) == other.SL
        assert other.bayes == pytest.approx(plain.bayes, abs=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_start_may_not():
    data = gaussians(2.0, n=300)
    a, b, c = (equilibrium(data.X, data.y, seed=seed) for seed in (5, 5, 6))
    assert a.weights.tobytes() == b.weights.tobytes()
    assert a.weights.tobytes() != c.weights.tobytes()


def test_results_are_read_back(tmp_path):
    data = no_information(0.4)
    found = equilibrium(data.X, data.y)
    found.save(tmp_path)
    back = Equilibrium.load(tmp_path)
    assert back.summary() == found.summary() and back.trajectory == found.trajectory
    np.testing.assert_array_equal(back.weights, found.weights)
    assert found.to_frame()["share"].sum() == pytest.approx(1) and found.plot().data[0].y[-1] == found.SL
    (tmp_path / "weights.npy").write_bytes(b"half")
    with pytest.raises(InputError, match="no whole equilibrium"):
        Equilibrium.load(tmp_path)


def test_each_write_is_whole_or_absent(tmp_path, every_fault):
    data = no_information(0.4)
    found = equilibrium(data.X, data.y)

    def check(n):
        folder = tmp_path / str(n)
        if (folder / "equilibrium.json").exists():
            assert Equilibrium.load(folder).SL == found.SL

    assert every_fault(lambda n: found.save(tmp_path / str(n)), check) >= 4


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.5, 2), seed=st.integers(0, 50))
def test_the_bayes_loss_never_rises_with_a_warm_start(scale, seed):
    X, y = users(n=40, d=2, seed=seed)
    small, weights = bayes_loss(X[:, [0, 2]] * scale, y, steps=60)
    large, _ = bayes_loss(X * scale, y, steps=60, warm=[weights])
    assert large <= small + 1e-9


def bad(**changes):
    data = no_information(0.4, n=20)
    X, y, market = data.X, data.y, changes.pop("market", CompetitionMarket())
    return equilibrium(changes.pop("X", X), changes.pop("y", y), market, **changes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bad(y=np.full(20, 3)), "the labels are 3: 20"),
        (lambda: bad(y=np.array([0, 2] * 10)), "0, 1, ... K-1"),
        (lambda: bad(y=np.zeros(20)), "0: 20"),
        (lambda: bad(y=np.arange(19) % 2), "20 rows and y 19"),
        (lambda: bad(X=np.where(np.arange(20)[:, None] == 7, np.nan, 1.0)), "infinite values: 7"),
        (lambda: bad(X=np.ones(20)), "shape"),
        (lambda: bad(market=CompetitionMarket(c=0.0)), "piecewise constant; use closed_form"),
        (lambda: bad(market=CompetitionMarket(loss="zero_one")), "no gradient"),
        (lambda: bad(X=np.arange(20.0)[:, None], y=np.arange(20) % 3), "l1_softmax"),
        (lambda: bad(mass=np.zeros(20)), "masses"),
        (lambda: bad(starts=0), "positive starts"),
        (lambda: bad(search="annealing"), "there is no search"),
        (lambda: bad(max_rounds=0), "max_rounds"),
        (lambda: CompetitionMarket(m=1), "one provider is the Bayes risk"),
        (lambda: CompetitionMarket(c=-0.1), "noise"),
        (lambda: CompetitionMarket(T=0), "temperature"),
        (lambda: CompetitionMarket(w=(1, -1, 1)), "3 positive numbers"),
        (lambda: CompetitionMarket(loss="hinge"), "use one of"),
        (lambda: gaussians(0.0), "sigma"),
        (lambda: subpopulations(6), "1 (the constant alone) to 5"),
        (lambda: no_information(0.001, n=20), "both labels"),
        (lambda: no_information(float("nan")), "both labels"),
        (lambda: bad(device="abacus"), "'abacus' is not a device"),
        (lambda: bayes_loss(np.ones((4, 1)), [0, 1, 0, 1], device="abacus"), "not a device"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError) as error:
        call()
    assert says in str(error.value)


def test_warnings_about_what_is_usable_but_odd():
    with pytest.warns(UserWarning, match="sum to 6; they are divided"):
        assert CompetitionMarket(w=(1, 2, 3)).reputations == pytest.approx((1 / 6, 1 / 3, 1 / 2))
    X, y = users(n=4, d=6)
    with pytest.warns(UserWarning, match="7 features for 4 users"):
        Users.of(X, y)
    wide = np.column_stack([np.arange(20.0), 1e-4 * np.arange(20.0)[::-1] ** 2])
    with pytest.warns(UserWarning, match="standardise"):
        Users.of(wide, np.arange(20) % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Users.of(standardise(wide), np.arange(20) % 2)


def test_no_public_name_is_hidden_by_a_module_of_the_package():
    import importlib
    import inspect

    import glasshouse.society.model_competition as package

    importlib.import_module("glasshouse.society.model_competition.door")
    assert not [name for name in package.__all__ if inspect.ismodule(getattr(package, name))]
    assert list(package.__all__) == sorted(package.__all__)
