"""AUROC, TPR at a fixed FPR and Spearman: brute force, other libraries, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import auroc, spearman, tpr_at_fpr

SIMULATIONS = 2000
NOISE = 4 * math.sqrt(0.95 * 0.05 / SIMULATIONS)  # 0.0195
BIAS = 0.015
"""Allowed departure of an asymptotic interval from its level at the sizes stated here."""


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_sklearn_and_all_pairs(ties):
    random = np.random.default_rng(0)
    pos, neg = random.normal(0.7, 1, 31), random.normal(size=47)
    if ties:
        pos, neg = pos.round(), neg.round()
    labels = [1] * 31 + [0] * 47
    pairs = (pos[:, None] > neg).mean() + (pos[:, None] == neg).mean() / 2
    assert auroc(pos, neg).value == pytest.approx(roc_auc_score(labels, [*pos, *neg]))
    assert auroc(pos, neg).value == pytest.approx(pairs)


def test_delong_variance_equals_its_definition():
    random = np.random.default_rng(1)
    pos, neg = random.normal(1, 1, 12).round(1), random.normal(size=20).round(1)
    kernel = (pos[:, None] > neg) + (pos[:, None] == neg) / 2  # (12, 20)
    v10, v01, value = kernel.mean(1), kernel.mean(0), kernel.mean()
    a = sum((v - value) ** 2 for v in v10) / 11 / 12
    b = sum((v - value) ** 2 for v in v01) / 19 / 20
    freedom = (a + b) ** 2 / (a**2 / 11 + b**2 / 19)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    found = auroc(pos, neg)
    assert found.low == pytest.approx(1 / (1 + math.exp(half - centre)))
    assert found.high == pytest.approx(1 / (1 + math.exp(-half - centre)))


@pytest.mark.parametrize(("truth", "positives", "negatives"), [(0.5, 40, 40), (0.8, 40, 40), (0.95, 40, 80)])
def test_auroc_coverage(truth, positives, negatives):
    random = np.random.default_rng(2)
    pos = random.normal(stats.norm.ppf(truth) * math.sqrt(2), 1, size=(SIMULATIONS, positives))
    neg = random.normal(size=(SIMULATIONS, negatives))
    found = np.mean([e.low <= truth <= e.high for e in map(auroc, pos, neg)])
    assert abs(found - 0.95) < NOISE + BIAS


def test_auroc_is_invariant_to_order_and_monotone_maps_and_mirrors():
    random = np.random.default_rng(3)
    pos, neg = random.normal(1, 1, 20), random.normal(size=30)
    assert auroc(pos[::-1], random.permutation(neg)).value == auroc(pos, neg).value
    assert auroc(np.exp(pos), np.exp(neg)) == auroc(pos, neg)
    mirrored = auroc(neg, pos)
    assert mirrored.value == pytest.approx(1 - auroc(pos, neg).value)
    assert mirrored.low == pytest.approx(1 - auroc(pos, neg).high)


def test_complete_separation_has_an_honest_width():
    found = auroc(np.arange(10, 30), np.arange(8))
    # If the true value were the low end, 8 disjoint pairs would all be ordered right with probability 0.025.
    assert found.high == 1.0 and found.low**8 == pytest.approx(0.025)
    reversed_ = auroc(np.arange(8), np.arange(10, 30))
    assert reversed_.low == 0.0 and reversed_.high == pytest.approx(1 - found.low)


def test_constant_scores_and_single_examples_are_wide():
    flat = auroc([1.0] * 50, [1.0] * 50)
    assert flat.value == 0.5 and 0.3 < flat.low < 0.32 and "hoeffding" in flat.method
    one = auroc([1.0], [0.0, 1.0, 2.0])
    assert (one.low, one.value, one.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("score", [auroc, tpr_at_fpr])
@pytest.mark.parametrize(("pos", "neg", "empty"), [([], [1.0], "positive"), ([1.0], [], "negative")])
def test_an_empty_class_is_undefined(score, pos, neg, empty):
    found = score(pos, neg)
    assert not found.defined and f"no {empty} examples" in found.method


def test_tpr_counts_positives_over_the_allowed_negatives():
    negative = np.arange(1000.0)
    positive = np.array([0.0, 988.5, 989.0, 989.5, 5000.0])
    # 1 % of 1,000 lets ten negatives (990 .. 999) exceed the threshold 989; ties with it do not count.
    assert tpr_at_fpr(positive, negative, 0.01).value == 2 / 5
    assert tpr_at_fpr(positive, negative, 0.5).value == 4 / 5
    assert (negative > 989).mean() <= 0.01


@pytest.mark.parametrize("negatives", [400, 1500])
def test_tpr_covers_at_least_its_level(negatives):
    random = np.random.default_rng(4)
    pos, neg = random.normal(3, 1, size=(500, 150)), random.normal(size=(500, negatives))
    truth = stats.norm.sf(stats.norm.isf(0.01) - 3)
    found = [tpr_at_fpr(p, q) for p, q in zip(pos, neg, strict=True)]
    assert np.mean([e.low <= truth <= e.high for e in found]) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 500)
    assert np.mean([e.high - e.low for e in found]) < (0.55 if negatives == 400 else 0.4)


def test_tpr_says_nothing_below_the_negatives_it_needs():
    pos = np.full(200, 9.0)
    assert tpr_at_fpr(pos, np.linspace(0, 1, 395)).low == 0.0
    assert tpr_at_fpr(pos, np.linspace(0, 1, 396)).low > 0.9
    assert tpr_at_fpr(pos, np.linspace(0, 1, 50)).value == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_equals_scipys(ties):
    random = np.random.default_rng(5)
    x = random.normal(size=60)
    y = x + random.normal(size=60)
    if ties:
        x, y = x.round(), y.round()
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(("rho", "n"), [(0.0, 40), (0.5, 40), (0.9, 40), (0.5, 12)])
def test_spearman_coverage(rho, n):
    random = np.random.default_rng(6)
    x = random.normal(size=(SIMULATIONS, n))
    y = rho * x + math.sqrt(1 - rho**2) * random.normal(size=(SIMULATIONS, n))
    truth = 6 / math.pi * math.asin(rho / 2)  # of a bivariate normal with correlation rho
    found = np.mean([e.low <= truth <= e.high for e in map(spearman, x, y)])
    assert abs(found - 0.95) < NOISE + BIAS


def test_perfect_order_is_one_but_not_certain():
    found = spearman(range(10), range(10))
    assert found.value == found.high == 1.0 and 0.9 < found.low < 1.0
    assert spearman(range(10), range(10, 0, -1)).low == -1.0
    assert (spearman([1, 2, 3], [1, 2, 3]).low, spearman([1, 2, 3], [1, 2, 3]).high) == (-1.0, 1.0)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_spearman_without_ranks_is_undefined(x, y):
    assert not spearman(x, y).defined


@pytest.mark.parametrize(
    "call",
    [
        lambda: auroc([math.nan], [1.0]),
        lambda: auroc([1.0], [[1.0]]),
        lambda: tpr_at_fpr([1.0], [math.inf]),
        lambda: tpr_at_fpr([1.0], [1.0], 0.0),
        lambda: tpr_at_fpr([1.0], [1.0], 5),
        lambda: spearman([1.0, 2.0], [1.0]),
        lambda: spearman([1.0, math.nan], [1.0, 2.0]),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
