"""EXP3 by the loop of its pseudo-code; a platform of one's own; learning rates from logs."""

from __future__ import annotations

import numpy as np
import pytest

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.content_incentives import (
    ContentMarket,
    RuleAudit,
    examine_rule,
    exp3_exposures,
    exposures,
    fit_eta,
    solve,
    symmetric_foc,
    upper_bound,
)
from glasshouse.society.content_incentives.exp3 import exp3_utilities, marginal_gain, shapes

MARKET = ContentMarket(P=3, T=12, algo="exp3", eta=0.3, gamma=0.1)


def loop(market, q, paths, seed):
    """One path after another, one round after another, as the algorithm is written."""
    uniforms = rng(seed, "exp3").random((market.T, paths))
    out = np.zeros((paths, market.P, market.T))
    for i in range(paths):
        score = np.zeros(market.P)
        for t in range(market.T):
            weights = np.exp(market.rates[t] * score)
            chance = (1 - market.gamma) * weights / weights.sum() + market.gamma / market.P
            out[i, :, t] = chance
            shown = int(np.searchsorted(np.cumsum(chance)[:-1], uniforms[t, i], side="left"))
            score[shown] += q[shown, t] / chance[shown]
    return out


def test_batched_paths_equal_the_loop():
    q = np.random.default_rng(0).random((3, 12))
    np.testing.assert_allclose(
        exp3_exposures(MARKET, q, paths=40, seed=2)[0], loop(MARKET, q, 40, 2), rtol=1e-12
    )


def test_torch_gives_the_numbers_of_numpy():
    q = np.random.default_rng(0).random((2, 3, 12))
    plain = exp3_exposures(MARKET, q, paths=50, seed=2)
    np.testing.assert_allclose(exp3_exposures(MARKET, q, paths=50, seed=2, device="cpu"), plain, rtol=1e-9)


def test_chances_are_a_distribution_and_explore():
    x = exp3_exposures(MARKET, np.ones((3, 12)), paths=50)
    np.testing.assert_allclose(x.sum(2), 1)
    assert x.min() >= 0.1 / 3 - 1e-12


def test_profiles_share_their_draws():
    q = np.random.default_rng(1).random((3, 12))
    both = exp3_exposures(MARKET, np.stack([q, q]), paths=30, seed=1)
    np.testing.assert_array_equal(both[0], both[1])


def test_for_small_rates_exp3_rewards_as_hedge_does():
    """Importance weights are unbiased: mean exposure is (1 - gamma) Hedge + gamma / P to first order."""
    market = ContentMarket(P=3, T=12, algo="exp3", eta=0.01, gamma=0.1)
    q = np.tile(np.array([0.2, 0.5, 0.8])[:, None], (1, 12))
    x = exp3_exposures(market, q, paths=20_000, seed=0)[0]
    hedge = exposures(market.changed({"algo": "hedge"}), q[:, :, None])[:, :, 0]
    error = x[:, :, -1].std(0) / np.sqrt(20_000)
    assert (abs(x[:, :, -1].mean(0) - (0.9 * hedge[:, -1] + 0.1 / 3)) < 4 * error + 2e-4).all()


def test_the_profile_found_is_stationary_certified_and_below_the_bound():
    found = solve(MARKET, tol=5e-3)
    assert found.converged and found.eps_error < 5e-3 and "common-random-number" in found.certificate_method
    assert found.value < upper_bound(MARKET).mean()
    phi = shapes(MARKET)["hedge"]
    a = float(found.quality[0].max())
    for factor, sign in ((0.5, 1), (2.0, -1)):
        assert sign * marginal_gain(MARKET, factor * a, phi, paths=4000, seed=9) > 0


def test_nothing_costs_nothing():
    q = np.zeros((1, 3, 12))
    x = exp3_exposures(MARKET, q, paths=10)
    weights = 0.9 ** np.arange(1, 13)
    np.testing.assert_allclose(exp3_utilities(MARKET, q, x), weights.sum() / 3)


def test_exp3_refuses_what_it_cannot():
    with pytest.raises(InputError, match="one-dimensional"):
        exp3_exposures(MARKET.changed({"users": [[1.0, 0.0], [0.0, 1.0]]}), np.ones((3, 12)))
    with pytest.raises(InputError, match="shape"):
        exp3_exposures(MARKET, np.ones((2, 12)))


# ── a platform of one's own ──


class Softmax:
    """Hedge written by a user."""

    def __init__(self, eta):
        self.eta = eta

    def probs(self, history, user):
        weights = np.exp(self.eta * (history @ user).sum(1))
        return weights / weights.sum()


class Broken:
    def probs(self, history, user):
        return np.ones(len(history))


def test_a_rule_of_ones_own_is_examined_as_ours_is():
    market = ContentMarket(P=3, T=10, eta=0.2)
    p = np.tile(symmetric_foc(market)[None, :, None], (3, 1, 1))
    found = examine_rule(market, Softmax(0.2), p)
    np.testing.assert_allclose(found.exposure, exposures(market, p)[:, :, 0])
    assert found.eps_nash < 1e-9  # the equilibrium of Hedge
    assert examine_rule(market, Softmax(2.0), p).gains["everything x 2"] > 0.05
    assert list(found.to_frame().columns) == ["deviation", "gain"] and found.plot().data


def test_an_audit_of_a_rule_comes_back_from_disk(tmp_path):
    market = ContentMarket(P=2, T=4)
    found = examine_rule(market, Softmax(0.2), np.full((2, 4, 1), 0.3))
    assert RuleAudit.load(found.save(tmp_path)).to_frame().equals(found.to_frame())


def test_a_rule_that_is_no_distribution_is_refused():
    with pytest.raises(InputError, match="distribution"):
        examine_rule(ContentMarket(P=2, T=4), Broken(), np.full((2, 4, 1), 0.3))
    with pytest.raises(InputError, match="shape"):
        examine_rule(ContentMarket(P=2, T=4), Softmax(1), np.full((3, 4, 1), 0.3))


def played_log(eta, rounds, seed, wobble=0.0):
    """Rows of a softmax recommender: all producers earn a random reward each round."""
    generator = np.random.default_rng(seed)
    totals, rows = np.zeros(3), []
    for t in range(rounds):
        logits = eta * totals + wobble * generator.standard_normal(3)
        chance = np.exp(logits) / np.exp(logits).sum()
        reward = generator.random(3) * [0.2, 0.5, 0.8]
        rows += [
            {"t": t, "producer": f"p{j}", "propensity": chance[j], "reward": reward[j]} for j in range(3)
        ]
        totals += reward
    return rows


def test_the_learning_rate_is_read_from_a_log():
    assert fit_eta(played_log(0.15, 30, 0)).value == pytest.approx(0.15, rel=1e-9)
    assert fit_eta(played_log(0.0, 30, 0)).value == pytest.approx(0.0, abs=1e-9)


def test_its_interval_covers():
    """40 noisy logs at level 0.95: at most 6 misses with probability 0.99."""
    misses = sum(fit_eta(played_log(0.1, 40, s, wobble=0.5)).excludes(0.1) for s in range(40))
    assert misses <= 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensity": 0.0}, "row 1"),
        ({"reward": float("nan")}, "row 1"),
        ({"producer": "p1"}, "row 2: producer"),
    ],
)
def test_bad_logs_are_refused_by_row(change, said):
    rows = played_log(0.1, 5, 0)
    rows[0] = {**rows[0], **change}
    with pytest.raises(InputError, match=said):
        fit_eta(rows)


def test_a_log_without_differences_is_refused():
    with pytest.raises(InputError, match="longer log"):
        fit_eta(played_log(0.1, 1, 0))
    with pytest.raises(InputError, match="no 'reward'"):
        fit_eta([{"t": 1, "producer": "a", "propensity": 0.5}])
