"""P-values and what is built on them: sizes and powers, exact where they can be, else simulated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import (
    binomial_p_value,
    holm,
    minimum_detectable_effect,
    permutation_p_value,
    t_interval,
    tost,
)

SIMULATIONS = 4000
NOISE = 4 * math.sqrt(0.05 * 0.95 / SIMULATIONS)  # 0.0138


def holm_by_definition(p):
    """Reject the i-th smallest as long as all smaller were rejected: the smallest alpha that rejects it."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out = [0.0] * len(p)
    for rank, i in enumerate(order):
        out[i] = min(1.0, max((len(p) - j) * p[order[j]] for j in range(rank + 1)))
    return out


@pytest.mark.parametrize("p", [[], [0.2], [0.01, 0.04, 0.03], [0.5, 0.5, 0.5], [0.0, 1.0, 0.02, 0.02, 0.9]])
def test_holm_by_definition_in_every_order(p):
    for order in itertools.permutations(p):
        assert holm(order) == pytest.approx(holm_by_definition(order))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_holm_keeps_the_familywise_error_under_the_complete_null(correlation):
    tests = 6
    random = np.random.default_rng(0)
    shared = random.normal(size=(SIMULATIONS, 1))
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * random.normal(
        size=(SIMULATIONS, tests)
    )
    p = stats.norm.sf(z)
    error = np.mean([min(holm(row)) <= 0.05 for row in p])
    assert error <= 0.05 + NOISE
    assert np.mean(p.min(1) <= 0.05) > 0.05 + NOISE, "uncorrected p-values must fail this test"
    if correlation == 0.0:  # then the size is known exactly
        assert abs(error - (1 - (1 - 0.05 / tests) ** tests)) < NOISE


def test_tost_has_its_size_at_the_margin_and_power_inside():
    random = np.random.default_rng(1)
    n, margin = 25, 2.0
    at_margin = random.normal(margin, 1, size=(SIMULATIONS, n))
    assert abs(np.mean([tost(x, margin)[1] <= 0.05 for x in at_margin]) - 0.05) < NOISE
    assert abs(np.mean([tost(-x, margin)[1] <= 0.05 for x in at_margin]) - 0.05) < NOISE
    inside = random.normal(0, 1, size=(200, n))
    assert np.mean([tost(x, margin)[1] <= 0.05 for x in inside]) == 1.0


def test_tost_equals_two_t_tests_and_its_own_interval():
    random = np.random.default_rng(2)
    for _ in range(200):
        x = random.normal(0.3, 1, size=12)
        estimate, p = tost(x, 0.8)
        lower = stats.ttest_1samp(x, -0.8, alternative="greater").pvalue
        upper = stats.ttest_1samp(x, 0.8, alternative="less").pvalue
        assert p == pytest.approx(max(lower, upper))
        assert (p <= 0.05) == (estimate.low >= -0.8 and estimate.high <= 0.8)
        assert (estimate.low, estimate.high) == (t_interval(x, 0.9).low, t_interval(x, 0.9).high)
        assert estimate.level == pytest.approx(0.9)


def test_tost_of_hardly_anything():
    estimate, p = tost([], 1.0)
    assert not estimate.defined and math.isnan(p)
    assert tost([0.0], 1.0)[1] == 1.0
    assert tost([0.5, 0.5], 1.0)[1] == 0.0
    assert tost([1.5, 1.5], 1.0)[1] == 1.0


@pytest.mark.parametrize(("n", "power"), [(5, 0.8), (20, 0.8), (20, 0.95)])
def test_minimum_detectable_mean_has_its_power(n, power):
    effect = minimum_detectable_effect(n, sd=2.0, power=power)
    draws = np.random.default_rng(3).normal(effect, 2.0, size=(SIMULATIONS, n))
    found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05)
    assert abs(found - power) < 4 * math.sqrt(power * (1 - power) / SIMULATIONS)


@pytest.mark.parametrize(("n", "p"), [(20, 0.02), (100, 0.01), (400, 0.3)])
def test_minimum_detectable_rate_has_its_power_exactly(n, p):
    effect = minimum_detectable_effect(n, p=p)
    rejects = np.array([binomial_p_value(k, n, p) <= 0.05 for k in range(n + 1)])
    chances = stats.binom.pmf(np.arange(n + 1), n, p + effect)
    assert chances[rejects].sum() == pytest.approx(0.8)


def test_minimum_detectable_effect_at_its_ends():
    assert minimum_detectable_effect(1, sd=1.0) == math.inf
    assert minimum_detectable_effect(10, sd=0.0) == 0.0
    assert minimum_detectable_effect(0, p=0.1) == math.inf
    assert minimum_detectable_effect(2, p=0.9) == math.inf  # 2 of 2 has probability 0.81 already
    assert minimum_detectable_effect(80, sd=1.0) < minimum_detectable_effect(20, sd=1.0)


@pytest.mark.parametrize(("k", "n", "p0"), [(0, 5, 0.3), (3, 5, 0.3), (5, 5, 0.3), (1, 12, 0.5), (0, 3, 0.0)])
def test_binomial_p_value_by_enumeration(k, n, p0):
    chance = [math.comb(n, i) * p0**i * (1 - p0) ** (n - i) for i in range(n + 1)]
    assert binomial_p_value(k, n, p0) == pytest.approx(sum(chance[k:]))
    assert binomial_p_value(k, n, p0, "less") == pytest.approx(sum(chance[: k + 1]))
    as_rare = sum(c for c in chance if c <= chance[k] * (1 + 1e-9))
    assert binomial_p_value(k, n, p0, "two-sided") == pytest.approx(min(1.0, as_rare))


def test_no_trials_prove_nothing():
    assert binomial_p_value(0, 0, 0.5) == 1.0
    assert permutation_p_value(3.0, []) == 1.0


def test_permutation_p_value_is_uniform_under_the_null():
    # The rank of the observed value among 20 is uniform on 20 places: P(p <= 0.05) = 1/20 exactly.
    draws = np.random.default_rng(4).normal(size=(SIMULATIONS, 20))
    found = np.array([permutation_p_value(row[0], row[1:]) for row in draws])
    assert found.min() == 1 / 20
    for alpha in (0.05, 0.25, 0.5):
        assert abs(np.mean(found <= alpha + 1e-9) - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / SIMULATIONS)


def test_ties_count_against_the_observed_value():
    assert permutation_p_value(1.0, [1.0, 1.0, 0.0]) == 3 / 4


@pytest.mark.parametrize(
    "call",
    [
        lambda: holm([0.1, math.nan]),
        lambda: holm([0.1, 1.2]),
        lambda: tost([1.0, 2.0], 0.0),
        lambda: tost([1.0, 2.0], 1.0, 0.4),
        lambda: tost([1.0, math.nan], 1.0),
        lambda: minimum_detectable_effect(10),
        lambda: minimum_detectable_effect(10, sd=1.0, p=0.1),
        lambda: minimum_detectable_effect(10, sd=-1.0),
        lambda: minimum_detectable_effect(10, p=1.0),
        lambda: minimum_detectable_effect(-1, sd=1.0),
        lambda: binomial_p_value(3, 2, 0.5),
        lambda: binomial_p_value(1, 2, 1.5),
        lambda: binomial_p_value(1, 2, 0.5, "more"),  # type: ignore[arg-type]
        lambda: permutation_p_value(math.nan, [1.0]),
        lambda: permutation_p_value(1.0, [math.nan]),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
