"""Exponents: exact laws come back exactly, intervals cover, breaks are found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate
from glasshouse.statistics.slopes import agree, local_slopes, log_slope, power_breaks


@pytest.mark.parametrize("slope", [-2.5, 0.0, 0.3])
def test_an_exact_law_has_its_exponent_and_no_error(slope):
    x = np.geomspace(1, 1e6, 12)
    found = log_slope(x, 7 * x**slope)
    assert found.value == pytest.approx(slope, abs=1e-12)
    assert found.high - found.low < 1e-9


def test_the_interval_covers_at_its_level():
    """400 noisy lines at level 0.95: misses are Binomial(400, 0.05), so 20 +- 4 sd = 3 .. 37."""
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 1e3, 10)
    misses = 0
    for _ in range(400):
        y = 5 * x**-0.7 * np.exp(0.2 * rng.standard_normal(10))
        misses += log_slope(x, y).excludes(-0.7)
    assert 3 <= misses <= 37


def test_errors_weight_the_rows():
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 2.0, 4.0, 80.0])
    plain = log_slope(x, y).value
    weighted = log_slope(x, y, error=y * [0.01, 0.01, 0.01, 10.0]).value
    assert plain > 1.5 > weighted > 0.99


def test_a_window_keeps_only_its_points():
    x = np.geomspace(1, 1e4, 41)
    y = np.where(x < 100, x, 100.0)
    assert log_slope(x, y, window=(1, 90)).value == pytest.approx(1)
    assert log_slope(x, y, window=(110, 1e4)).value == pytest.approx(0, abs=1e-12)
    assert not log_slope(x, y, window=(1, 1.5)).defined


def test_local_slopes_of_a_quadratic_in_logs():
    x = np.exp(np.linspace(0, 3, 31))
    assert local_slopes(x, np.exp(np.log(x) ** 2)) == pytest.approx(2 * np.log(x), abs=1e-9)


def test_breaks_are_found_where_they_were_planted():
    rng = np.random.default_rng(1)
    x = np.geomspace(1, 1e6, 40)
    logs = np.log(x)
    knots = logs[[12, 27]]
    y = -logs + 0.5 * np.maximum(logs - knots[0], 0) + 0.5 * np.maximum(logs - knots[1], 0)
    found = power_breaks(x, np.exp(y + 0.02 * rng.standard_normal(40)), breaks=2)
    assert found.slopes == pytest.approx([-1, -0.5, 0], abs=0.05)
    for i, knot in enumerate(np.exp(knots)):
        assert found.low[i] <= knot <= found.high[i]


def test_agreement_is_inside_the_interval_or_within_the_tolerance():
    estimate = Estimate(1.0, 0.9, 1.1, 0.95, 5, "t")
    assert agree(1.05, estimate)
    assert not agree(1.2, estimate)
    assert agree(1.2, estimate, rtol=0.2)
    assert not agree(1.0, Estimate.undefined("nothing"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_slope([1, 2, 3], [1, -2, 3]),
        lambda: log_slope([0, 2, 3], [1, 2, 3]),
        lambda: log_slope([1, 2, 3], [1, 2]),
        lambda: log_slope([1, 2, float("nan")], [1, 2, 3]),
        lambda: log_slope([1, 2, 3], [1, 2, 3], error=[1, 0, 1]),
        lambda: power_breaks([1, 2, 3, 4], [1, 2, 3, 4]),
        lambda: local_slopes([3, 2, 1], [1, 1, 1]),
    ],
)
def test_what_has_no_exponent_is_refused(call):
    with pytest.raises(InputError):
        call()
