"""Content incentives: the game by brute force, closed forms, bounds, punishing rules, refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.runtime.errors import InputError
from glasshouse.society.content_incentives import (
    ContentEquilibrium,
    ContentMarket,
    best_response,
    break_even,
    certify,
    compare_algorithms,
    direction_welfare,
    exposures,
    optimal_criteria,
    punish_threshold,
    regret,
    solve,
    steady_quality,
    sweep_eta,
    sweep_horizon,
    switch_angle,
    symmetric_foc,
    tabulate,
    upper_bound,
    utilities,
    welfare,
)


def profile(q, P):
    return np.tile(np.asarray(q)[None, :, None], (P, 1, 1))


def two_users(angle):
    half = math.radians(angle) / 2
    return tuple((math.cos(math.pi / 4 + s * half), math.sin(math.pi / 4 + s * half)) for s in (-1, 1))


def test_nothing_heavy_is_imported():
    code = (
        "import sys, glasshouse.society.content_incentives as m; k = m.ContentMarket(T=10); m.solve(k); "
        "print([x for x in ('torch', 'pandas', 'plotly', 'sklearn') if x in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ── the game, as the paper writes it ──


def slowly(market, p):
    """Utilities and welfare by a loop over rounds, producers and users."""
    P, T = market.P, market.T
    U, shares = market.U, market.shares
    earned, users = np.zeros(P), np.zeros(T)
    scores = np.zeros((P, len(U)))
    active = np.ones(P, dtype=bool)
    g = shares @ U / np.linalg.norm(shares @ U)
    threshold = market.q if market.q is not None else break_even(market) * (1 - market.eps)
    for t in range(1, T + 1):
        for u, user in enumerate(U):
            if market.algo == "uniform":
                x = np.full(P, 1 / P)
            else:
                weights = np.exp(market.rates[t - 1] * scores[:, u])
                if market.algo != "hedge":
                    weights = weights * active if active.any() else np.ones(P)
                x = weights / weights.sum()
            for j in range(P):
                earned[j] += market.beta**t * shares[u] * x[j]
                users[t - 1] += shares[u] * x[j] * float(user @ p[j, t - 1])
        for j in range(P):
            earned[j] -= market.beta**t * np.linalg.norm(p[j, t - 1]) ** market.c
            active[j] &= bool(p[j, t - 1] @ g >= threshold - 1e-12)
            scores[j] += U @ p[j, t - 1]
    return earned, users


@settings(max_examples=30, deadline=None)
@given(
    algo=st.sampled_from(["hedge", "punish-hedge", "punish-direction", "uniform"]),
    P=st.integers(2, 4), T=st.integers(2, 7), c=st.floats(1, 4), eta=st.floats(0, 3), seed=st.integers(0, 99),
    angle=st.sampled_from([None, 30.0, 80.0]),
)  # fmt: skip
def test_one_pass_equals_the_loop_over_rounds(algo, P, T, c, eta, seed, angle):
    users = None if angle is None else two_users(angle)
    market = ContentMarket(algo=algo, P=P, T=T, c=c, eta=eta, users=users)
    p = np.random.default_rng(seed).random((P, T, market.U.shape[1]))
    x = exposures(market, p)
    earned, served = slowly(market, p)
    np.testing.assert_allclose(x.sum(0), 1)
    np.testing.assert_allclose(utilities(market, p, x), earned, atol=1e-12)
    np.testing.assert_allclose(welfare(market, p, x), served, atol=1e-12)


def test_producers_are_interchangeable():
    market = ContentMarket(P=3, T=5)
    p = np.random.default_rng(0).random((3, 5, 1))
    order = [2, 0, 1]
    np.testing.assert_allclose(exposures(market, p)[order], exposures(market, p[order]))


# ── best responses and certificates ──


@pytest.mark.parametrize("algo", ["hedge", "punish-hedge"])
@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_a_best_response_beats_every_sequence_on_a_grid(algo, eta):
    """P = 2, T = 3: all 11^3 sequences of one producer against random content of the other."""
    market = ContentMarket(P=2, T=3, beta=0.8, eta=eta, algo=algo)
    levels = np.linspace(0, 1, 11)
    for seed in range(2):
        p = np.random.default_rng(seed).random((2, 3, 1)) * 0.8
        found = best_response(market, p, 0)
        best = -math.inf
        for path in itertools.product(levels, repeat=3):
            p[0, :, 0] = path
            best = max(best, float(utilities(market, p, exposures(market, p))[0]))
        assert found.utility >= best - 1e-9


def test_an_equilibrium_is_one_of_the_discretised_game():
    """Five levels around the solution (P = 2, T = 3): no grid sequence gains more than the certificate."""
    market = ContentMarket(P=2, T=3, beta=0.8, eta=0.5)
    found = solve(market)
    assert found.converged
    levels = [found.quality[0] * a for a in (0.0, 0.5, 1.0, 1.5, 3.0)]
    present = found.utility[0]
    for choice in itertools.product(range(5), repeat=3):
        p = found.p.copy()
        p[0, :, 0] = [levels[k][t] for t, k in enumerate(choice)]
        assert utilities(market, p, exposures(market, p))[0] <= present + max(found.eps_nash, 1e-9)


@pytest.mark.parametrize("c", [2.0, 3.0])
def test_small_rates_have_the_closed_form(c):
    market = ContentMarket(c=c, eta=0.1)
    found = solve(market, start="random", seed=1)
    assert found.converged and found.eps_nash < 1e-9
    np.testing.assert_allclose(found.quality, np.tile(symmetric_foc(market), (4, 1)), atol=1e-6)
    assert found.quality[0, 0] == pytest.approx(steady_quality(4, 0.9, c, 0.1), rel=0.02)
    assert found.quality[0, -1] == 0


def test_the_closed_form_at_a_large_rate_is_no_equilibrium():
    market = ContentMarket(eta=0.5)
    with pytest.warns(UserWarning, match="no equilibrium"):
        found = certify(market, profile(symmetric_foc(market), 4))
    assert not found.converged and found.eps_nash == pytest.approx(0.33, abs=0.03)


def test_a_cycle_is_called_a_cycle():
    with pytest.warns(UserWarning, match="cycle"):
        found = solve(ContentMarket(eta=0.5), start="random")
    assert found.cycle >= 2 and found.regime == "cycle" and not found.converged
    np.testing.assert_allclose(found.visited.mean(0), found.p)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=12, deadline=None)
@given(
    c=st.floats(1.4, 4), eta=st.floats(0.01, 3), decay=st.sampled_from([0.0, 0.5]), P=st.integers(2, 3),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_no_best_response_exceeds_the_bound(c, eta, decay, P, seed):
    market = ContentMarket(P=P, T=15, c=c, eta=eta, decay=decay)
    p = np.random.default_rng(seed).random((P, 15, 1))
    found = best_response(market, p, 0)
    assert (found.p[:, 0] <= upper_bound(market) + 1e-9).all()


def test_the_bound_of_exp3_is_larger_by_the_number_of_producers():
    market = ContentMarket(c=3.0)
    ratio = upper_bound(market.changed({"algo": "exp3"}))[:-1] / upper_bound(market)[:-1]
    np.testing.assert_allclose(ratio, 4**0.5)


def test_uniform_and_leaders():
    assert solve(ContentMarket(algo="uniform"), start="random").value == 0
    market = ContentMarket(algo="follow-the-leader", P=2, T=3)
    x = exposures(market, np.array([[[1.0], [0.0], [0.0]], [[0.5], [0.6], [0.0]]]))
    np.testing.assert_allclose(x[0, :, 0], [0.5, 1.0, 0.0])


def test_a_contest_without_learning_has_its_closed_form():
    """One-shot softmax: c q^(c-1) = eta (1/P)(1 - 1/P) in every round, the last included."""
    found = solve(ContentMarket(algo="static-contest", T=6, eta=0.5))
    assert found.quality == pytest.approx(0.5 * 0.25 * 0.75 / 2, abs=1e-3)


def test_content_of_more_dimensions_serves_the_mean_user():
    """Two symmetric users: no producer gains by leaning to either, and the length is the mean user's."""
    market = ContentMarket(P=2, T=8, eta=0.1, users=two_users(40.0))
    found = solve(market, rounds=10)
    assert found.converged
    np.testing.assert_allclose(found.p[:, 0, 0], found.p[:, 0, 1], rtol=1e-3)
    one = solve(ContentMarket(P=2, T=8, eta=0.1)).quality[0, 0]
    assert found.quality[0, 0] == pytest.approx(one * math.cos(math.radians(20)) ** 1, rel=0.02)


# ── punishing ──


def test_punishing_holds_everybody_at_the_threshold():
    target = punish_threshold(4, 0.9, 2.0)
    assert target == pytest.approx(0.470, abs=5e-4)
    for seed in range(3):
        found = solve(ContentMarket(algo="punish-hedge", eta=0.15), start="random", seed=seed)
        assert found.converged and found.eps_nash <= 1e-3
        np.testing.assert_allclose(found.quality[:, :-1], target, atol=1e-9)
        assert (found.quality[:, -1] == 0).all()


@pytest.mark.parametrize(("factor", "pays"), [(0.99, False), (1.02, True)])
def test_compliance_flips_at_break_even(factor, pays):
    market = ContentMarket(algo="punish-hedge", eta=0.15, q=factor * punish_threshold(4, 0.9, 2.0, 0.0))
    q = np.full(60, market.q)
    q[-1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gain = certify(market, profile(q, 4)).eps_nash
    assert (gain > 1e-3) == pays
    assert any("quit" in said for said in market.warnings) == pays


def test_everybody_out_is_shown_uniformly():
    market = ContentMarket(algo="punish-hedge", P=2, T=3)
    np.testing.assert_allclose(exposures(market, np.zeros((2, 3, 1)))[:, 1:], 0.5)


def test_directions_are_punished_along_the_mean_user():
    market = ContentMarket(P=2, T=10, algo="punish-direction", users=two_users(60.0), eta=0.0)
    found = solve(market)
    assert found.converged
    assert found.welfare[0] == pytest.approx(direction_welfare(market), rel=1e-9)


@pytest.mark.parametrize("c", [4.0, 8.0])
def test_criteria_switch_at_the_angle(c):
    for shift, groups in ((-1.5, 1), (1.5, 2)):
        market = ContentMarket(P=2, c=c, users=two_users(switch_angle(c) + shift), algo="punish-user-utility")
        assert (np.linalg.norm(optimal_criteria(market)[0], axis=1) > 0).sum() == groups


def test_criteria_are_the_best_of_random_feasible_ones():
    """20,000 random criteria that producers can afford are never better."""
    generator = np.random.default_rng(0)
    market = ContentMarket(P=2, c=3.0, users=((1, 0.2), (0.6, 0.5), (0.1, 1)), weights=(2, 1, 1))
    value = optimal_criteria(market)[1]
    for _ in range(2000):
        p = generator.random((2, 2))
        served = (p @ market.U.T).argmax(0)
        mass = np.array([market.shares[served == j].sum() for j in (0, 1)])
        afford = (market.beta * mass) ** (1 / 3)
        p *= (afford / np.linalg.norm(p, axis=1))[:, None]
        if ((p @ market.U.T).argmax(0) == served).all():
            assert (p @ market.U.T).max(0) @ market.shares <= value + 1e-12


def test_user_utility_is_kept_by_producers_and_beats_the_direction():
    market = ContentMarket(P=2, T=10, c=8.0, users=two_users(70.0), algo="punish-user-utility")
    found = solve(market)
    value = optimal_criteria(market)[1]
    assert found.converged and found.welfare[0] == pytest.approx(0.99 * value)
    other = solve(market.changed({"algo": "punish-direction", "eta": 0.0}))
    assert found.welfare[0] > other.welfare[0]


# ── metrics and sweeps ──


def test_regret_of_hedge_on_fixed_content_is_small_and_of_uniform_is_not():
    market = ContentMarket(P=4, T=2000, eta=1.0, decay=0.5)
    p = np.tile(np.array([0.2, 0.4, 0.6, 0.8])[:, None, None], (1, 2000, 1))
    allowed = 2 * math.sqrt(2000 * math.log(4))
    assert regret(market, p, exposures(market, p)) <= allowed
    uniform = market.changed({"algo": "uniform"})
    assert regret(uniform, p, exposures(uniform, p)) == pytest.approx(600)


def test_sweeps_and_comparisons():
    curve = sweep_eta(ContentMarket(T=20), [0.05, 0.1])
    np.testing.assert_allclose(curve["first_round"], curve["foc"], rtol=1e-3)
    assert (curve["first_round"] <= curve["bound"]).all() and curve["converged"].all()
    assert sweep_horizon(ContentMarket(), [5, 30])["quality"][1] > 0
    rules = compare_algorithms(ContentMarket(T=20), ["hedge", "punish-hedge", "uniform"])
    assert rules.words["algo"] == ("hedge", "punish-hedge", "uniform")
    assert rules["quality"][1] > rules["quality"][0] > rules["quality"][2] == 0


def test_results_come_back_from_disk(tmp_path):
    found = solve(ContentMarket(T=8))
    again = ContentEquilibrium.load(found.save(tmp_path))
    assert again.to_frame().equals(found.to_frame()) and again.summary() == found.summary()
    assert found.plot().data


# ── costs ──


def test_a_cost_curve_of_a_power_is_the_power():
    market = ContentMarket(T=20, eta=0.2)
    table = market.changed({"cost_curve": tabulate(lambda q: q**2, most=1.2, points=400)})
    assert solve(table).quality[0, 0] == pytest.approx(solve(market).quality[0, 0], abs=4e-3)
    assert break_even(table) == pytest.approx(break_even(market), rel=1e-4)
    np.testing.assert_allclose(upper_bound(table)[:-1], upper_bound(market)[:-1], atol=4e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"P": 1}, "two producers"),
        ({"T": 1}, "two rounds"),
        ({"beta": 1.0}, "discount"),
        ({"c": 0.5}, "not convex"),
        ({"eta": -1.0}, "learning rate"),
        ({"eta_schedule": [1.0]}, "1 rates for T"),
        ({"algo": "exp3", "gamma": 0.0}, "overflow"),
        ({"users": [[1.0, -1.0]]}, "user 1"),
        ({"users": [[0.0, 0.0]]}, "user 1"),
        ({"users": [[1.0], [1.0, 2.0]]}, "one length"),
        ({"users": [[1.0]], "weights": [1.0, 2.0]}, "weights"),
        ({"users": [[1.0, 1.0]], "criteria": [[1.0]]}, "criteria"),
        ({"weights": [1.0]}, "without users"),
        ({"q": 0.0}, "threshold"),
        ({"algo": "bandit"}, "algo"),
        ({"cost_curve": [[0, 0], [1, 1], [2, 1.5]]}, "not convex"),
        ({"cost_curve": [[0, 1], [1, 2], [2, 3]]}, "start at"),
    ],
)
def test_bad_markets_are_refused_in_a_sentence(changes, said):
    with pytest.raises(InputError, match=said):
        ContentMarket.parse(changes)


def test_other_bad_input_is_refused():
    for call in (
        lambda: upper_bound(ContentMarket(c=1.0)),
        lambda: upper_bound(ContentMarket(algo="uniform")),
        lambda: symmetric_foc(ContentMarket(algo="exp3")),
        lambda: solve(ContentMarket(), start=np.zeros((1, 2, 3))),
        lambda: solve(ContentMarket(), start="somewhere"),
        lambda: exposures(ContentMarket(algo="exp3"), np.zeros((4, 60, 1))),
    ):
        with pytest.raises(InputError):
            call()


def test_markets_say_what_is_odd():
    assert "undefined" in ContentMarket(c=1.0).warnings[0]
    assert "increases" in ContentMarket(decay=-0.5).warnings[0]
