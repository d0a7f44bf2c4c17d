"""Closed forms against brute force: every profile of labels is tried, every user asked whom they choose."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition import theory

ALPHAS = st.floats(0.001, 0.5)
NOISES = st.sampled_from([0.05, 0.1, 0.3, 1.0])


def market(labels, mass, c, w=None):
    """Shares and social loss of one profile: `labels[j]` is what provider j predicts for everybody."""
    m = len(labels)
    w = np.full(m, 1 / m) if w is None else np.array(w)
    shares, loss = np.zeros(m), 0.0
    for y, users in enumerate(mass):
        wrong = np.array([float(label != y) for label in labels])
        weight = w * (np.exp(-wrong / c) if c > 0 else wrong == wrong.min())
        chosen = weight / weight.sum()
        shares += users * chosen
        loss += users * float(chosen @ wrong)
    return shares, loss


def stands(labels, mass, c):
    shares, _ = market(labels, mass, c)
    for j, other in itertools.product(range(len(labels)), range(len(mass))):
        moved = [*labels[:j], other, *labels[j + 1 :]]
        if market(moved, mass, c)[0][j] > shares[j] + 1e-12:
            return False
    return True


@settings(max_examples=40, deadline=None)
@given(alpha=ALPHAS, m=st.integers(2, 5), c=NOISES | st.just(0.0))
def test_the_closed_form_lists_exactly_the_equilibria_that_brute_force_finds(alpha, m, c):
    found = {int(k): (SL, a, b) for k, SL, a, b in theory.closed_form([alpha], m, c)[
        ["k", "SL", "share_majority", "share_minority"]].values}  # fmt: skip
    for k in range(m + 1):
        labels = [1] * k + [0] * (m - k)
        shares, loss = market(labels, [1 - alpha, alpha], c)
        gap = min(_gains(labels, [1 - alpha, alpha], c), default=1.0)
        if gap < 1e-9:  # a tie: either answer is right
            continue
        assert (k in found) == stands(labels, [1 - alpha, alpha], c)
        if k in found:
            SL, major, minor = found[k]
            assert pytest.approx(loss, abs=1e-12) == SL
            assert k == m or major == pytest.approx(shares[-1], abs=1e-12)
            assert k == 0 or minor == pytest.approx(shares[0], abs=1e-12)


def _gains(labels, mass, c):
    """How far every switch is from indifference."""
    shares, _ = market(labels, mass, c)
    for j in range(len(labels)):
        moved = [*labels[:j], 1 - labels[j], *labels[j + 1 :]]
        yield abs(market(moved, mass, c)[0][j] - shares[j])


@pytest.mark.parametrize(
    ("m", "c", "expected"),
    [(3, 0.1, 0.33335), (3, 0.3, 0.34482), (4, 0.1, 0.25002), (4, 0.3, 0.26722), (5, 0.1, 0.20003),
     (5, 0.3, 0.22067), (3, 0.0, 1 / 3), (2, 0.0, 0.5), (2, 0.3, 0.5)],
)  # fmt: skip
def test_the_threshold(m, c, expected):
    assert theory.threshold(m, c) == pytest.approx(expected, abs=5e-6)
    edge = theory.threshold(m, c)
    assert theory.is_equilibrium([edge - 1e-6], m, c, 0)[0]
    if edge < 0.5 - 1e-6:
        assert not theory.is_equilibrium([edge + 1e-6], m, c, 0)[0]


def test_theorem_1_better_information_can_hurt():
    """C -> 0: SL is alpha below 1/m and 0 above, so that crossing 1/m downwards raises it from 0 to 1/m."""
    frame = theory.closed_form([0.1, 0.2, 0.3, 0.34, 0.4, 0.5], 3, 0.0)
    below, above = frame[frame["alpha"] < 1 / 3], frame[frame["alpha"] > 1 / 3]
    assert below["SL"].tolist() == pytest.approx(below["alpha"].tolist())
    assert set(below["regime"]) == {"one prediction"}
    assert (above["SL"] == 0).all() and set(above["regime"]) == {"both offered"}


def test_several_equilibria_are_all_listed():
    """At c = 0 and alpha = 1/m nobody gains by switching, with all alike or with one apart."""
    frame = theory.closed_form([0.2], 5, 0.0)
    assert frame["k"].tolist() == [0, 1] and set(frame["regime"]) == {"several"}


def test_the_phase_diagram_is_the_closed_form_on_a_grid():
    frame = theory.phase_diagram([0.2, 0.3, 0.4], [3, 4], 0.3)
    assert frame[["m", "alpha"]].values.tolist() == [[m, a] for m in (3, 4) for a in (0.2, 0.3, 0.4)]
    alike = frame["alpha"] < frame["alpha_star"]
    assert (alike == (frame["regime"] == "one prediction")).all()
    assert frame.loc[alike, "SL_low"].tolist() == pytest.approx(frame.loc[alike, "alpha"].tolist())


def test_expected_loss_over_x_is_the_mean_of_the_closed_form():
    alphas = [0.1, 0.3, 0.45]
    low, high = theory.expected_social_loss(alphas, 3, 0.3, weights=[1, 2, 1])
    each = theory.closed_form(alphas, 3, 0.3)["SL"].to_numpy()
    assert low == high == pytest.approx(each @ [0.25, 0.5, 0.25])


@settings(max_examples=30, deadline=None)
@given(alpha=st.floats(0.02, 0.5), small=st.floats(0.05, 0.49))
def test_unequal_reputations_leave_both_providers_indifferent(alpha, small):
    row = theory.closed_form_unequal([alpha], [1 - small, small]).iloc[0]
    w, mass = [1 - small, small], [1 - alpha, alpha]
    if row["regime"] == "one prediction":
        assert alpha <= small and row["SL"] == alpha
        return
    p = row["p"]
    # labels: provider 0 says 1 with probability p, provider 1 with 1 - p
    share = {(a, b): market([a, b], mass, 0.0, w)[0] for a in (0, 1) for b in (0, 1)}
    large = [p * 0 + (1 - p) * share[a, 1][0] + p * share[a, 0][0] for a in (0, 1)]
    little = [p * share[1, b][1] + (1 - p) * share[0, b][1] for b in (0, 1)]
    assert large[0] == pytest.approx(large[1], abs=1e-9) and little[0] == pytest.approx(little[1], abs=1e-9)
    loss = sum(
        (p if a else 1 - p) * (1 - p if b else p) * market([a, b], mass, 0.0, w)[1]
        for a in (0, 1) for b in (0, 1)
    )  # fmt: skip
    assert row["SL"] == pytest.approx(loss, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    raw=st.lists(st.floats(0.05, 1), min_size=2, max_size=3), m=st.integers(2, 4),
    c=st.sampled_from([0, 0.3]),
)  # fmt: skip
def test_multiclass_equilibria_are_those_of_brute_force(raw, m, c):
    mass = [p / sum(raw) for p in raw]
    found = {e.counts: e for e in theory.multiclass_equilibria(mass, m, c)}
    for labels in itertools.combinations_with_replacement(range(len(mass)), m):
        counts = tuple(labels.count(y) for y in range(len(mass)))
        shares, loss = market(list(labels), mass, c)
        if stands(list(labels), mass, c):
            assert pytest.approx(loss, abs=1e-9) == found[counts].SL
            for label, share in zip(labels, shares, strict=True):
                assert found[counts].shares[label] == pytest.approx(share, abs=1e-9)
        else:
            assert counts not in found


def test_two_labels_are_the_binary_closed_form():
    binary = theory.closed_form([0.4], 4, 0.3)
    both = theory.multiclass_equilibria([0.6, 0.4], 4, 0.3)
    assert sorted(e.counts[1] for e in both) == binary["k"].tolist()
    assert pytest.approx(binary["SL"].iloc[0], abs=1e-12) == both[0].SL


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: theory.closed_form([0.7], 3, 0.3), "minority"),
        (lambda: theory.closed_form([math.nan], 3, 0.3), "NaN"),
        (lambda: theory.closed_form([0.2], 1, 0.3), "one provider is the Bayes risk"),
        (lambda: theory.threshold(3, -1), "noise"),
        (lambda: theory.closed_form_unequal([0.2], [1, 1, 1]), "two positive"),
        (lambda: theory.multiclass_equilibria([0.5, 0.2], 3), "sum to 1"),
        (lambda: theory.multiclass_equilibria([1 / 30] * 30, 30), "too many"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError, match=says):
        call()
