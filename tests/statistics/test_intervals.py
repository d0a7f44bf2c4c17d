"""Coverage of intervals for a share, by exact enumeration; of Student's t, by simulation.

For a count the coverage at a true share p is a finite sum, so nothing here is left to chance: a wrong
quantile or a swapped tail moves these numbers far outside their bands.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import clopper_pearson, one_sided_bound, t_interval, wilson

SHARES = np.linspace(0.005, 0.995, 199)


def coverage(estimates, n):
    """Exact probability, at each share, that the interval made from the count contains the share."""
    low = np.array([e.low for e in estimates])
    high = np.array([e.high for e in estimates])
    inside = (low <= SHARES[:, None]) & (SHARES[:, None] <= high)  # (shares, counts)
    return (binom.pmf(np.arange(n + 1), n, SHARES[:, None]) * inside).sum(1)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 5, 20, 100])
def test_clopper_pearson_covers_at_least_its_level_everywhere(n, level):
    found = coverage([clopper_pearson(k, n, level) for k in range(n + 1)], n)
    assert found.min() >= level - 1e-12
    assert found.min() < 1 - (1 - level) / 50, "an interval of [0, 1] would pass the first line"


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize(("n", "level"), [(5, 0.95), (20, 0.95), (100, 0.95), (20, 0.9)])
def test_one_sided_bound_covers_at_least_its_level_and_hardly_more_at_its_best(n, level, side):
    found = coverage([one_sided_bound(k, n, level, side) for k in range(n + 1)], n)
    assert level - 1e-12 <= found.min() <= level + 0.002


@pytest.mark.parametrize(
    ("n", "least"), [(5, 0.83), (10, 0.85), (20, 0.90), (50, 0.91), (100, 0.91), (400, 0.93)]
)
def test_wilson_covers_its_level_on_average_and_never_less_than_stated(n, least):
    found = coverage([wilson(k, n) for k in range(n + 1)], n)
    assert 0.949 <= found.mean() <= 0.955
    assert least <= found.min() <= 0.95


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (41, 300), (1, 1)])
@pytest.mark.parametrize(("ours", "theirs"), [(wilson, "wilson"), (clopper_pearson, "exact")])
def test_share_intervals_equal_scipys(ours, theirs, k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method=theirs)
    found = ours(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert found.value == k / n and found.n == n


@pytest.mark.parametrize("interval", [wilson, clopper_pearson, one_sided_bound])
def test_the_point_lies_in_its_interval_for_every_count(interval):
    for n in range(1, 40):
        for k in range(n + 1):
            found = interval(k, n)
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_t_interval_covers_its_level_at_n_6():
    # Exact for normal values; 4 standard errors of 4,000 simulations are 0.0138.
    simulations, n = 4000, 6
    draws = np.random.default_rng(1).normal(2.0, 3.0, size=(simulations, n))
    found = np.mean([e.low <= 2.0 <= e.high for e in map(t_interval, draws)])
    assert abs(found - 0.95) < 4 * math.sqrt(0.95 * 0.05 / simulations)
    # The tolerance would notice normal quantiles in the place of Student's: they cover 0.893 here.
    assert student.cdf(1.96, n - 1) * 2 - 1 < 0.95 - 4 * math.sqrt(0.95 * 0.05 / simulations)


def test_t_interval_equals_scipys():
    x = np.random.default_rng(0).gamma(2.0, size=17)
    expected = student.interval(0.9, 16, loc=x.mean(), scale=x.std(ddof=1) / math.sqrt(17))
    found = t_interval(x, 0.9)
    assert (found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson, one_sided_bound])
def test_no_trials_are_undefined_with_a_reason(interval):
    found = interval(0, 0)
    assert not found.defined and "no trials" in found.method


def test_no_value_and_one_value():
    assert not t_interval([]).defined
    one = t_interval([3.0])
    assert (one.value, one.low, one.high, one.n) == (3.0, -math.inf, math.inf, 1)
    same = t_interval([2.0, 2.0, 2.0])
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("k", "n"), [(-1, 5), (6, 5), (2.5, 5), (1, -1), (math.nan, 5), ("x", 5), (1, math.inf)]
)
@pytest.mark.parametrize("interval", [wilson, clopper_pearson, one_sided_bound])
def test_impossible_counts_are_refused(interval, k, n):
    with pytest.raises(InputError):
        interval(k, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -0.5])
def test_impossible_levels_are_refused(level):
    for make in (lambda: wilson(1, 2, level), lambda: t_interval([1.0, 2.0], level)):
        with pytest.raises(InputError, match="level"):
            make()


def test_nan_is_refused_and_located():
    with pytest.raises(InputError, match="the first at 1"):
        t_interval([1.0, math.nan, 2.0])
    with pytest.raises(InputError, match="shape"):
        t_interval([[1.0, 2.0]])


def test_unknown_side_is_refused():
    with pytest.raises(InputError, match="sideways"):
        one_sided_bound(1, 2, side="sideways")  # type: ignore[arg-type]


def test_numpy_counts_and_torch_values_are_taken():
    torch = pytest.importorskip("torch", reason="values may come as tensors; torch is a dependency")
    assert wilson(np.int64(3), np.int64(5)) == wilson(3, 5)
    assert wilson(3.0, 5.0) == wilson(3, 5)  # type: ignore[arg-type]
    assert t_interval(torch.tensor([1.0, 2.0, 3.0])) == t_interval([1.0, 2.0, 3.0])
