"""Agreement statistics equal the reference implementations, and their intervals cover the truth."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from glasshouse.annotators import (
    cohen_kappa,
    corrected_prevalence,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
)
from glasshouse.runtime.errors import InputError


def tables(count: int = 40):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        k, n, raters = (int(rng.integers(*span)) for span in ((2, 6), (4, 60), (2, 6)))
        truth = rng.integers(0, k, n)
        yield np.where(rng.random((n, raters)) < 0.6, truth[:, None], rng.integers(0, k, (n, raters)))


def test_t1_cohen_equals_scikit_learn():
    for table in tables():
        a, b = table[:, 0], table[:, 1]
        for ours, theirs in (("nominal", None), ("linear", "linear"), ("quadratic", "quadratic")):
            found = cohen_kappa(a, b, weights=ours, resamples=2).value
            assert found == pytest.approx(cohen_kappa_score(a, b, weights=theirs), abs=1e-12)


def test_t1_fleiss_equals_statsmodels():
    for table in tables():
        theirs = inter_rater.fleiss_kappa(inter_rater.aggregate_raters(table)[0])
        assert fleiss_kappa(table, resamples=2).value == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("measure", ["nominal", "ordinal", "interval"])
def test_t1_krippendorff_equals_the_package(measure):
    for seed, table in enumerate(tables()):
        holes = table.astype(float)
        holes[np.random.default_rng(seed).random(holes.shape) < 0.3] = np.nan
        theirs = krippendorff.alpha(reliability_data=holes.T, level_of_measurement=measure)
        assert krippendorff_alpha(holes, measure=measure, resamples=2).value == pytest.approx(
            theirs, abs=1e-12
        )


def test_gwet_and_plain_agreement_by_hand():
    # Two raters, 10 items, 9 of them 'a a', one 'a b': pa = .9, pi_a = .95, pe = 2 * .95 * .05 = .095.
    table = [["a", "a"]] * 9 + [["a", "b"]]
    assert percent_agreement(table).value == pytest.approx(0.9)
    assert gwet_ac1(table).value == pytest.approx((0.9 - 0.095) / (1 - 0.095))
    assert cohen_kappa(*zip(*table, strict=True)).value == pytest.approx(0)  # the collapse AC1 does not have


def test_t2_the_interval_of_kappa_covers_the_analytic_value():
    """Two raters, each wrong with probability e on balanced binary items: kappa = (1 - 2e)^2."""
    for error in (0.0, 0.1, 0.3):
        covered = 0
        for seed in range(100):
            rng = np.random.default_rng([seed, int(10 * error)])
            truth = np.repeat([0, 1], 100)
            a, b = (truth ^ (rng.random(200) < error) for _ in range(2))
            found = cohen_kappa(a, b, seed=seed)
            assert found.n == 200
            covered += found.low <= (1 - 2 * error) ** 2 <= found.high
        assert covered >= 90, (error, covered)


@pytest.mark.parametrize(
    "found",
    [
        lambda: cohen_kappa([1, 1, 1], [1, 1, 1]),
        lambda: cohen_kappa([1, 1], [1, 1], weights="quadratic"),
        lambda: fleiss_kappa([[0, 0, 0]] * 4),
        lambda: krippendorff_alpha([["x", "x"], ["x", None]]),
        lambda: gwet_ac1([[1, 1], [1, 1]]),
    ],
)
def test_without_variation_agreement_beyond_chance_is_undefined(found):
    estimate = found()
    assert math.isnan(estimate.value) and "no variation" in estimate.method


def test_degenerate_tables_that_are_defined():
    assert (
        cohen_kappa([1, 1, 1, 1], [1, 1, 1, 0]).value == 0
    )  # one rater never varies: chance explains it all
    assert gwet_ac1([[1, 1], [1, 1]], categories=[0, 1]).value == 1
    assert percent_agreement([[1, 1]]).low == -math.inf  # one item has no spread
    assert math.isnan(krippendorff_alpha([[1, None], [None, 2]]).value)
    rare = cohen_kappa([1] * 30 + [0], [1] * 30 + [0])
    assert rare.value == 1 and "without variation" in rare.method  # resamples that lost the only 0


def test_agreement_does_not_depend_on_order_names_or_repeats():
    table = next(tables())
    shuffled = np.random.default_rng(1).permutation(table)
    named = np.array(list("abcdefgh"))[table]
    for statistic in (fleiss_kappa, krippendorff_alpha, percent_agreement, gwet_ac1):
        assert statistic(table) == statistic(shuffled) == statistic(named)
        assert statistic(table).value == pytest.approx(statistic(table[:, ::-1]).value, abs=1e-12)
        assert statistic(table, seed=1) != statistic(table) == statistic(table)
        wide, narrow = statistic(table, level=0.99), statistic(table, level=0.5)
        assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_the_interval_is_that_of_drawing_items_again():
    """Draws of pattern counts against a plain bootstrap over items, both of 4,000 resamples."""
    table = list(tables(3))[2]
    found = fleiss_kappa(table, resamples=4000)
    rng = np.random.default_rng(0)
    plain = []
    for _ in range(4000):
        drawn = table[rng.integers(len(table), size=len(table))]
        plain.append(inter_rater.fleiss_kappa(inter_rater.aggregate_raters(drawn)[0]))
    low, high = np.quantile(plain, [0.025, 0.975])
    # The standard error of a 2.5 % quantile of 4,000 draws is about 0.04 standard deviations; allow five.
    assert abs(found.low - low) < 0.2 * np.std(plain) and abs(found.high - high) < 0.2 * np.std(plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cohen_kappa([1, 2], [1]), r"raters gave \[2, 1\] labels"),
        (lambda: cohen_kappa([], []), "no item"),
        (lambda: cohen_kappa([1, math.nan], [1, 2]), "rater 0 has no label for item 1"),
        (lambda: fleiss_kappa([[1, None]]), "rater 1 has no label for item 0"),
        (lambda: fleiss_kappa([[1], [2]]), "only one rater"),
        (lambda: fleiss_kappa([[1, 2], [1]]), "rows of"),
        (lambda: cohen_kappa([1, "a"], [1, 2]), "different types"),
        (lambda: cohen_kappa([1], [1], weights="cubic"), "weights"),
        (lambda: krippendorff_alpha([[1, 2]], measure="ratio"), "measure"),
    ],
)
def test_bad_tables_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def simulate(rng, prevalence, sensitivity, specificity, n):
    truth = rng.random(n) < prevalence
    said = np.where(truth, rng.random(n) < sensitivity, rng.random(n) > specificity)
    return said.astype(int), truth.astype(int)


def test_corrected_prevalence_covers_the_truth_where_the_raw_rate_does_not():
    covered = raw = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        judged, _ = simulate(rng, 0.2, 0.8, 0.85, 400)
        found = corrected_prevalence(judged, *simulate(rng, 0.5, 0.8, 0.85, 200), seed=seed, resamples=500)
        covered += found.low <= 0.2 <= found.high
        raw += abs(judged.mean() - 0.2) < 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert covered >= 90 and raw <= 20  # the raw rate is 0.28 on average


def test_corrected_prevalence_of_perfect_and_of_useless_judges():
    perfect = corrected_prevalence([1] * 3 + [0] * 7, [1, 0] * 50, [1, 0] * 50)
    assert perfect.value == pytest.approx(0.3) and perfect.n == 10
    assert not corrected_prevalence([1, 0], [1, 1, 0, 0], [1, 0, 1, 0]).defined
    assert not corrected_prevalence([1, 0], [1, 1], [1, 1]).defined
    weak = corrected_prevalence([1, 0] * 20, [1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0])
    assert (weak.low, weak.high) == (0, 1)  # half the resamples say nothing at all
    for bad in ([0.5], [], [[1]], [math.nan]):
        with pytest.raises(InputError):
            corrected_prevalence(bad, [1, 0], [1, 0])
    with pytest.raises(InputError, match="2 judgements for 1"):
        corrected_prevalence([1], [1, 0], [1])
