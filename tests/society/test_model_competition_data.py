"""Representations, welfare curves, given predictions, encoders and scenarios."""

from __future__ import annotations

import json

import numpy as np
import pytest

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition import (
    CompetitionMarket,
    CompetitionScenario,
    Representation,
    WelfareCurve,
    encode,
    equilibrium,
    evaluate,
    from_predictions,
    nonmonotone_test,
    representation_ladder,
    welfare_curve,
)
from glasshouse.society.model_competition.settings import (
    digits,
    gaussian_minority,
    gaussians,
    read_features,
    subpopulations,
)


def test_principal_components_are_nested_and_scaled_by_the_first():
    X, y = digits()
    assert X.shape == (1797, 64) and 0.55 < y.mean() < 0.65
    ladder = dict(representation_ladder(X, ["pca:0", "pca:1", "pca:3"]))
    assert [a.shape[1] for a in ladder.values()] == [1, 2, 4]
    np.testing.assert_array_equal(ladder["pca:1"][:, 0], ladder["pca:3"][:, 0])
    assert ladder["pca:1"][:, 0].std() == pytest.approx(1)
    assert np.all(ladder["pca:3"][:, -1] == 1)
    covariance = np.cov(ladder["pca:3"][:, :3].T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)


def test_noise_projections_and_named_features():
    X = np.random.default_rng(0).normal(size=(50, 6))
    noisy, projected = (a for _, a in representation_ladder(X, ["noise:0", "randproj:2"]))
    np.testing.assert_array_equal(noisy[:, :-1], X)
    assert projected.shape == (50, 3)
    named = representation_ladder({"layer:0": X, "layer:1": 5 * X}, ["layer:0", "layer:1"])
    np.testing.assert_allclose(named[0][1], named[1][1])  # scale does not matter
    called = representation_ladder(lambda name: X if name == "checkpoint:3" else None, ["checkpoint:3"])
    np.testing.assert_allclose(called[0][1], named[0][1])


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["umap:2"], "no representation"), (["pca"], "no representation"), (["pca:9"], "9 features of 6"),
        (["pca:x"], "not a number"), (["noise:loud"], "standard deviations"),
        (["noise:nan"], "deviations"), (["noise:-1"], "deviations"), (["layer:0"], "by name"),
    ],
)  # fmt: skip
def test_ladders_refuse(kinds, says):
    with pytest.raises(InputError, match=says):
        representation_ladder(np.ones((9, 6)), kinds)


def test_gaussian_users_have_the_bayes_risk_of_the_limit():
    """The best threshold's error at sigma = 1 is 0.4 Phi(.) + 0.6 Phi(.): many users come near it."""
    from scipy.special import ndtr

    alpha, mass = gaussian_minority(1.0)
    edge = np.log(1.5) / 2
    exact = 0.4 * ndtr(edge - 1) + 0.6 * ndtr(-1 - edge)
    assert alpha @ mass == pytest.approx(exact, abs=1e-4)
    data = gaussians(1.0, n=100_000)
    wrong = ((data.X[:, 0] < edge).astype(int) != data.y).mean()
    # 5 standard errors of a share of 0.15 over 100,000 users, and the rounding of x to sigma / 40
    assert wrong == pytest.approx(exact, abs=5 * np.sqrt(0.15 / 1e5) + 0.002)


def test_subpopulations_see_what_they_should():
    data = subpopulations(5, n=40_000)
    means = [data.X[data.y == 1, i].mean() for i in range(4)]
    # coordinate i is informative for subpopulations 0 .. i
    np.testing.assert_allclose(means, np.cumsum([0.7, 0.15, 0.1, 0.05]), atol=0.04)


@pytest.fixture(scope="module")
def curve():
    X, y = digits()
    keep = np.random.default_rng(0).permutation(len(y))[:300]
    ladder = [(name, a[keep]) for name, a in representation_ladder(X, ["pca:0", "pca:1", "pca:8"])]
    return ladder, y[keep], welfare_curve(ladder, y[keep], CompetitionMarket(m=3, T=0.2), resamples=3)


def test_a_better_representation_of_digits_serves_users_worse(curve):
    _, _, found = curve
    assert found.estimate("pca:0", "bayes").value > found.estimate("pca:1", "bayes").value
    assert found.estimate("pca:1").value > 3 * found.estimate("pca:0").value
    pairs = nonmonotone_test(found)
    assert {p.worse for p in pairs} == {"pca:0"}
    assert all(p.bayes.high < 0 < p.SL.low for p in pairs) and found.eps_nash <= 1e-3
    assert found.estimate("pca:1").n == 300 and found.ratio("pca:1", "pca:0").value > 3


def test_welfare_does_not_depend_on_executor_or_a_kill(curve, tmp_path):
    from glasshouse.runtime.runs import Run

    ladder, y, found = curve
    market = CompetitionMarket(m=3, T=0.2)
    with Run.open(tmp_path, "w", {}) as run:
        run.step("shard/2", lambda: [row for row in found.rows if row["draw"] == 2])
        again = welfare_curve(ladder, y, market, resamples=3, store=run.step)
    assert again == found
    found.save(tmp_path)
    assert WelfareCurve.load(tmp_path) == found and len(found.plot().data) == 2


def test_no_pair_is_found_where_users_follow_bayes(curve):
    _, _, found = curve
    one = WelfareCurve(tuple({**row, "SL": row["bayes"]} for row in found.rows), 2, found.users)
    assert nonmonotone_test(one) == []


def test_given_predictions_by_hand():
    probs = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.6, 0.4]]])
    y, c = [0, 0], 0.5
    outcome = from_predictions(probs, y, market=CompetitionMarket(m=2, c=c, w=(0.8, 0.2)))
    loss = np.array([[0.1, 0.4], [0.8, 0.4]])
    weight = np.array([0.8, 0.2]) * np.exp(-loss / c)
    choice = weight / weight.sum(1, keepdims=True)
    assert outcome.social_loss.value == pytest.approx((loss * choice).sum(1).mean())
    assert [s.value for s in outcome.shares] == pytest.approx(choice.mean(0))
    assert outcome.best_of.value == pytest.approx(0.25) and outcome.best_single.value == pytest.approx(0.4)
    assert outcome.agreement.value == pytest.approx(0.5) and outcome.all_wrong.value == 0
    assert outcome.gain_of_choice.value == pytest.approx(0.4 - outcome.social_loss.value)
    assert set(outcome.to_frame()["quantity"]) >= {"best of m", "share of provider 1"}


def test_users_who_never_err_split_ties_by_reputation():
    probs = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    outcome = from_predictions(probs, [0], market=CompetitionMarket(m=3, c=0.0, w=(0.5, 0.25, 0.25)))
    assert outcome.choice.tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3), 0]]
    assert outcome.social_loss.value == 0


@pytest.mark.parametrize(
    ("probs", "y", "says"),
    [
        ([[0.5, 0.5]], [0, 1], "two or more providers"), ([[0.5], [2.0]], [0], "do not lie"),
        ([[[0.5, 0.1]], [[0.5, 0.5]]], [0], "provider 0 for user 0 sum to 0.600"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 5], "labels"), ([[0.5], [0.5, 0.1]], [0], "one array"),
        (np.full((4, 2, 2), 0.5), [0, 1], "give a market with m=4"),
    ],
)  # fmt: skip
def test_given_predictions_refuse(probs, y, says):
    with pytest.raises(InputError, match=says):
        from_predictions(probs, y, market=CompetitionMarket() if len(probs) == 4 else None)


@pytest.fixture(scope="module")
def subject():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from glasshouse.subjects import as_subject

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    return as_subject(LlamaForCausalLM(config).eval(), self_test=False)


def test_features_of_a_model_are_its_activations(subject):
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    run = subject.run(prompts, read=["resid_pre.1"], logits=False)
    last = encode(subject, prompts, sites=["resid_pre.1"])
    mean = encode(subject, prompts, sites=["resid_pre.1"], pooling="mean", batch=1)
    acts = run["resid_pre.1"]
    for i, prompt in enumerate(prompts):
        real = acts[i, : len(prompt)].double()
        np.testing.assert_allclose(last["resid_pre.1"][i], real[-1].numpy(), atol=1e-5)
        np.testing.assert_allclose(mean["resid_pre.1"][i], real.mean(0).numpy(), atol=1e-5)
    assert last["layer:1"] is last["resid_pre.1"]
    assert representation_ladder(last, ["layer:1"])[0][1].shape == (3, 17)
    for wrong, says in (({"pooling": "max"}, "no pooling"), ({"texts": []}, "nothing to encode")):
        with pytest.raises(InputError, match=says):
            encode(subject, wrong.pop("texts", prompts), **wrong)


def test_features_are_read_from_a_file_and_never_unpickled(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, X=np.eye(4), y=[0, 1, 0, 1])
    X, y = read_features(path)
    assert X.shape == (4, 4) and y.tolist() == [0, 1, 0, 1]
    np.savez(path, Z=np.eye(4))
    with pytest.raises(InputError, match="holds Z; save the features as X"):
        read_features(path)
    np.savez(path, X=np.array([{"a": 1}], dtype=object), y=[0])
    with pytest.raises(InputError, match="plain arrays"):
        read_features(path)
    for junk in (b"", b"PK\x03\x04 half a zip", b"\x93NUMPY"):
        path.write_bytes(junk)
        with pytest.raises(InputError):
            read_features(path)
    with pytest.raises(InputError, match="No such file"):
        read_features(tmp_path / "none.npz")


def test_a_scenario_is_the_same_after_json():
    one = CompetitionScenario.parse({"providers": 4, "reputations": [1, 1, 1, 2], "users": "gaussians"})
    assert CompetitionScenario.parse(json.loads(json.dumps(one.to_json()))) == one
    assert one.T == 0.1 and one.changed({"users": "digits"}).T == 0.2
    assert "noise" in CompetitionScenario.model_json_schema()["properties"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"providrs": 3}, "no field 'providrs'; use one of: providers"),
        ({"providers": 1}, "providers is 1"),
        ({"noise": "loud"}, "noise is 'loud'"),
        ({"reputations": [1, 2]}, "2 reputations for 3 providers"),
        ({"users": "features"}, "need a file"),
        ({"representation": "noise:loud"}, "'noise:loud'; write pca:K"),
        ({"representation": "umap:2"}, "write pca:K"),
        ({"features": "x.npz"}, "set users: features"),
    ],
)
def test_scenarios_refuse_in_one_sentence(fields, says):
    with pytest.raises(InputError) as error:
        CompetitionScenario.parse(fields, where="market.yaml")
    said = str(error.value)
    assert says in said and said.startswith("market.yaml: ") and "\n" not in said


def test_a_representation_from_a_file_and_from_a_model(tmp_path, subject):
    pairs = [([1, 2, 3], 0), ([4, 5], 1), ([6, 7], 0), ([8, 9], 1)]
    with pytest.warns(UserWarning, match="16 features for 4 users"):
        found = Representation.from_subject(subject, pairs, site="resid_pre.1", pooling="mean")
    assert found.X.shape == (4, 16) and found.y.tolist() == [0, 1, 0, 1]
    np.savez(tmp_path / "f.npz", X=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
    stored = Representation.from_npz(tmp_path / "f.npz")
    fitted, held_out = stored.split(0.6)
    assert len(fitted.y) == 12 and len(held_out.y) == 8
    assert {*fitted.X[:, 0], *held_out.X[:, 0]} == {*stored.X[:, 0]}
    for wrong in ([], [("a",)]):
        with pytest.raises(InputError, match="pairs"):
            Representation.from_subject(subject, wrong)


@pytest.mark.parametrize("loss", ["l1_sigmoid", "l1_softmax"])
def test_on_the_fitted_users_an_evaluation_says_what_the_equilibrium_said(loss):
    data, market = gaussians(1.5, n=300), CompetitionMarket(m=3, loss=loss)
    found = equilibrium(data.X, data.y, market, starts=6)
    outcome = evaluate(found, data.X, data.y, market)
    assert outcome.social_loss.value == pytest.approx(found.SL, abs=1e-9)
    assert [s.value for s in outcome.shares] == pytest.approx(found.shares.tolist(), abs=1e-9)
    assert outcome.agreement.value == pytest.approx(found.agreement, abs=1e-9)
    other = gaussians(1.5, n=300, seed=1)
    assert evaluate(found, other.X, other.y, market).social_loss.value != found.SL
    with pytest.raises(InputError, match="give 2 features"):
        evaluate(found, other.X[:, :1], other.y, market)
