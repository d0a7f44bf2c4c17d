"""The measure itself: against loops, on the authors' records, and everything that is refused."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glasshouse.attribution.pre_memorization import (
    CurationPlan,
    Match,
    Trajectory,
    answers_match,
    calibrate_threshold,
    data_efficiency,
    dataset_accuracy,
    final_answer,
    fragile_examples,
    load_trajectories,
    memorised,
    notes,
    pre_memorization,
    predict_test,
    predicted_accuracy,
    rouge_l,
    save_trajectories,
    whole_reply,
)
from glasshouse.attribution.pre_memorization.baselines import (
    from_other_runs,
    held_out_accuracy,
    thresholded_confidence,
)
from glasshouse.attribution.pre_memorization.prediction import identity_r2
from glasshouse.runtime.errors import InputError

DATA = Path(os.environ.get("GLASSHOUSE_DATA", "nowhere")) / "pre-memorization"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the authors' records need GLASSHOUSE_DATA")


def made(t: int = 4, n: int = 6, m: int = 5, *, seed: int = 0, **more: Any) -> Trajectory:
    """A random run of `t` checkpoints, `n` rows and `m` test rows."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "steps": np.arange(1, t + 1) * 10, "train_correct": rng.integers(0, 6, (t, n)),
        "train_samples": np.full(t, 5), "train_logppl": rng.gamma(1.0, 0.2, (t, n)).astype(np.float32),
        "test_correct": rng.integers(0, 6, (t, m)), "test_samples": np.full(t, 5), "name": f"run {seed}",
    }  # fmt: skip
    return Trajectory(**(values | more))


def by_loops(traj: Trajectory, threshold: float) -> np.ndarray:
    """PM as the paper writes it, one number at a time."""
    out = np.zeros(traj.train_logppl.shape)
    for i in range(traj.n_rows):
        for t in range(len(traj)):
            best = 0.0
            for s in range(t + 1):
                nll = float(traj.train_logppl[s, i])
                free = nll > 0 and np.log(np.float32(nll)) >= threshold
                best = max(best, traj.train_correct[s, i] / 5) if free else best
            out[t, i] = min(best, traj.train_correct[t, i] / 5)
    return out


@given(
    correct=arrays(np.int64, (3, 4), elements=st.integers(0, 5)),
    logppl=arrays(np.float32, (3, 4), elements=st.floats(0, 4, width=32)),
    threshold=st.floats(-4, 1),
)
def test_the_measure_is_the_papers_written_out(correct: Any, logppl: Any, threshold: float) -> None:
    traj = made(3, 4, train_correct=correct, train_logppl=logppl)
    found = pre_memorization(traj, threshold)
    np.testing.assert_array_equal(found, by_loops(traj, threshold))
    assert (found <= traj.accuracy).all() and (found >= 0).all()


def test_the_running_maximum_and_the_minimum_with_now_both_count() -> None:
    """Pitfalls 1 and 2: accuracy before memorization rises and falls; accuracy now is lower than it was."""
    logppl = np.array([[0.5], [0.5], [0.05], [0.01]], np.float32)
    traj = made(4, 1, train_correct=[[4], [1], [5], [3]], train_logppl=logppl)
    assert pre_memorization(traj, -2.3)[:, 0].tolist() == [0.8, 0.2, 0.8, 0.6]


def test_certain_rows_are_memorised_at_any_threshold_without_a_warning() -> None:
    traj = made(2, 2, train_logppl=np.array([[0.0, 1.0], [0.0, 1.0]], np.float32))
    for threshold in (-50.0, -2.3, 2.0):
        assert memorised(traj, threshold)[:, 0].all()
    assert not memorised(traj, -2.3)[:, 1].any()
    assert pre_memorization(traj, -2.3)[:, 0].tolist() == [0, 0]


def test_the_logarithms_are_natural() -> None:
    """Pitfall 4: -2.3 is 0.1003 nats a token; with log10 twice it would be 0.0115."""
    edge = np.array([[0.0999, 0.1005]], np.float32)
    assert memorised(made(1, 2, train_logppl=edge), -2.3).tolist() == [[True, False]]


def test_rows_the_run_never_saw_are_left_out() -> None:
    traj = made(3, 6, trained_idx=[0, 2])
    np.testing.assert_allclose(dataset_accuracy(traj, -2.3), by_loops(traj, -2.3)[:, [0, 2]].mean(1))
    assert set(fragile_examples(traj, -2.3, right=0.0, low=1.1)["index"]) <= {0, 2}


def test_unsampled_copies_are_corrected_by_the_audited_ones() -> None:
    """Copied rows hold their answers in 80 % of samples; half of them are audited, the others assumed."""
    n = 400
    rng = np.random.default_rng(0)
    logppl = np.full((2, n), 1.0, np.float32)
    logppl[1] = 0.01
    correct = np.stack([np.full(n, 5), rng.binomial(5, 0.8, n)])
    full = made(2, n, train_correct=correct, train_logppl=logppl)
    sampled = np.stack([np.ones(n, bool), rng.random(n) < 0.5])
    less = replace(full, train_sampled=sampled, train_correct=np.where(sampled, correct, 5))
    truth = dataset_accuracy(full, -2.3)[1]
    naive = pre_memorization(less, -2.3)[1].mean()
    error = 0.18 / math.sqrt(n / 2)  # sd of one row's 5-sample accuracy at 0.8, over the audited rows
    assert abs(dataset_accuracy(less, -2.3)[1] - truth) < 4 * error < abs(naive - truth)


# -- the authors' records ------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("name", "threshold", "points", "r2", "error", "train_r2", "train_error"),
    [("gsm8k", -2.3, 39, 0.951, 0.0265, -5.6, 0.28), ("math", -1.7, 27, 0.943, 0.0067, -146, 0.29)],
)
def test_the_records_give_the_papers_figures(
    name: str, threshold: float, points: int, r2: float, error: float, train_r2: float, train_error: float
) -> None:
    found = predict_test(load_trajectories(DATA / f"{name}_llama3_8b_runs.npz"), threshold)
    assert len(found.run) == points
    assert abs(found.r2.value - r2) < 5e-4 and abs(found.mae.value - error) < 5e-5
    assert abs(found.control["r2"].value - train_r2) < 0.1
    assert abs(found.control["mae"].value - train_error) < 0.005
    assert found.r2.low < r2 < found.r2.high and found.r2.n in (10, 7), "runs are what is resampled"


@real
def test_a_threshold_read_with_log10_would_be_noticed() -> None:
    runs = load_trajectories(DATA / "gsm8k_llama3_8b_runs.npz")
    assert predict_test(runs, -2.3).r2.value - predict_test(runs, -2.3 * math.log(10)).r2.value > 0.5
    assert predict_test(runs, -2.0).r2.value < 0.8, "three steps of the grid away it is markedly worse"


# -- prediction and calibration ------------------------------------------------------------------------------


def planted(seed: int, *, threshold: float = -1.0, n: int = 300) -> Trajectory:
    """A run whose test accuracy is PM at `threshold` by construction, with nothing fitted."""
    rng = np.random.default_rng(seed)
    skill, copies = rng.random(n), rng.random((5, n)).cumsum(0)
    logppl = np.exp(1.0 - 1.5 * copies).astype(np.float32)
    now = np.where(np.log(logppl) < threshold, 1.0, np.minimum(skill * np.linspace(0.6, 1, 5)[:, None], 1))
    one = made(5, n, seed=seed, train_correct=rng.binomial(5, now), train_logppl=logppl)
    goal = dataset_accuracy(one, threshold)
    right = (np.arange(1000) < np.round(goal * 1000)[:, None]).astype(int)
    return replace(one, test_correct=right, test_samples=np.ones(5, int))


def test_the_planted_threshold_is_found_and_predicts() -> None:
    runs = [planted(seed) for seed in range(6)]
    found = calibrate_threshold(runs)
    assert found.threshold == -1.0 and found.interval.low <= -1.0 <= found.interval.high
    fresh = [planted(seed) for seed in range(10, 16)]
    held = predict_test(fresh, found)
    assert held.r2.value > 0.99 and held.mae.value < 0.002
    assert held.control["r2"].value < held.r2.value, "training accuracy does not"
    assert not any("tuned" in text for text in held.sentences)
    assert any("tuned on this very run" in text for text in predict_test(runs, found).sentences)


def test_a_slope_cannot_hide_a_bias() -> None:
    """Pitfall 3: half the truth correlates perfectly and is no prediction."""
    y = np.linspace(0.2, 0.8, 9)
    assert identity_r2(y, y) == 1 and identity_r2(y, y / 2) < 0


def test_checkpoints_of_one_run_are_not_independent() -> None:
    """Pitfall 8: doubling the checkpoints of every run adds nothing to what the runs say."""
    runs = [made(4, 40, 40, seed=s) for s in range(8)]
    twice = [
        replace(r, steps=np.arange(8), **{k: np.repeat(getattr(r, k), 2, 0) for k in (
            "train_correct", "train_samples", "train_logppl", "test_correct", "test_samples")})
        for r in runs
    ]  # fmt: skip
    one, two = predict_test(runs, -1.5).mae, predict_test(twice, -1.5).mae
    assert one.value == pytest.approx(two.value) and two.high - two.low == pytest.approx(one.high - one.low)


def test_few_runs_have_no_spread_and_no_labels_are_looked_at_unless_asked() -> None:
    runs = [planted(s) for s in range(3)]
    assert predict_test(runs, -1.0).r2.low == -math.inf
    bare = [replace(r, test_correct=None, test_samples=None) for r in runs]
    found = calibrate_threshold(bare, labels=False)
    assert found.rule == "flat" and found.tuned_on == ()
    assert found.threshold == calibrate_threshold(runs, labels=False).threshold
    with pytest.raises(InputError, match=r"no test accuracy.*labels=False"):
        calibrate_threshold(bare)
    with pytest.raises(InputError, match="no test accuracy"):
        predict_test(bare, -1.0)
    with pytest.raises(InputError, match="does not rise"):
        calibrate_threshold(runs, [0, -1, -2])
    idle = made(3, 4, train_logppl=np.full((3, 4), 50.0, np.float32))
    with pytest.raises(InputError, match="no threshold on the grid sets any row apart"):
        calibrate_threshold(idle, labels=False)
    with pytest.raises(InputError, match="two runs are called 'run 0'"):
        predict_test([planted(0), planted(0)], -1.0)


def test_the_predicted_accuracy_covers_the_truth_of_fresh_rows() -> None:
    """95 % bootstrap over rows, 60 draws: at least 51 must cover the mean (binomial 0.001 quantile)."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        skill = rng.beta(1, 1, 150)
        traj = made(1, 150, seed=seed, train_correct=rng.binomial(5, skill)[None],
                    train_logppl=np.ones((1, 150), np.float32))  # fmt: skip
        found = predicted_accuracy(traj, -2.3, seed=seed)
        hits += found.low <= 0.5 <= found.high
    assert hits >= 51


# -- rows ----------------------------------------------------------------------------------------------------


def test_fragile_rows_are_right_only_since_they_are_copied() -> None:
    logppl = np.array([[1.0, 1.0, 1.0, 1.0], [0.01, 0.01, 1.0, 1.0]], np.float32)
    traj = made(2, 4, train_correct=[[0, 5, 0, 0], [5, 5, 5, 0]], train_logppl=logppl, row_ids=tuple("abcd"))
    found = fragile_examples(traj, -2.3)
    assert found["row"].tolist() == ["a"], "b was right before, c is right without a copy, d is wrong"
    assert found["first_memorised"].tolist() == [20]


def test_a_plan_spends_its_budget_where_pm_is_low() -> None:
    traj = made(1, 5, train_correct=[[0, 1, 2, 4, 5]], train_logppl=np.ones((1, 5), np.float32))
    plan = CurationPlan(traj, 0.75, 8, groups=["x", "x", "y", "y", "y"])
    assert plan.quotas.tolist() == [3, 3, 2, 0, 0] and plan.by_group()["collect"].tolist() == [6, 2]
    assert plan.to_frame()["kind"].tolist() == ["not learned"] * 3 + ["learned"] * 2
    assert CurationPlan(traj, 0.5, 8).quotas.sum() == 8
    for bad in ({"budget": 0}, {"cutoff": 0.0}, {"groups": ["x"]}):
        with pytest.raises(InputError):
            CurationPlan(traj, **({"cutoff": 0.75, "budget": 8} | bad))
    with pytest.raises(InputError, match="nothing stands out"):
        CurationPlan(replace(traj, train_correct=np.full((1, 5), 5)), 0.75, 8)


def test_data_efficiency_reads_the_curve() -> None:
    reference = {0: 0.4, 200: 0.6}
    assert data_efficiency(reference, {0: 0.4, 100: 0.6}) == (0.5, 100)
    share, _ = data_efficiency(reference, {0: 0.4, 100: 0.5, 200: 0.7})
    assert share == pytest.approx(0.75)
    assert data_efficiency(reference, {0: 0.4, 200: 0.5}) == (math.inf, None)
    with pytest.raises(InputError, match="one point"):
        data_efficiency(reference, {0: 0.4})


def test_what_a_reader_must_know_is_said() -> None:
    logppl = np.full((4, 10), 0.01, np.float32)
    logppl[:1, 5:] = 1.0
    traj = made(4, 10, train_logppl=logppl, train_samples=np.ones(4, int),
                train_correct=np.zeros((4, 10), int), train_unparsable=np.eye(4, 10, dtype=int))  # fmt: skip
    told = notes(traj, -2.3, tuned_on=("run 0",))
    assert told.undefined.value == 0.5 and told.scarce.value == 1.0
    text = " ".join(told.sentences)
    for part in ("undefined for 50.0% of examples", "10.0% of samples state no answer", "One sample a row",
                 "tuned on this very run"):  # fmt: skip
        assert part in text
    assert notes(made(4, 10, train_logppl=np.ones((4, 10), np.float32)), -2.3).sentences == ()


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reference", "match"),
    [
        ("so 9 * 2 = 18\n#### 18", "#### 18", Match.CORRECT),
        ("The answer is $1,080.", "... #### 1080", Match.CORRECT),
        ("The answer is 18.0", "#### 18", Match.CORRECT),
        ("#### 17\n#### 18", "#### 18", Match.CORRECT),
        (r"so \boxed{\frac{1}{2}}", r"thus \boxed{\frac{1}{2}}", Match.CORRECT),
        ("#### 108", "#### 18", Match.WRONG),
        ("#### -18", "#### 18", Match.WRONG),
        ("#### nan", "#### 18", Match.WRONG),
        ("it is 18", "#### 18", Match.UNPARSABLE),
        ("####", "#### 18", Match.UNPARSABLE),
        ("", "#### 18", Match.UNPARSABLE),
    ],
)
def test_answers(reply: str, reference: str, match: Match) -> None:
    assert answers_match(reply, reference) == match


@real
def test_every_gsm8k_solution_states_its_answer() -> None:
    from glasshouse.corpora.records import read_records

    for part, count in (("train", 7473), ("test", 1319)):
        rows = read_records(DATA.parent / f"gsm8k/{part}.jsonl.gz")
        answers = [final_answer(row.said("assistant")) for row in rows]
        assert len(rows) == count and None not in answers
        assert all(answers_match(f"The answer is {a}.", r.said("assistant")) == 0
                   for a, r in zip(answers, rows, strict=True))  # fmt: skip


def test_whole_replies_and_overlap() -> None:
    assert whole_reply(" Paris ", "paris") == Match.CORRECT and whole_reply("  ", "x") == Match.UNPARSABLE
    assert whole_reply("Rome", "paris") == Match.WRONG
    assert rouge_l("a b c", "a b c") == 1 and rouge_l("a", "b") == 0 == rouge_l("", "b")


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_rouge_is_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    want = 2 * table[-1, -1] / (len(a) + len(b)) if a and b else 0
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(want)


# -- other predictors ----------------------------------------------------------------------------------------


def test_other_predictors_say_what_their_authors_mean() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(4000)
    right = rng.random(4000) < sure  # calibrated: ATC is exact in the limit, whatever the target's skill
    target = rng.random(4000)
    assert thresholded_confidence(sure, right, target) == pytest.approx(0.5, abs=0.03)
    assert thresholded_confidence(sure, np.ones(4000), target) >= 0.99
    with pytest.raises(InputError, match="not finite"):
        thresholded_confidence([math.nan, 1], [1, 1], [1])
    x = {"a": np.array([1.0, 2]), "b": np.array([3.0, 4]), "c": np.array([5.0])}
    line = from_other_runs(x, {name: 0.1 * v + 0.2 for name, v in x.items()})
    np.testing.assert_allclose(line["c"], [0.7])
    with pytest.raises(InputError, match="no others"):
        from_other_runs({"a": x["a"]}, {"a": x["a"]})
    folds = [
        made(2, 4, trained_idx=t, name=str(t), train_correct=[[1, 2, 3, 4]] * 2) for t in ([0, 1], [2, 3])
    ]
    np.testing.assert_allclose(held_out_accuracy(folds), [0.5, 0.5])
    with pytest.raises(InputError, match="trained on every row"):
        held_out_accuracy(made())


# -- disk and refusals ---------------------------------------------------------------------------------------


def test_trajectories_come_back_from_disk(tmp_path: Path) -> None:
    one = made(trained_idx=[1, 2], row_ids=tuple("abcdef"), meta={"k": 5})
    path = one.save(tmp_path / "one.npz")
    assert Trajectory.load(path) == one and Trajectory.load(path).meta == {"k": 5}
    two = made(seed=1, trained_idx=[0])
    save_trajectories(tmp_path / "both.npz", {"x": one, "y": two})
    assert load_trajectories(tmp_path / "both.npz") == {"x": one, "y": two}
    assert Trajectory.load(tmp_path / "both.npz", "y") == two != one
    with pytest.raises(InputError, match="2 runs"):
        Trajectory.load(tmp_path / "both.npz")
    assert list(one.to_frame().columns) == ["step", "row", "trained", "accuracy", "samples", "logppl"]
    assert len(one.plot(-2.3).data) == 3 and len(predict_test([one, two], -2.3).plot().data) == 3


def test_files_that_are_no_trajectories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "bare.npz", steps=np.arange(2))
    np.savez(tmp_path / "pickled.npz", steps=np.array([{}], dtype=object))
    for name, said in (
        ("no", "not a trajectory file"),
        ("bare", "lacks"),
        ("pickled", "not a trajectory file"),
    ):
        with pytest.raises(InputError, match=said):
            Trajectory.load(tmp_path / f"{name}.npz")
    mixed = {"a": made(trained_idx=[0]), "b": made(seed=1)}
    save_trajectories(tmp_path / "mixed.npz", mixed)
    with pytest.raises(InputError, match=r"'b' does not say which rows it was trained on"):
        load_trajectories(tmp_path / "mixed.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_logppl": np.full((4, 6), -0.1)}, r"row 0 at checkpoint 0 is below 1"),
        ({"train_logppl": np.where(np.eye(4, 6) > 0, np.nan, 1)}, "is nan"),
        ({"steps": [10, 30, 20, 40]}, "checkpoint 2 is of step 20 and follows step 30"),
        ({"steps": [10, 10, 20, 40]}, "follows step 10"),
        ({"n_trained": 3}, r"trained on 3 rows and 6 were measured.*trained_idx"),
        ({"trained_idx": [0, 0]}, "each once"),
        ({"trained_idx": [9]}, "each once"),
        ({"train_correct": np.full((4, 6), 6)}, "more right answers than samples"),
        ({"train_samples": np.full(3, 5)}, "train_samples has shape"),
        ({"test_samples": None}, "belong together"),
        ({"row_ids": ("a",)}, "1 ids for 6 rows"),
        ({"train_logppl": np.zeros((4, 0))}, "no rows"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(**change)


def test_a_threshold_must_be_a_number() -> None:
    with pytest.raises(InputError, match="the threshold is nan"):
        memorised(made(), math.nan)
