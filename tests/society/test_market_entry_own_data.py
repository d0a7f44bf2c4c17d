"""`EmpiricalMarket` on curves whose law is known, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glasshouse.runtime.errors import InputError
from glasshouse.society.market_entry import (
    EmpiricalMarket,
    EntryMarket,
    ErrorCurve,
    entry_threshold,
    loss_curve,
)

SIZES = np.geomspace(50, 5e4, 10)


def planted(alphas, *, slow=2.0, nu=0.5, noise=0.01, seed=0):
    """L = 3 N^-nu + slow (1 - a) N^-(nu/(nu+1)) + (1 - a)^2, with relative noise."""
    generator = np.random.default_rng(seed)
    curves = {}
    for alpha in alphas:
        loss = 3 * SIZES**-nu + slow * (1 - alpha) * SIZES ** (-nu / (nu + 1)) + (1 - alpha) ** 2
        curves[alpha] = ErrorCurve.of(
            SIZES, loss * (1 + noise * generator.standard_normal(len(SIZES))), noise * loss
        )
    return curves


def crossing(alpha_I, N_I, *, slow, nu=0.5):
    """N at which 3 N^-nu equals the incumbent's planted loss."""
    a = 1 - alpha_I
    target = a**2 if N_I is None else 3 * N_I**-nu + slow * a * N_I ** (-nu / (nu + 1)) + a**2
    return (target / 3) ** (-1 / nu)


@pytest.mark.parametrize("N_I", [1000.0, None])
def test_planted_thresholds_lie_in_their_intervals(N_I):
    curves = planted((0.7, 0.8, 0.9, 1.0))
    market = EmpiricalMarket(curves, {a: a * a for a in curves}, resamples=100).fit()
    found = market.entry_threshold(tau_I=0.81, N_I=N_I)
    truth = crossing(0.9, N_I, slow=2.0)
    assert not found.N_E.excludes(truth)
    assert found.N_E.high / found.N_E.low < 2
    assert found.extrapolated == (not SIZES[0] <= found.N_E.value <= SIZES[-1])


def test_the_slow_term_is_seen_where_planted_and_not_elsewhere():
    there = EmpiricalMarket(planted((0.7, 0.9, 1.0)), lambda a: a * a, resamples=60).fit()
    absent = EmpiricalMarket(planted((0.7, 0.9, 1.0), slow=0.0), lambda a: a * a, resamples=60).fit()
    assert there.slowdown_p_ < 0.05 < absent.slowdown_p_
    assert not absent.nu_.excludes(0.5)


def test_the_plateau_is_recovered():
    market = EmpiricalMarket(planted((0.7, 0.9, 1.0), slow=0.0), lambda a: a * a, resamples=60).fit()
    found = market.plateau(0.7)
    assert found.low <= 0.09 <= found.high and found.high - found.low < 0.02


def test_tables_of_the_model_give_the_models_threshold():
    """Curves from the deterministic equivalent: within 15 %, although the fit's law is only asymptotic."""
    market = EntryMarket(tau_I=0.81, N_I=1000.0)
    curves = {}
    for alpha in (0.7, 0.8, 0.9, 0.95, 1.0):
        loss = loss_curve(market, alpha, SIZES)["L1"]
        curves[alpha] = ErrorCurve.of(SIZES, loss, 0.01 * loss)
    found = EmpiricalMarket(curves, {a: a * a for a in curves}, resamples=20).fit()
    told = found.entry_threshold(tau_I=0.81, N_I=1000.0)
    assert told.N_E.value == pytest.approx(entry_threshold(market).value, rel=0.15)
    assert "no theorem" in told.summary()[-1]


def test_a_file_gives_the_market_of_its_rows(tmp_path):
    curves = planted((0.8, 1.0))
    rows = ["alpha,N,error,safety,se"]
    for alpha, curve in curves.items():
        rows += [
            f"{alpha},{n},{e},{alpha**2},{s}" for n, e, s in zip(curve.N, curve.error, curve.se, strict=True)
        ]
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(rows))
    read = EmpiricalMarket.from_csv(path, resamples=10).fit()
    direct = EmpiricalMarket(curves, {a: a**2 for a in curves}, resamples=10).fit()
    assert read.fit_.nu == pytest.approx(direct.fit_.nu, rel=1e-6)
    assert read.alpha_for(0.9) == pytest.approx(direct.alpha_for(0.9))


def test_a_callback_is_trained_for_every_combination():
    asked = []

    def train(n, alpha, seed):
        asked.append((n, alpha, seed))
        noise = 1e-3 * np.random.default_rng([n, int(100 * alpha), seed]).standard_normal()
        return 2 * n**-0.5 + (1 - alpha) ** 2 + noise, alpha

    market = EmpiricalMarket.from_training(
        train, [10, 40, 160, 640, 2560], [0.8, 1.0], seeds=3, resamples=20
    ).fit()
    assert len(asked) == 30
    assert market.plateau(0.8).value == pytest.approx(0.04, abs=0.02)


def test_a_single_curve_with_a_tradeoff_gives_a_lower_bound():
    curve = planted((1.0,))[1.0]
    market = EmpiricalMarket.from_tradeoff(curve, lambda a: ((1 - a) ** 2, a), [0.8, 1.0], resamples=10).fit()
    bound = market.entry_threshold(tau_I=0.8, N_I=1e4).N_E.value
    assert bound == pytest.approx(crossing(0.8, 1e4, slow=0.0), rel=0.1)
    assert bound > crossing(0.8, 1e4, slow=2.0)  # a slower incumbent is easier to overtake


def test_equal_companies_need_equal_data_and_laxer_limits_less():
    curves = planted((0.7, 0.85, 1.0))
    market = EmpiricalMarket(curves, {a: a for a in curves}, resamples=20).fit()
    same = market.entry_threshold(tau_I=0.85, tau_E=0.85, N_I=2000.0).N_E.value
    assert same == pytest.approx(2000.0, rel=1e-6)
    assert market.entry_threshold(tau_I=0.85, N_I=2000.0).N_E.value < same
    never = market.entry_threshold(tau_I=None, tau_E=0.7)
    assert not never.N_E.defined and never.never > 0.9


def test_a_power_law_is_fitted():
    curve = ErrorCurve.of(SIZES, 3 * SIZES**-0.4 + 0.1)
    found = curve.fit(resamples=20)
    assert found.nu.value == pytest.approx(0.4, abs=1e-3)
    assert found.E_inf.value == pytest.approx(0.1, abs=1e-3)
    np.testing.assert_allclose(found.at(SIZES), curve.error, rtol=1e-3)


@pytest.mark.parametrize(
    ("N", "error", "said"),
    [
        ([1, 2, 3], [3, 2, 1], "3 points"),
        ([1, 2, 3, -4], [4, 3, 2, 1], "row 4"),
        ([1, 2, 3, 4], [4, 3, math.nan, 1], "row 3"),
        ([1, 2, 2, 4], [4, 3, 2, 1], "two different errors"),
        ([1, 2, 3, 4], [4, 3, 3.9, 1], "row 3: the error rises"),
        ([1, 2, 3, 4], [4, 3, 2], "lengths"),
    ],
)
def test_bad_rows_are_named(N, error, said):
    with pytest.raises(InputError, match=said):
        ErrorCurve.of(N, error)


def test_noise_may_rise_and_more_may_not():
    N, error = [1, 2, 4, 8], [1.0, 0.5, 0.52, 0.4]
    ErrorCurve.of(N, error, [0.05] * 4)
    with pytest.raises(InputError, match="beyond noise"):
        ErrorCurve.of(N, error, [0.001] * 4)


def test_bad_files_are_named_with_their_line(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("N,error\n1,2\n2,x\n")
    with pytest.raises(InputError, match=r"curve\.csv:3"):
        ErrorCurve.from_csv(path)
    path.write_text("N,loss\n1,2\n")
    with pytest.raises(InputError, match="no column 'error'"):
        ErrorCurve.from_csv(path)
    with pytest.raises(InputError, match="cannot be read"):
        ErrorCurve.from_csv(tmp_path / "absent.csv")


def test_markets_without_a_pure_curve_or_a_safe_alpha_are_refused():
    with pytest.raises(InputError, match="alpha = 1"):
        EmpiricalMarket(planted((0.7, 0.9)), lambda a: a).fit()
    market = EmpiricalMarket(planted((0.7, 1.0)), lambda a: a, resamples=2).fit()
    with pytest.raises(InputError, match="no alpha"):
        market.entry_threshold(tau_I=0.1)
    with pytest.raises(InputError, match="not measured"):
        market.plateau(0.3)
