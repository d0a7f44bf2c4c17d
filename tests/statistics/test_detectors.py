"""Detectors against brute force, on planted anomalies, and on a null where there is nothing to detect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import ledoit_wolf

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import DiagonalGaussian, KNNDistance, Mahalanobis, auroc

ALL = [Mahalanobis, DiagonalGaussian, KNNDistance]


@pytest.fixture(name="rows")
def _rows():
    mixing = np.random.default_rng(0).normal(size=(6, 6))
    return np.random.default_rng(1).normal(size=(300, 6)) @ mixing + 3.0


def test_mahalanobis_by_definition(rows):
    found = Mahalanobis(shrinkage=0.0).fit(rows[:200]).score(rows[200:])
    mean, inverse = rows[:200].mean(0), np.linalg.inv(np.cov(rows[:200].T, bias=True))
    expected = [float(np.sqrt((x - mean) @ inverse @ (x - mean))) for x in rows[200:]]
    assert found == pytest.approx(expected)


def test_mahalanobis_shrinks_like_ledoit_and_wolf(rows):
    few = rows[:9]
    covariance, share = ledoit_wolf(few)
    fitted = Mahalanobis().fit(few)
    assert fitted.shrinkage_ == pytest.approx(share)
    assert fitted.covariance_ == pytest.approx(covariance)


def test_diagonal_gaussian_by_definition(rows):
    fitted = DiagonalGaussian().fit(rows[:200])
    expected = -stats.norm.logpdf(rows[200:], rows[:200].mean(0), rows[:200].std(0)).sum(1)
    assert fitted.score(rows[200:]) == pytest.approx(expected)


def test_a_constant_column_gets_the_floor():
    rows = np.column_stack([np.arange(10.0), np.ones(10)])
    fitted = DiagonalGaussian(floor=0.01).fit(rows)
    assert fitted.variance_[1] == pytest.approx(0.01 * rows.var(0).mean())
    assert fitted.score([[4.5, 2.0]]) > fitted.score([[4.5, 1.0]])


@pytest.mark.parametrize("k", [1, 4])
def test_knn_by_definition(rows, k):
    found = KNNDistance(k=k).fit(rows[:200]).score(rows[200:])
    distances = np.linalg.norm(rows[200:, None] - rows[None, :200], axis=2)
    assert found == pytest.approx(np.sort(distances, axis=1)[:, :k].mean(1))


@pytest.mark.parametrize("make", ALL)
def test_planted_anomalies_are_found_and_the_null_is_not(make, rows):
    detector = make().fit(rows[:150])
    clean, shifted = rows[150:225], rows[225:] + 4 * rows.std(0)
    assert auroc(detector.score(shifted), detector.score(clean)).low > 0.9
    null = auroc(detector.score(rows[225:]), detector.score(clean), level=0.999)
    assert not null.excludes(0.5)


@pytest.mark.parametrize("make", ALL)
def test_order_and_batches_do_not_matter(make, rows):
    shuffled = np.random.default_rng(2).permutation(rows[:200])
    whole = make().fit(rows[:200]).score(rows[200:])
    assert make().fit(shuffled).score(rows[200:]) == pytest.approx(whole, rel=1e-9)
    detector = make().fit(rows[:200])
    parts = np.concatenate([detector.score(rows[200:240]), detector.score(rows[240:])])
    assert parts == pytest.approx(whole, rel=1e-12)
    assert detector.score(rows[:0]).shape == (0,)


def test_mahalanobis_ignores_the_units_of_the_columns(rows):
    scale = np.array([1e-3, 1.0, 10.0, 1e3, 5.0, 0.1])
    plain = Mahalanobis(shrinkage=0.0).fit(rows[:200]).score(rows[200:])
    assert Mahalanobis(shrinkage=0.0).fit(rows[:200] * scale).score(rows[200:] * scale) == pytest.approx(
        plain
    )


@pytest.mark.parametrize("make", ALL)
def test_refusals(make, rows):
    with pytest.raises(InputError, match="not fitted"):
        make().score(rows)
    with pytest.raises(InputError, match="at least"):
        make().fit(rows[:1])
    with pytest.raises(InputError, match="NaN"):
        make().fit(np.where(rows > 5, np.nan, rows))
    with pytest.raises(InputError, match="2 columns"):
        make().fit(rows).score(rows[:, :2])
    with pytest.raises(InputError, match="shape"):
        make().fit(rows[0])


def test_singular_and_equal_rows_are_refused():
    with pytest.raises(InputError, match="singular"):
        Mahalanobis(shrinkage=0.0).fit(np.ones((5, 2)))
    with pytest.raises(InputError, match="equal"):
        DiagonalGaussian().fit(np.ones((5, 2)))
    with pytest.raises(InputError, match="share in"):
        Mahalanobis(shrinkage=2.0).fit(np.eye(3))
    with pytest.raises(InputError, match="k is 0"):
        KNNDistance(k=0).fit(np.eye(3))
