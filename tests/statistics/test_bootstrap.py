"""Bootstrap intervals: coverage against what theory gives for the percentile method, not against 0.95.

For normal values the percentile interval of a mean is mean +- z sd sqrt((n - 1) / n) / sqrt(n). It covers
with probability P(|t| < z sqrt((n - 1) / n)), t with n - 1 degrees of freedom: 0.942
at n = 50, 0.921 at n = 15.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import _bootstrap, bootstrap, bootstrap_paired

SIMULATIONS = 1500


def percentile_coverage(units):
    return stats.t.cdf(1.959964 * math.sqrt((units - 1) / units), units - 1) * 2 - 1


def tolerance(coverage):
    """Four standard errors of the simulation, and 0.005 for the quantiles of 1,000 resamples."""
    return 4 * math.sqrt(coverage * (1 - coverage) / SIMULATIONS) + 0.005


def covered(make, truth):
    found = [make(i) for i in range(SIMULATIONS)]
    return np.mean([e.low <= truth <= e.high for e in found])


@pytest.mark.parametrize("n", [15, 50])
def test_plain_coverage(n):
    draws = np.random.default_rng(n).normal(size=(SIMULATIONS, n))
    found = covered(lambda i: bootstrap(draws[i], resamples=1000, seed=i), 0.0)
    assert abs(found - percentile_coverage(n)) < tolerance(percentile_coverage(n))


def test_paired_coverage_and_what_pairing_gains():
    random = np.random.default_rng(2)
    prompt = random.normal(0, 5, size=(SIMULATIONS, 30))  # a difficulty that both models share
    a, b = (prompt + random.normal(size=prompt.shape) + shift for shift in (0.5, 0.0))
    found = covered(lambda i: bootstrap_paired(a[i], b[i], resamples=1000, seed=i), 0.5)
    assert abs(found - percentile_coverage(30)) < tolerance(percentile_coverage(30))
    paired, single = bootstrap_paired(a[0], b[0]), bootstrap(a[0])
    assert paired.high - paired.low < (single.high - single.low) / 2


def test_clustered_coverage_and_the_undercoverage_without_clusters():
    clusters, size = 30, 8
    random = np.random.default_rng(3)
    shared = random.normal(size=(SIMULATIONS, clusters, 1))
    draws = (shared + random.normal(size=(SIMULATIONS, clusters, size)) * 0.5).reshape(SIMULATIONS, -1)
    names = np.repeat(np.arange(clusters), size)
    found = covered(lambda i: bootstrap(draws[i], clusters=names, resamples=1000, seed=i), 0.0)
    assert abs(found - percentile_coverage(clusters)) < tolerance(percentile_coverage(clusters))
    blind = [bootstrap(draws[i], resamples=300, seed=i) for i in range(200)]
    assert np.mean([e.low <= 0 <= e.high for e in blind]) < 0.75


def test_bca_misses_a_skewed_mean_more_evenly_than_percentile():
    """12,000 simulations elsewhere: the truth lies above / below the percentile interval in 0.075 / 0.016 of
    samples, of BCa in 0.053 / 0.028. The two share samples and resamples: the difference of these imbalances,
    0.034, has a standard error of about 0.005 here, so half of it is three standard errors.
    """
    draws = np.random.default_rng(4).exponential(size=(SIMULATIONS, 25))

    def imbalance(method):
        found = [bootstrap(x, resamples=1000, seed=i, method=method) for i, x in enumerate(draws)]
        return np.mean([e.high < 1.0 for e in found]) - np.mean([e.low > 1.0 for e in found])

    assert imbalance("bca") < imbalance("percentile") - 0.017


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("statistic", [np.mean, np.std])
def test_agrees_with_scipy(method, statistic):
    x = np.random.default_rng(5).gamma(1.5, size=80)
    ours = bootstrap(x, statistic, resamples=8000, method=method)
    theirs = stats.bootstrap(
        (x,), statistic, n_resamples=8000, method=method.replace("bca", "BCa"), rng=np.random.default_rng(6)
    )
    # Ends of two independent sets of 8,000 resamples differ by about 0.035 standard errors; allow six times.
    slack = 0.2 * theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=slack)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=slack)
    assert ours.value == statistic(x)


def test_the_fast_mean_equals_the_loop():
    x = np.random.default_rng(7).normal(size=(40, 3))
    names = [f"model {i % 9}" for i in range(40)]
    for clusters in (None, names):
        for method in ("percentile", "bca"):
            fast = bootstrap(x, clusters=clusters, method=method, resamples=300)
            slow = bootstrap(
                x, lambda rows: float(rows.mean()), clusters=clusters, method=method, resamples=300
            )
            assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), rel=1e-12)


def test_same_seed_same_bits_whatever_the_block(monkeypatch):
    x = np.random.default_rng(8).normal(size=30)
    whole = bootstrap(x, seed=3)
    assert bootstrap(x, seed=3) == whole and bootstrap(x, seed=4) != whole
    monkeypatch.setattr(_bootstrap, "_BLOCK", 100)
    assert bootstrap(x, seed=3) == whole


def test_the_names_and_order_of_clusters_do_not_matter_to_the_point():
    x = [1.0, 2.0, 3.0, 10.0]
    assert bootstrap(x, clusters=["a", "a", "a", "b"]).value == bootstrap(x).value == 4.0
    assert bootstrap(x, clusters=["a", "a", "a", "b"]).n == 2


def test_degenerate_values():
    assert not bootstrap([]).defined
    same = bootstrap([2.0] * 5)
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)
    assert bootstrap([2.0] * 5, method="bca") == bootstrap([2.0] * 5, method="bca")
    one = bootstrap([3.0])
    assert (one.value, one.low, one.high) == (3.0, -math.inf, math.inf)
    assert bootstrap([1.0, 2.0], clusters=["same", "same"]).high == math.inf


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap([1.0, math.nan]), "the first at 1"),
        (lambda: bootstrap([1.0, math.inf]), "NaN or infinite"),
        (lambda: bootstrap(3.0), "single number"),
        (lambda: bootstrap(["a", "b"]), "not an array of numbers"),
        (lambda: bootstrap([1.0, 2.0], clusters=["a"]), "1 cluster names for 2 values"),
        (lambda: bootstrap([1.0, 2.0], resamples=0), "resamples is 0"),
        (lambda: bootstrap([1.0, 2.0], method="t"), "method 't'"),
        (lambda: bootstrap([1.0, 2.0], "median"), "statistic is 'median'"),
        (lambda: bootstrap([1.0, 2.0], lambda x: math.nan), "the statistic is nan"),
        (lambda: bootstrap_paired([1.0], [1.0, 2.0]), r"shape \(1,\) and b \(2,\)"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError, match=says):
        call()
