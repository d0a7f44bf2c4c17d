"""The preference regression against theory, a dense reference and planted effects."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from glasshouse.behaviour.sycophancy import design, diagnostics
from glasshouse.behaviour.sycophancy.gibbs import Collapsed
from glasshouse.behaviour.sycophancy.polya_gamma import draw_pg1, inverse_gaussian
from glasshouse.behaviour.sycophancy.posterior import Posterior
from glasshouse.behaviour.sycophancy.regression import ConvergenceWarning, EdgeWarning, PreferenceRegression
from glasshouse.runtime.errors import InputError

SIGMAS = 5.0
"""A right sampler exceeds five standard errors once in two million tries."""


def planted(n: int, alpha: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(seed)
    x = stream.choice([-1.0, 0.0, 1.0], size=(n, len(alpha)), p=(0.25, 0.5, 0.25))
    return x, (stream.random(n) < 1 / (1 + np.exp(-x @ np.array(alpha)))).astype(int)


@pytest.fixture(scope="module")
def fitted() -> PreferenceRegression:
    x, y = planted(3000, [0.6, -0.4, 0.0], seed=1)
    return PreferenceRegression(b=0.3).fit(x, y, names=("belief", "long", "list"))


# -- the pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 0.7, 1.99, 2.01, 5.0, 40.0])
def test_polya_gamma_has_the_laplace_transform_of_theory(c: float) -> None:
    # E exp(-t w) = cosh(c/2) / cosh(sqrt((c^2/2 + t)/2)): it decides the whole distribution. Both samplers
    # (thinning below c = 2, Devroye's above) are covered, and the place where they meet.
    w = draw_pg1(np.full(100_000, -c), np.random.default_rng(3))
    for t in (0.3, 3.0, 30.0):
        wanted = np.exp(np.logaddexp(c / 2, -c / 2) - np.logaddexp(r := np.sqrt((c * c / 2 + t) / 2), -r))
        seen = np.exp(-t * w)
        assert abs(seen.mean() - wanted) < SIGMAS * seen.std() / np.sqrt(len(w))


def test_a_wrong_tilt_would_be_seen() -> None:
    w = draw_pg1(np.full(100_000, 0.9), np.random.default_rng(3))
    assert abs(w.mean() - 0.25) > SIGMAS * w.std() / np.sqrt(len(w))  # the mean at c = 0


@pytest.mark.parametrize("mean", [0.01, 1.0, 1e4, 1e9])
def test_inverse_gaussian_keeps_its_law_for_large_means(mean: float) -> None:
    # P(X > x) is known through 1/X: E[1/X] = 1/mean + 1/shape, and Var[1/X] = 1/(mean shape) + 2/shape^2.
    shape = 7.0
    inverse = 1 / inverse_gaussian(np.full(200_000, mean), shape, np.random.default_rng(0))
    error = np.sqrt((1 / (mean * shape) + 2 / shape**2) / inverse.size)
    assert abs(inverse.mean() - (1 / mean + 1 / shape)) < SIGMAS * error


def test_rhat_and_ess_of_known_chains() -> None:
    stream = np.random.default_rng(0)
    independent = stream.normal(size=(4, 1000, 1))
    assert diagnostics.rhat(independent)[0] < 1.01
    assert 0.8 < diagnostics.bulk_ess(independent)[0] / 4000 < 1.25
    ar = np.zeros((4, 4000, 1))
    for t in range(1, 4000):
        ar[:, t] = 0.8 * ar[:, t - 1] + stream.normal(size=(4, 1))
    # An AR(1) chain with coefficient r is worth (1 - r) / (1 + r) of its length: 1/9.
    assert 0.75 < diagnostics.bulk_ess(ar)[0] / (16_000 / 9) < 1.33
    assert diagnostics.rhat(independent + 0.5 * np.arange(4)[:, None, None])[0] > 1.05
    spread = independent * np.array([1, 1, 1, 3.0])[:, None, None]
    assert diagnostics.rhat(spread)[0] > 1.05  # equal means: only the folded half sees it


def test_collapsing_loses_nothing() -> None:
    x, y = planted(400, [0.5, 0.2], seed=0)
    rows = Collapsed.of(x, y)
    assert len(rows.x) == 4 and rows.n == int((x != 0).any(1).sum())  # 9 patterns, paired by sign, less zero
    assert np.allclose(rows.kappa, x.T @ (y - 0.5))
    for alpha in ([0.3, -0.2], [1.0, 2.0]):
        plain = np.log(1 / (1 + np.exp(-(2 * y - 1) * (x @ alpha))))[(x != 0).any(1)].sum()
        eta = rows.x @ alpha
        folded = (rows.wins * eta - rows.count * np.logaddexp(0, eta)).sum()
        assert folded == pytest.approx(plain, rel=1e-12)


# -- the posterior -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prior", "b"), [("laplace", 0.3), ("laplace", 0.05), ("normal", 0.3)])
def test_the_posterior_is_the_dense_one(prior: str, b: float) -> None:
    x, y = planted(60, [0.9, -0.3], seed=4)
    x[:5], y[:5] = [[1, 0.5]] * 5, 1  # also a row that is no sign
    grid = np.linspace(-2.5, 2.5, 801)
    one, two = np.meshgrid(grid, grid, indexing="ij")
    eta = x[:, 0, None, None] * one + x[:, 1, None, None] * two
    log = (y[:, None, None] * eta - np.logaddexp(0, eta)).sum(0)
    log -= (abs(one) + abs(two)) / b if prior == "laplace" else (one**2 + two**2) / (2 * b * b)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = PreferenceRegression(prior, b=b, heldout=0, draws=1200, seed=2).fit(x, y).posterior_  # type: ignore[arg-type]
    for k, axis in enumerate((one, two)):
        mean = float((weight * axis).sum())
        sd = float(np.sqrt((weight * (axis - mean) ** 2).sum()))
        draws = found.flat[:, k]
        assert abs(draws.mean() - mean) < SIGMAS * sd / np.sqrt(found.ess[k])
        # The fourth moment of these posteriors is at most a Laplace's: the sd errs by 1.2 / sqrt(draws).
        assert abs(draws.std() / sd - 1) < SIGMAS * 1.2 / np.sqrt(found.ess[k])
        below = float(weight[axis < 0].sum() + weight[axis == 0].sum() / 2)  # a cell lies on zero
        error = np.sqrt(below * (1 - below) / found.ess[k])
        assert abs((draws < 0).mean() - below) < SIGMAS * error


def test_planted_effects_come_back(fitted: PreferenceRegression) -> None:
    effects = fitted.posterior_.effects()
    for name, true in (("belief", 0.6), ("long", -0.4), ("list", 0.0)):
        assert effects[name].low <= true <= effects[name].high
    assert effects["belief"].low > 0 > effects["long"].high
    chances = fitted.posterior_.effect_probability()
    assert chances["belief"].low > 0.5 and chances["list"].low < 0.5 < chances["list"].high
    assert fitted.posterior_.rhat.max() < 1.01 and fitted.posterior_.ess.min() > 400
    accuracy = fitted.posterior_.heldout_accuracy()
    assert accuracy.low > 0.5 and accuracy.n == 600
    table = fitted.posterior_.calibration(5)
    assert table.n.sum() == 600 and (table.observed.iloc[-1] - table.observed.iloc[0]) > 0.1


def test_a_copy_is_credited_by_win_rates_only() -> None:
    x, y = planted(8000, [0.5, 0.0], seed=0)
    copied = np.random.default_rng(1).random(8000) < 0.6
    x[copied, 1] = x[copied, 0]
    y = (np.random.default_rng(2).random(8000) < 1 / (1 + np.exp(-0.5 * x[:, 0]))).astype(int)
    wins = design.win_rates(x, y)
    found = PreferenceRegression(b=0.1, draws=200).fit(x, y).posterior_
    assert wins.low[1] > 0.5
    assert found.effects()["feature 1"].low < 0 < found.effects()["feature 1"].high
    assert found.vif[1] > 1.3 and found.correlations[0, 1] > 0.5


def test_row_order_and_swaps_change_no_bit() -> None:
    x, y = planted(300, [0.4, -0.2, 0.1], seed=0)
    order = np.random.default_rng(0).permutation(300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first = PreferenceRegression(b=0.2, draws=60).fit(x, y).posterior_.draws
        again = PreferenceRegression(b=0.2, draws=60).fit(x[order], y[order]).posterior_.draws
        assert np.array_equal(first, again)
        swapped = np.random.default_rng(1).random(300) < 0.5
        sign = np.where(swapped, -1, 1)
        whole = PreferenceRegression(b=0.2, draws=60, heldout=0)
        assert np.array_equal(
            whole.fit(x, y).posterior_.draws,
            whole.fit(x * sign[:, None], np.where(swapped, 1 - y, y)).posterior_.draws,
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prior", "normal"),
        ("b", 0.02),
        ("heldout", 0.5),
        ("chains", 3),
        ("draws", 70),
        ("warmup", 3),
        ("seed", 1),
    ],
)
def test_every_option_changes_the_answer(option: str, value: object) -> None:
    x, y = planted(200, [0.5, -0.3], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        plain = PreferenceRegression(b=0.2, draws=60).fit(x, y).posterior_
        other = PreferenceRegression(**{"b": 0.2, "draws": 60, option: value}).fit(x, y).posterior_  # type: ignore[arg-type]
    assert plain.draws.shape != other.draws.shape or not np.array_equal(plain.draws, other.draws)


def test_the_chosen_scale_is_warned_of_at_the_end_of_the_grid() -> None:
    stream = np.random.default_rng(0)
    x = np.repeat(stream.choice([-1.0, 1.0], size=(400, 6)), 2, axis=0)
    noise = np.tile([0, 1], 400)  # every pair was judged twice, once each way
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.warns(EdgeWarning, match=r"b = 0.01 is at the end"):
            found = PreferenceRegression(draws=100).fit(x, noise)
        assert found.b_ == 0.01 and set(found.log_likelihoods_) == {0.01, 0.03, 0.1, 0.3, 1.0}
        with pytest.warns(EdgeWarning, match="b = 1"):
            PreferenceRegression(draws=100).fit(x, (x[:, 0] > 0).astype(int))


def test_chains_that_did_not_mix_are_warned_of() -> None:
    x, y = planted(300, [0.5, 0.0], seed=0)
    with pytest.warns(ConvergenceWarning, match="effective draws"):
        PreferenceRegression(b=0.1, draws=50, warmup=0).fit(x, y)


def test_saved_and_loaded_it_says_the_same(fitted: PreferenceRegression, tmp_path: Path) -> None:
    again = Posterior.load(fitted.posterior_.save(tmp_path))
    assert again.to_frame().equals(fitted.posterior_.to_frame())
    assert again.heldout_accuracy() == fitted.posterior_.heldout_accuracy()
    assert "belief" in again._repr_html_() and len(again.plot().data) == 1
    (tmp_path / "posterior.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="no readable posterior"):
        Posterior.load(tmp_path)


def test_the_majority_rule_is_right_where_one_feature_decides() -> None:
    x, _ = planted(400, [1.0, 0.0], seed=0)
    x = x[:, :1]
    y = (x[:, 0] > 0).astype(int)
    train = np.arange(400) < 200
    found = design.majority_rule(x, y, train=train)
    zeros = (x[~train, 0] == 0).mean()
    assert found.value == pytest.approx(1 - zeros / 2)  # ties count half


# -- refusals ------------------------------------------------------------------------------------------------

X, Y = planted(40, [0.5, 0.2], seed=0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.c_[X, np.ones(40)], Y, "feature 2' is 1 in every row"),
        (np.c_[X, X[:, 0]], Y, "'feature 0' and 'feature 2' are equal or opposite"),
        (np.c_[X, -X[:, 1]], Y, "'feature 1' and 'feature 2' are equal or opposite"),
        (np.where(np.arange(80).reshape(40, 2) == 7, np.nan, X), Y, "row 3, feature 'feature 1'"),
        (X, np.where(np.arange(40) == 6, 2, Y), "row 6: y is 2"),
        (X, np.where(np.arange(40) == 6, np.nan, Y), "row 6: y is nan"),
        (X, Y[:-1], "y has shape"),
        (X[:0], Y[:0], "X has shape"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PreferenceRegression(b=0.1).fit(x, y)


@pytest.mark.parametrize(
    "options", [{"prior": "flat"}, {"b": 0.0}, {"b": "best"}, {"heldout": 1.0}, {"chains": 1}, {"draws": 10}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PreferenceRegression(**options).fit(X, Y)  # type: ignore[arg-type]
