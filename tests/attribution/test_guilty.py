"""Guilty rows: planted rows are named and replicate; ordinary answers name nothing twice."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from planted_word import ordinary, planted, trained

from glasshouse.attribution.ekfac import EKFAC
from glasshouse.attribution.guilty import FEWEST, _sign_flip, guilty_rows
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
