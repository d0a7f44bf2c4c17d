"""Market entry: the deterministic equivalent against simulation and brute force, the theorems' exponents."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime.errors import InputError
from glasshouse.society.market_entry import (
    EntryMarket,
    EntryResult,
    SimulatedLoss,
    entry_curve,
    entry_gap_curve,
    entry_threshold,
    finite_sample_curve,
    fit_exponent,
    loss_curve,
    loss_exponent,
    naive_extrapolation,
    regime_breaks,
    simulate_loss,
)
from glasshouse.society.market_entry.equivalent import best_constrained, best_losses, least_kappa, losses_at
from glasshouse.society.market_entry.monte_carlo import Targets, _kappa
from glasshouse.society.market_entry.spectrum import Spectrum, tables
from glasshouse.statistics.slopes import log_slope


def test_nothing_heavy_is_imported():
    code = (
        "import sys, glasshouse.society.market_entry as m; m.EntryMarket(); "
        "print([x for x in ('torch', 'pandas', 'plotly', 'sklearn') if x in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_solving_and_simulating_never_import_torch():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import glasshouse.society.market_entry as m; "
        "k = m.EntryMarket(); m.entry_threshold(k); m.simulate_loss(k, 0.7, 10, 0.01, P=60, draws=2); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# ── spectrum ──


@pytest.mark.parametrize(("gamma", "delta"), [(0.5, 0.5), (0.34, 0.0), (1.0, 2.0)])
def test_compressed_sums_equal_the_full_spectrum(gamma, delta):
    """P = 1e6 terms summed one by one; the buckets are promised to 1e-4."""
    i = np.arange(1, 1_000_001, dtype=float)
    full = Spectrum(i ** -(1 + gamma), i**-delta, np.ones_like(i))
    compressed = tables(gamma, delta, 1e6)
    for kappa in (1e-6, 1e-3, 1.0):
        exact, fast = full.sums(kappa), compressed.at(np.array([kappa]))
        for name, value in exact.items():
            assert float(fast[name][0]) == pytest.approx(float(value), rel=1e-4), name


def test_tables_refuse_what_they_do_not_cover():
    with pytest.raises(InputError, match="kappa"):
        tables(0.5, 0.5, 1e4).at(np.array([1e-30]))


# ── the equivalent against simulation ──


def test_theory_equals_the_direct_formula():
    """Averaged over Rademacher targets, Targets.theory is the closed form of the tables."""
    market = EntryMarket(rho=0.3, P=600)
    N, lam, alpha = 100.0, 1e-3, 0.7
    pairs = [Targets.draw(market, 600, seed) for seed in range(3000)]
    kappa = _kappa(pairs[0].lam, N, lam)
    direct = np.array([p.theory(alpha, N, lam)["L1_limit"] for p in pairs])
    closed = losses_at(market.changed({"finite_size": False}), alpha, N, np.array(kappa))
    error = direct.std() / math.sqrt(len(pairs))
    assert float(closed.lam) == pytest.approx(lam, rel=1e-6)
    assert abs(direct.mean() - float(closed.L1)) < 4 * error


@pytest.mark.filterwarnings("ignore:P = ")
@pytest.mark.parametrize("labels", ["integrated", "drawn"])
def test_simulation_agrees_with_theory(labels):
    found = simulate_loss(
        EntryMarket(rho=0.3), 0.7, 60, [1e-3, 1e-2], P=360, draws=150, seed=3, targets="fixed", labels=labels
    )
    for at in (0, 1):
        gap = found.gap("L1", at)
        assert abs(gap.value) < max(0.03, 4 * (gap.high - gap.low) / (2 * 1.96))
        wrong = Targets.draw(EntryMarket(rho=0.3), 360, 1).theory(1.0, 60, float(found.lam[at]))["L1"]
        assert abs(found.L1[:, at].mean() / wrong - 1) > 0.2  # the null case: other targets, no mixture


@pytest.mark.filterwarnings("ignore:P = ")
def test_both_terms_of_order_one_over_n_are_needed():
    """At N = 20 the spec's single term is too high; both terms together lie within 4 se."""
    market = EntryMarket(gamma=1.0, delta=2.0, rho=0.5)
    found = simulate_loss(market, 0.7, 20, 1e-4, P=200, draws=900, seed=0, targets="fixed")
    from glasshouse.runtime.seeds import derive

    theory = Targets.draw(market, 200, derive(0, "fixed")).theory(0.7, 20, 1e-4)
    mean, se = found.L1.mean(), found.L1.std() / 30
    assert abs(mean - theory["L1"]) < 4 * se + 0.02 * mean
    assert theory["L1_half"] > mean + 4 * se


@pytest.mark.filterwarnings("ignore:P = ")
def test_the_fit_is_sklearns_ridge():
    """scikit-learn's alpha is N lambda; losses of the same data must be equal to 1e-8."""
    from sklearn.linear_model import Ridge

    from glasshouse.society.market_entry.monte_carlo import _Numpy, _one_draw

    market, N, P, lam = EntryMarket(rho=0.2), 30, 90, 3e-3
    pair = Targets.draw(market, P, 0)
    Z = np.random.default_rng(0).standard_normal((N, P))
    choice = np.random.default_rng(1).random(N) > 0.6
    X = Z * np.sqrt(pair.lam)
    y = np.where(choice, X @ pair.two, X @ pair.one)
    coefficients = Ridge(alpha=N * lam, fit_intercept=False, solver="cholesky").fit(X, y).coef_
    expected = float(pair.lam @ (coefficients - pair.one) ** 2)
    assert _one_draw(_Numpy(), pair, 0.6, np.array([lam]), Z, choice)[0, 0] == pytest.approx(
        expected, rel=1e-8
    )


@pytest.mark.filterwarnings("ignore:P = ")
def test_integrated_labels_are_the_mean_of_drawn_ones():
    from glasshouse.society.market_entry.monte_carlo import _Numpy, _one_draw

    pair = Targets.draw(EntryMarket(rho=0.2), 80, 0)
    generator = np.random.default_rng(0)
    Z, lams = generator.standard_normal((15, 80)), np.array([1e-2])
    drawn = np.array([
        _one_draw(_Numpy(), pair, 0.7, lams, Z, generator.random(15) >= 0.7)[0, 0] for _ in range(3000)
    ])  # fmt: skip
    exact = _one_draw(_Numpy(), pair, 0.7, lams, Z, None)[0, 0]
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(3000)


@pytest.mark.filterwarnings("ignore:P = ")
def test_torch_gives_the_numbers_of_numpy():
    options = dict(P=100, draws=2, seed=1)
    plain = simulate_loss(EntryMarket(), 0.8, 20, [1e-3, 1e-1], **options)
    torch = simulate_loss(EntryMarket(), 0.8, 20, [1e-3, 1e-1], device="cpu", **options)
    np.testing.assert_allclose(torch.L1, plain.L1, rtol=1e-9)


def test_a_truncated_spectrum_warns():
    with pytest.warns(UserWarning, match="truncated"):
        simulate_loss(EntryMarket(), 0.7, 10, 0.1, P=50, draws=1)


@pytest.mark.filterwarnings("ignore:P = ")
def test_draws_do_not_depend_on_how_many_there_are():
    few, many = (simulate_loss(EntryMarket(), 0.7, 10, 0.1, P=50, draws=n, seed=2) for n in (2, 5))
    np.testing.assert_array_equal(few.L1, many.L1[:2])


# ── the optimum ──


@settings(max_examples=25, deadline=None)
@given(
    spectrum=st.sampled_from([(0.5, 0.5), (0.3, 0.0), (1.0, 1.5)]), rho=st.floats(0.0, 0.9),
    alpha=st.floats(0.5, 1.0), log_n=st.floats(1.0, 6.0),
)  # fmt: skip
def test_the_best_penalty_is_best(spectrum, rho, alpha, log_n):
    """No kappa on a fine feasible grid has a lower loss."""
    market = EntryMarket(gamma=spectrum[0], delta=spectrum[1], rho=rho)
    N = np.array([10.0**log_n])
    best = best_losses(market, np.array([alpha]), N)
    kappas = np.exp(np.linspace(least_kappa(market, N)[0], 5, 4000))
    grid = losses_at(market, alpha, N, kappas).excess
    assert best.excess[0] <= grid.min() * (1 + 1e-9)
    assert best.lam[0] >= 0


def test_more_performance_labels_never_hurt_performance():
    market = EntryMarket(rho=0.2)
    for N in (20.0, 1e4):
        losses = best_losses(market, np.linspace(0.5, 1, 21), np.full(21, N)).L1
        assert (np.diff(losses) <= 1e-12).all()


def test_an_unpenalised_fit_keeps_its_variance():
    curve = loss_curve(EntryMarket(), 0.9, np.geomspace(1e3, 1e8, 11))
    assert (curve["L1_unregularised"] > curve["L1"]).all()
    assert curve["L1_unregularised"][-1] - curve.notes["plateau"] > 0.01
    assert curve["excess"][-1] < 1e-4


# ── exponents ──


@pytest.mark.parametrize(
    ("gamma", "delta", "rho", "alpha", "column", "window", "exponent", "margin"),
    [
        (0.5, 0.5, 0.5, 0.9999, "L1", (1e7, 1e9), 0.5, 0.02),
        (0.5, 0.5, 0.5, 0.9, "excess", (1e7, 1e9), 0.5, 0.01),
        (1.0, 2.0, 0.5, 1.0, "L1", (1e6, 1e8), 3.0, 0.05),
        (1.0, 2.0, 0.5, 0.9, "excess", (1e7, 1e9), 2 / 3, 0.01),
    ],
)
def test_exponents_of_theorems_2_and_3(gamma, delta, rho, alpha, column, window, exponent, margin):
    market = EntryMarket(gamma=gamma, delta=delta, rho=rho)
    curve = loss_curve(market, alpha, np.geomspace(*window, 9))
    assert fit_exponent(curve["N"], curve[column], window).value == pytest.approx(exponent, abs=margin)


def test_regimes_follow_their_breaks():
    market = EntryMarket()
    breaks = regime_breaks(market, 0.9999)
    assert breaks.slow == pytest.approx(2e4)
    assert [loss_exponent(market, 0.9999, n) for n in (1e3, 1e6, 1e15)] == [1.0, 0.5, 0.0]
    assert regime_breaks(market, 1.0).plateau == math.inf


def test_thresholds_follow_theorem_4():
    curve = entry_curve(EntryMarket(), np.array([17.0, 20.0, 23.0, 8e8, 9e8, 1e9]))
    assert log_slope(curve["N_I"][:3], curve["N_E"][:3]).value > 0.85
    assert log_slope(curve["N_I"][3:], curve["N_E"][3:]).value < 0.05
    assert curve.words["regime"][0] == "moat" and curve.words["regime"][-1] == "flat"


def test_without_limits_the_newcomer_needs_what_the_incumbent_has():
    curve = entry_curve(EntryMarket(tau_I=None), np.geomspace(20, 1e8, 5))
    np.testing.assert_allclose(curve["N_E"], curve["N_I"], rtol=1e-6)


def test_gaps_follow_theorem_5():
    curve = entry_gap_curve(EntryMarket(gamma=1.0, delta=1.0), gap=np.geomspace(5e-9, 2e-6, 7))
    assert -log_slope(curve["gap"], curve["N_E"]).value == pytest.approx(1.5, abs=0.03)


def test_gap_and_limit_say_the_same():
    market = EntryMarket(tau_I=0.5)
    by_gap = entry_gap_curve(market, gap=[market.G_I / 2])
    by_limit = entry_gap_curve(market, tau_E=[float(by_gap["tau_E"][0])])
    assert by_limit["N_E"][0] == pytest.approx(by_gap["N_E"][0], rel=1e-6)


def test_a_market_without_a_gap_is_closed():
    found = entry_threshold(EntryMarket(tau_I=0.9, tau_E=0.9))
    assert found.N_E is None and found.regime == "closed" and "no finite number" in found.summary()[0]


def test_the_bracket_brackets():
    market = EntryMarket(N_I=500.0)
    found = entry_threshold(market)
    low, high = found.bracket
    at = best_losses(market, np.array([1.0, 1.0]), np.array([low * 0.999, high * 1.001])).L1
    assert at[0] > found.L_I > at[1] and found.certificate < 1e-9


def test_limits_at_each_size_are_met():
    """Under 'finite_sample' the safety loss stays at most tau, and large companies behave as at infinity."""
    market = EntryMarket(tau_I=0.9, constraint="finite_sample")
    N = np.geomspace(20, 1e8, 9)
    curve = finite_sample_curve(market, 0.9, N)
    assert (curve["L2"] <= 0.9 * market.L_star * (1 + 1e-9)).all()
    assert curve["alpha"][-1] == pytest.approx(market.alpha_I, abs=1e-4)
    assert curve["alpha"][0] > market.alpha_I + 0.01
    kappas = np.exp(np.linspace(-12, 2, 300))[:, None]
    alphas = np.linspace(0.5, 1, 401)[None]
    grid = losses_at(market, alphas, np.array(N[2]), kappas)
    best = grid.L1[0.9 * market.L_star >= grid.L2].min()
    assert best_constrained(market, np.array(0.9 * market.L_star), N[2:3]).L1[0] <= best * (1 + 1e-9)


def test_an_early_slope_promises_too_much():
    curve = naive_extrapolation(EntryMarket(), np.array([50.0, 1e7]))
    assert curve["ratio"][0] == pytest.approx(1, abs=0.05)
    assert curve["ratio"][1] > 10


# ── results and refusals ──


@pytest.mark.filterwarnings("ignore:P = ")
def test_results_come_back_from_disk(tmp_path):
    curve = entry_curve(EntryMarket(), np.array([50.0, 500.0]))
    again = type(curve).load(curve.save(tmp_path / "curve"))
    assert again.to_frame().equals(curve.to_frame()) and again.scenario == curve.scenario
    result = entry_threshold(EntryMarket(N_I=50.0))
    assert EntryResult.load(result.save(tmp_path / "entry")) == result
    simulated = simulate_loss(EntryMarket(), 0.7, 10, [0.1, 1.0], P=50, draws=3)
    back = SimulatedLoss.load(simulated.save(tmp_path / "loss"))
    assert back.to_frame().equals(simulated.to_frame())
    for thing in (curve, result, simulated):
        assert thing.plot().data and len(thing.to_frame())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gamma": 0.0}, "not summable"),
        ({"delta": -0.1}, "nu could be"),
        ({"rho": 1.0}, "identical"),
        ({"rho": 1.5}, "correlation"),
        ({"tau_I": 0.2}, "smallest feasible"),
        ({"N_I": 0.0}, "at least one point"),
        ({"P": 10}, "features"),
        ({"gamma": float("nan")}, "finite"),
        ({"lambda": 1}, "no field"),
    ],
)
def test_bad_markets_are_refused_in_a_sentence(changes, said):
    with pytest.raises(InputError, match=said):
        EntryMarket.parse(changes)


def test_other_bad_input_is_refused():
    market = EntryMarket()
    for call in (
        lambda: loss_curve(market, 0.4, [10.0]),
        lambda: loss_curve(market, 0.9, [10.0, -1.0]),
        lambda: loss_curve(market, 0.9, [1e30]),
        lambda: simulate_loss(market, 0.9, 0, 0.1, P=10),
        lambda: simulate_loss(market, 0.9, 5, -0.1, P=50),
        lambda: entry_gap_curve(market),
        lambda: entry_gap_curve(market, gap=[1.0]),
        lambda: curve_column(market),
    ):
        with pytest.raises(InputError):
            call()


def curve_column(market):
    return loss_curve(market, 0.9, [10.0])["nothing"]


def test_a_reversed_premise_warns():
    assert "reversed" in entry_threshold(EntryMarket(tau_I=0.9, tau_E=0.5)).summary()[-1]


def test_a_tolerance_in_losses_is_the_same_market():
    share = EntryMarket(tau_I=0.8)
    losses = EntryMarket(tau_I=0.8 * share.L_star, tau_unit="loss")
    assert losses.alpha_I == pytest.approx(share.alpha_I)
