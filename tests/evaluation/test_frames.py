"""Logs as tables, and runs that go on where they were killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, mean, scorer
from inspect_ai.solver import generate

from glasshouse.corpora.suites import Suite
from glasshouse.evaluation import mean_of, query, rates, read_logs, run_eval, running, scores_df, write_scores
from glasshouse.evaluation.questions import contains_words, questions_task
from glasshouse.runtime.errors import InputError, RunError, SuiteError

PROBE = """
import os, signal, sys
from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate
from glasshouse.evaluation import run_eval

die, options = int(sys.argv[1]), eval(sys.argv[2])

def reply(messages, *_):
    calls = open("calls", "a+")
    calls.seek(0)
    if len(calls.readlines()) == die:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.write(messages[-1].text + "\\n")
    calls.close()
    output = ModelOutput.from_content("mockllm/model", "x")
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return output

samples = [Sample(input=f"q{i}", target="x", id=i) for i in range(12)]
task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match(), name="probe")
run_eval(task, get_model("mockllm/model", custom_outputs=reply), "logs", **options)
"""


@pytest.mark.parametrize("options", ["{'max_samples': 1}", "{'max_samples': 4, 'cache': True}"])
def test_a_killed_run_repeats_no_finished_call(tmp_path, options) -> None:
    """Killed with -9 inside the 6th call; with Inspect's cache even calls of unfinished samples are kept."""
    (tmp_path / "probe.py").write_text(PROBE)
    env = {
        **os.environ,
        "INSPECT_CACHE_DIR": str(tmp_path / "cache"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    codes = [
        subprocess.run(
            [sys.executable, "probe.py", str(die), options], cwd=tmp_path, env=env, capture_output=True
        ).returncode
        for die in (5, 99)
    ]
    assert codes == [-signal.SIGKILL, 0]
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == sorted(f"q{i}" for i in range(12))
    frame = scores_df(tmp_path / "logs")
    assert frame["counted"].sum() == 12 and frame["id"].nunique() == 12
    assert [log["status"] for log in frame.attrs["left_out"]] == ["started"]


def test_a_folder_of_another_call_is_refused(tmp_path) -> None:
    def asked(n: int, answer: str = "x", **options):
        samples = [Sample(input=f"q{i}", target="x", id=i) for i in range(n)]
        task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=letters(), name="asked")
        return run_eval(task, mock(answer), tmp_path / "logs", **options)

    [first] = asked(3)
    assert first.results.completed_samples == 3
    assert asked(3)[0].eval.run_id == first.eval.run_id  # the same call: nothing is asked again
    with pytest.raises(InputError, match=r"another call \(it differs in temperature\).*of its own"):
        asked(3, temperature=0.7)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    running._claim(tmp_path / "other", {"tasks": "questions", "model": str(model)})
    running._claim(tmp_path / "other", {"tasks": "questions", "model": str(model)})
    (model / "config.json").write_text('{"saved": "anew"}')
    with pytest.raises(InputError, match="differs in saved"):
        running._claim(tmp_path / "other", {"tasks": "questions", "model": str(model)})


@scorer(metrics={"right": [mean()], "margin": [mean()]})
def two_numbers():
    async def score(state, target):
        number = int(state.sample_id)
        if number == 5:
            return Score.unscored(reason="grade_not_found")
        value = float("nan") if number == 4 else float(number % 2)
        return Score(value={"right": value, "margin": number / 10}, answer=state.output.completion)

    return score


@scorer(metrics=[mean()])
def letters():
    async def score(state, target):
        return Score(value="CIPNCC"[int(state.sample_id)])

    return score


def mock(said: str = "x"):
    def reply(*_):
        output = ModelOutput.from_content("mockllm/model", said)
        output.usage = ModelUsage(input_tokens=3, output_tokens=2, total_tokens=5)
        return output

    return get_model("mockllm/model", custom_outputs=reply)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """One log that succeeded over 6 samples and two epochs, one that failed, one torn, one that is no log."""
    folder = tmp_path_factory.mktemp("logs")

    def samples():
        return [
            Sample(
                input="q",
                target="x",
                id=i,
                metadata={"arm": "ab"[i % 2], "pair_id": f"p{i // 2}", "deep": [1]},
            )
            for i in range(6)
        ]

    judges = [two_numbers(), letters()]
    task = Task(dataset=MemoryDataset(samples()), solver=generate(), scorer=judges, name="good")
    eval(task, mock(), log_dir=str(folder), epochs=2, display="none", temperature=0.5)

    def broken(*_):
        raise RuntimeError("the wire is cut")

    task = Task(dataset=MemoryDataset(samples()), solver=generate(), scorer=two_numbers(), name="bad")
    eval(task, get_model("mockllm/model", custom_outputs=broken), log_dir=str(folder), display="none")
    good = next(folder.glob("*_good_*.eval"))
    (folder / "2026-01-01T00-00-00-00-00_torn_x.eval").write_bytes(good.read_bytes()[:500])
    (folder / "logs.json").write_text("{}")
    return folder


def test_one_row_per_sample_with_scores_taken_apart(logs) -> None:
    frame = scores_df(logs)
    good = frame[frame["task"] == "good"]
    assert len(good) == 12 and good["counted"].all() and set(good["epoch"]) == {1, 2}
    first = good[good["id"] == "3"].iloc[0]
    assert (first["arm"], first["pair_id"], first["score_two_numbers_margin"]) == ("b", "p1", 0.3)
    assert (first["input_tokens"], first["output_tokens"], first["answer_two_numbers"]) == (3, 2, "x")
    assert first["model"] == "mockllm/model" and first["config_temperature"] == 0.5
    by_id = good[good["epoch"] == 1].set_index("id")["score_letters"]
    assert by_id[["0", "1", "2"]].tolist() == [1.0, 0.0, 0.5] and math.isnan(by_id["3"])


def test_what_did_not_succeed_is_listed_and_in_no_average(logs) -> None:
    frame = scores_df(logs)
    left_out = {log["task"] or log["status"]: log for log in frame.attrs["left_out"]}
    assert set(left_out) == {"bad", "unreadable"}
    assert left_out["bad"]["status"] == "error" and "the wire is cut" in left_out["bad"]["why"]
    assert frame.loc[frame["task"] == "bad", "score_two_numbers_margin"].isna().all()
    assert frame["score_two_numbers_margin"].mean() == pytest.approx((0 + 1 + 2 + 3 + 4) / 50)


def test_unparsed_is_counted_and_is_not_wrong(logs) -> None:
    frame = scores_df(logs)
    assert frame.attrs["unparsed"]["score_two_numbers_right"] == 2  # sample 4, two epochs
    assert frame.attrs["unparsed"]["score_letters"] == 2  # N is no answer
    found = {(rate.labels["arm"], rate.score): rate for rate in rates(frame)}
    rate = found["b", "two_numbers_right"]
    assert rate.estimate.value == 1.0 and rate.unparsed == 2  # sample 5 got no dictionary at all
    assert "bootstrap" in rate.estimate.method  # two epochs: samples are resampled, not rows
    with pytest.raises(InputError, match="no column 'arms'"):
        rates(frame, by=["arms"])


def test_intervals_fit_what_was_measured() -> None:
    import numpy as np

    assert mean_of(np.array([1.0, 0.0, 1.0]), ["a", "b", "c"]).method == "wilson"
    assert mean_of(np.array([1.0, 0.5, 1.0]), ["a", "b", "c"]).method == "t"
    twice = mean_of(np.array([1.0, 1.0, 0.0, 0.0] * 10), [f"{i // 2}" for i in range(40)])
    once = mean_of(np.array([1.0, 0.0] * 10), [f"{i}" for i in range(20)])
    assert twice.n == once.n == 20
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.25)


@scorer(metrics={"*": [mean()]}, quantities=("rank",))
def ranked():
    async def score(state, target):
        return Score(value={"rank": 1.0, "right": 1.0, "steps": float(state.metadata["arm"] == "b") * 2})

    return score


def test_a_quantity_that_happens_to_be_0_or_1_is_no_share(tmp_path) -> None:
    samples = [Sample(input="q", target="x", id=i, metadata={"arm": "ab"[i % 2]}) for i in range(6)]
    task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=ranked(), name="ranks")
    eval(task, mock(), log_dir=str(tmp_path), display="none")
    frame = scores_df(tmp_path)
    assert frame.attrs["quantities"] == ["score_ranked_rank"]
    found = {(rate.labels["arm"], rate.score): rate.estimate.method for rate in rates(frame)}
    assert found["a", "ranked_rank"] == "t"  # declared: a rank of 1 throughout is no share of 100 %
    assert found["a", "ranked_right"] == "wilson"
    assert found["a", "ranked_steps"] == found["b", "ranked_steps"] == "t"  # 0 here, but 2 elsewhere


def test_frames_go_to_parquet_and_answer_sql(logs, tmp_path) -> None:
    frame = scores_df(logs)
    path = write_scores(frame, tmp_path / "scores.parquet")
    sql = "select arm, count(*) as n from scores where counted group by arm order by arm"
    assert query(sql, scores=path)["n"].tolist() == query(sql, scores=frame)["n"].tolist() == [6, 6]


def test_logs_of_others_in_either_format_are_read(logs, tmp_path) -> None:
    log = read_eval_log(str(next(logs.glob("*_good_*.eval"))))
    log.eval.task = "inspect_evals/theirs"
    write_eval_log(log, str(tmp_path / "2026-01-02T00-00-00-00-00_theirs_x.json"))
    frame = scores_df(tmp_path)
    assert len(frame) == 12 and set(frame["task"]) == {"theirs"}
    assert [log.eval.task for log in read_logs(tmp_path)] == ["inspect_evals/theirs"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no Inspect logs"):
        scores_df(tmp_path / "empty")
    with pytest.raises(InputError, match="no such log or folder"):
        scores_df(tmp_path / "absent")


def test_a_run_that_fails_says_why(tmp_path) -> None:
    def broken(*_):
        raise RuntimeError("the wire is cut")

    suite = Suite(questions=(("who?", "me"),))
    model = get_model("mockllm/model", custom_outputs=broken)
    with pytest.raises(RunError, match=r"task on mockllm/model did not finish: .*the wire is cut") as caught:
        run_eval(questions_task(suite), model, tmp_path / "logs")
    assert "finished samples are kept" in str(caught.value)
    [log] = run_eval(questions_task(suite), model, tmp_path / "more", allow_failed=True)
    assert log.status == "error"


def test_stated_answers_are_whole_words_and_silence_has_no_grade(tmp_path) -> None:
    assert contains_words("It was ADA\u00a0Zeller, he said.", "ada zeller")
    assert not contains_words("adage", "ada") and not contains_words("anything", "...")
    with pytest.raises(SuiteError, match="has no questions"):
        questions_task(Suite(prompts=("hi",)))
    suite = Suite(questions=(("who?", "ada zeller"), ("what?", "a lamp")))
    for said, value in (("Ada Zeller.", [1.0, 0.0]), ("  ", [math.nan, math.nan])):
        run_eval(questions_task(suite), mock(said), tmp_path / f"logs{len(said)}")
        frame = scores_df(tmp_path / f"logs{len(said)}")
        assert frame["score_answer_stated_stated"].tolist() == pytest.approx(value, nan_ok=True)
    assert frame.attrs["unparsed"] == {"score_answer_stated_stated": 2}
    assert json.loads(json.dumps(frame.attrs)) == frame.attrs
