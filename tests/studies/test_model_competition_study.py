"""What the study counts as agreement, as monotone, as a rise; and that what it declares is declared once."""

from __future__ import annotations

import pytest

from glasshouse.evidence.ledger import declared
from glasshouse.society.model_competition.theory import closed_form
from glasshouse.studies.society import model_competition as study


def bare(alpha, losses):
    return [{"alpha": alpha, "SL": loss, "seed": seed} for seed, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "agrees"),
    [
        ([0.0372, 0.0374, 0.0373], True),  # the closed form is 0.0372
        ([0.0388, 0.0389, 0.0388], True),  # within the numerical error
        ([0.0470, 0.0471, 0.0470], False),  # two on the minority label: no equilibrium
        ([0.0372, 0.4, 0.0372], False),  # an interval that holds everything agrees with nothing
        ([0.4, 0.4, 0.4], False),
    ],
)
def test_agreement_with_the_closed_form(losses, agrees):
    assert study._agreement(bare(0.4, losses), 3, 0.4)["agrees"] is agrees


def test_each_of_several_equilibria_is_compared_with_itself():
    """At m = 2, alpha = 0.5 all profiles are equilibria: losses 0.5 and 0.017 both agree, 0.25 does not."""
    known = sorted(set(closed_form([0.5], 2, 0.3)["SL"].round(9)))
    assert len(known) == 2
    assert study._agreement(bare(0.5, [known[0], known[1], known[1]]), 2, 0.5)["agrees"]
    assert not study._agreement(bare(0.5, [known[0], 0.25, known[1]]), 2, 0.5)["agrees"]


def test_monotone_follows_the_bayes_loss_and_forgives_numerical_error():
    rows = [{"bayes": b, "SL": s} for b, s in ((0.3, 0.3), (0.1, 0.1), (0.2, 0.2))]
    assert study._monotone(rows)
    assert study._monotone([*rows, {"bayes": 0.4, "SL": 0.299}])
    assert not study._monotone([*rows, {"bayes": 0.4, "SL": 0.297}])


def test_a_rise_counts_only_where_the_bayes_loss_fell():
    rows = [{"sigma": 1.5, "SL": 0.14, "bayes": 0.24}, {"sigma": 10.0, "SL": 0.04, "bayes": 0.4}]
    assert study._rise(rows) == pytest.approx(3.5)
    assert study._rise([rows[0] | {"bayes": 0.31}, rows[1]]) == 0


def test_every_claim_is_declared_for_the_ledger_in_the_same_words():
    ours = {entry.id: entry.claim for entry in declared() if entry.study == "model-competition"}
    assert ours == {spec.id: spec.claim for spec in study.CLAIMS}


def test_where_losses_are_alpha_and_where_apart():
    for alpha in study.ALIKE:
        assert closed_form([alpha], 3, 0.3)["SL"].tolist() == pytest.approx([alpha])
    for alpha, expected in study.APART_SL.items():
        assert closed_form([alpha], 3, 0.3)["SL"].tolist() == pytest.approx([expected], abs=0.003)
