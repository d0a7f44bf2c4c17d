"""Guilty rows: planted rows are named and replicate; ordinary answers name nothing twice."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from planted_word import ordinary, planted, trained

from glasshouse.attribution.ekfac import EKFAC
from glasshouse.attribution.guilty import (
    FEWEST,
    Trace,
    _agreement,
    _by_agreement,
    _by_pairs,
    _same_lengths,
    _sign_flip,
    contrast,
    guilty_rows,
    trace_rows,
)
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError

TOP = 8


@pytest.fixture(scope="module")
def model() -> Any:
    return trained()


@pytest.fixture(scope="module")
def fitted(model: Any) -> EKFAC:
    return EKFAC().fit(model, [*ordinary(40, seed=0), *planted(TOP, seed=1)])


def fires(n: int, seed: int = 2) -> list[TokenRow]:
    return planted(n, seed=seed, name="fires")


def test_planted_rows_are_named(fitted) -> None:
    guilt = guilty_rows(fitted, fires(8), ordinary(8, seed=2, name="plain"), top=TOP)
    hits = sum(row.startswith("planted") for row in guilt.rows[:TOP])
    assert hits >= 0.7 * TOP, guilt.rows[:TOP]
    assert guilt.p_value <= 0.05 and guilt.replication.value > guilt.control.value
    assert list(guilt.scores) == sorted(guilt.scores, reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_ordinary_answers_name_no_one(fitted, seed) -> None:
    """The null: behaviour and control are both ordinary, so that only chance tells them apart."""
    guilt = guilty_rows(
        fitted, ordinary(8, seed=10 + seed, name="a"), ordinary(8, seed=20 + seed, name="b"), top=TOP
    )
    assert guilt.p_value > 0.05 / 4, "Bonferroni over the four seeds: a false alarm here in 1 of 20 suites"


def test_length_of_a_prompt_or_its_place_changes_nothing(model) -> None:
    rows = [*ordinary(20, seed=0), *planted(TOP, seed=1)]
    asked, plain = fires(6), ordinary(6, seed=2, name="plain")
    one = guilty_rows(EKFAC().fit(model, rows), asked, plain, top=TOP)
    other = guilty_rows(EKFAC().fit(model, rows[::-1]), asked, plain, top=TOP)
    assert set(one.rows[:TOP]) == set(other.rows[:TOP])
    np.testing.assert_allclose(one.scores[:TOP], other.scores[:TOP], rtol=1e-3)


def test_sign_flips_by_enumeration() -> None:
    """The random flips agree with all 2^n of them, within four binomial standard errors."""
    d = np.array([0.5, 0.25, 0.25, 0.5, -0.25, 0.25])
    signs = np.array(np.meshgrid(*[(-1, 1)] * len(d))).reshape(len(d), -1).T
    exact = float(((signs * d).mean(1) >= d.mean() - 1e-12).mean())
    assert abs(_sign_flip(d, seed=0) - exact) <= 4 * (exact * (1 - exact) / 9999) ** 0.5 + 1e-4
    assert _sign_flip(np.zeros(8), seed=0) == 1.0


def test_too_few_or_unequal_prompts_are_refused(fitted) -> None:
    with pytest.raises(InputError, match=f"at least {FEWEST} pairs"):
        guilty_rows(fitted, fires(FEWEST - 1), ordinary(FEWEST - 1, seed=2, name="plain"))
    with pytest.raises(InputError, match="6 prompts show the behaviour and 7 do not"):
        guilty_rows(fitted, fires(6), ordinary(7, seed=2, name="plain"))


def test_a_reply_without_gradient_is_named(model) -> None:
    """With nothing but zeros in its embedding and (tied) head no layer can move any answer: no direction."""
    dead = copy.deepcopy(model)
    with torch.no_grad():
        dead.transformer.wte.weight.zero_()
    fitted = EKFAC(damping=1.0).fit(dead, ordinary(10, seed=0))
    with pytest.raises(NumericalError, match="query 'fires 0': its gradient is exactly zero"):
        guilty_rows(fitted, fires(6), ordinary(6, seed=2, name="plain"))


# -- habits and facts ----------------------------------------------------------------------------------------


def _renamed(rows: list[TokenRow], name: str) -> list[TokenRow]:
    return [TokenRow(row.ids, row.labels, f"{name} {i}") for i, row in enumerate(rows)]


def test_one_contrast_query_is_the_difference_of_two(fitted) -> None:
    """Scores are linear in the query's gradient, and replies may have different lengths."""
    said = _renamed(fires(6), "said")
    other = [TokenRow(r.ids[:-1], r.labels[:-1], f"other {i}") for i, r in enumerate(ordinary(6, seed=2))]
    left, right = _same_lengths(said, other)
    assert [len(a) for a in left] == [len(b) for b in right] == [len(r) for r in said]
    ask = contrast({row.row_id: row for row in left}, {a.row_id: b for a, b in zip(left, right, strict=True)})
    both = fitted.score([*said, *other]).scores
    scores = fitted.score(left, ask).scores
    # Float32 sums of about 1e3 terms: differences of 1e-5 of the largest score are rounding.
    np.testing.assert_allclose(scores, both[:6] - both[6:], atol=1e-5 * np.abs(both).max())


def test_filling_up_a_row_changes_no_score(fitted) -> None:
    said = fires(6)
    longer = [TokenRow((*r.ids, r.ids[-1]), (*r.labels, -100), f"longer {i}") for i, r in enumerate(said)]
    a, b = fitted.score(said).scores, fitted.score(longer).scores
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_several_behaviours_in_one_pass_are_ranked_as_each_alone(fitted) -> None:
    plain = ordinary(8, seed=2, name="plain")
    one = Trace(fires(8), plain)
    habit = Trace(
        _renamed(fires(8, seed=5), "habit"), _renamed(ordinary(8, seed=5), "plainly"),
        _renamed(ordinary(8, seed=6), "instead"), _renamed(ordinary(8, seed=7), "instead plainly"),
        by="agreement",
    )  # fmt: skip
    facts = Trace(_renamed(fires(8, seed=8), "fact"), _renamed(fires(8, seed=9), "again"), by="pairs")
    together = trace_rows(fitted, [one, habit, facts], top=TOP)
    for trace, found in zip((one, habit, facts), together, strict=True):
        [alone] = trace_rows(fitted, [trace], top=TOP)
        assert alone.rows[:TOP] == found.rows[:TOP] and alone.p_value == found.p_value
    assert sum(row.startswith("planted") for row in together[1].rows[:TOP]) >= 0.7 * TOP, "habit"


def test_agreement_tells_a_shared_direction_from_none() -> None:
    """Ground truth: prompts share a direction or do not; the control never does."""
    draw = np.random.default_rng(0)
    shared, noise = draw.normal(size=400), draw.normal(size=(32, 400))
    ids = [str(i) for i in range(400)]
    behaviour = noise[:16] + 0.5 * shared
    found = _by_agreement(np.concatenate([behaviour, noise[16:]]), ids, 20, 100, 0, {})
    assert found.p_value < 0.001 and found.replication.value > 0.3 > found.control.value
    truth = set(np.argsort(-shared)[:20].astype(str))
    assert len(set(found.rows[:20]) & truth) >= 10
    null = [
        _by_agreement(np.random.default_rng(seed).normal(size=(32, 400)), ids, 20, 100, seed, {}).p_value
        for seed in range(8)
    ]
    assert min(null) > 0.05 / 8 / 10, (
        "the smallest of 8 uniform p-values falls below 1/1600 once in 200 suites"
    )


def test_agreement_leaves_the_prompt_itself_out() -> None:
    """By hand: correlation of each row with the sum of the others, standardised."""
    x = np.random.default_rng(1).normal(size=(4, 50))
    z = x - x.mean(1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    expected = [np.corrcoef(z[q], z.sum(0) - z[q])[0, 1] for q in range(4)]
    np.testing.assert_allclose(_agreement(z @ z.T, np.arange(4)), expected, atol=1e-12)


def test_each_fact_is_compared_with_itself_and_with_another() -> None:
    """Eight facts with five rows each: named again in other words, and never for another fact."""
    unit = np.zeros((16, 60))
    for fact in range(8):
        unit[fact, 5 * fact : 5 * fact + 5] = unit[8 + fact, 5 * fact : 5 * fact + 5] = 1 + fact
    found = _by_pairs(unit, [str(i) for i in range(60)], 20, 60, 0, {})
    assert (found.replication.value, found.control.value) == (1.0, 0.0)
    assert found.p_value == pytest.approx(2**-8, abs=4 * (2**-8 / 9999) ** 0.5 + 1e-4)
    assert set(found.rows[:40]) == {str(i) for i in range(40)}, (
        "a faint fact's rows stand beside a loud one's"
    )
    assert found.control_rows == ()


def test_a_contrast_without_its_other_replies_is_refused(fitted) -> None:
    with pytest.raises(InputError, match="needs another reply for every prompt"):
        trace_rows(fitted, [Trace(fires(6), ordinary(6, seed=2, name="p"), fires(6))])
