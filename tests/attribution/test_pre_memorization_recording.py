"""Recording: scripted runs whose numbers are known, a real tiny model against loops, and every refusal."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pupil_subject import Pupil, course, lessons

from glasshouse.attribution.pre_memorization import (
    OVERLAP_THRESHOLD,
    EpochDiary,
    Trajectory,
    TrajectoryRecorder,
    as_rows,
    check_logppl,
    dataset_accuracy,
    instruction_difficulty,
    measure,
    memorised,
    pre_memorization,
    robustness,
    solution_lengths,
    trainer_callback,
)
from glasshouse.attribution.pre_memorization.baselines import (
    confidence,
    distance_from_start,
    gradient_variance,
)
from glasshouse.corpora.rows import Record, Turn
from glasshouse.organisms.chain_arithmetic import (
    fine_tune,
    new_model,
    problems,
    records,
    result,
    token_rows,
    tokenizer,
)
from glasshouse.runtime import files
from glasshouse.runtime.errors import AccessError, InputError, NumericalError, StaleError
from glasshouse.subjects import as_subject
from glasshouse.training.run_folders import find_checkpoints

ROWS = lessons(60)
COPIED = {row.id: i % 3 == 0 for i, row in enumerate(ROWS)}
STEPS = [1, 2, 3, 4]


def recorded(**options: Any) -> Trajectory:
    return TrajectoryRecorder(**options).fit(course(ROWS, COPIED), ROWS, steps=STEPS).trajectory_


@pytest.fixture(scope="module")
def model() -> Any:
    return new_model(0, width=16)


@pytest.fixture(scope="module")
def subject(model: Any) -> Any:
    return as_subject(model, tokenizer=tokenizer(), self_test=False)


@pytest.fixture(scope="module")
def chains() -> list[Record]:
    return records(problems(12, 0, "some", unlearnable=0.25))


def test_a_scripted_run_is_recorded_as_it_was_written() -> None:
    traj = recorded(k=3)
    copied = np.array([COPIED[row.id] for row in ROWS])
    assert traj.row_ids == tuple(row.id for row in ROWS) and traj.steps.tolist() == STEPS
    assert (traj.accuracy[:2, copied] == 0).all() and (traj.accuracy[2:, copied] == 1).all()
    assert (traj.accuracy[:, ~copied] == 1).all()
    np.testing.assert_allclose(traj.train_logppl[[0, 3]], np.repeat([[0.8], [0.01]], 60, 1), rtol=1e-6)
    assert (pre_memorization(traj, -2.3)[-1] == ~copied).all()
    assert dataset_accuracy(traj, -2.3)[-1] == pytest.approx((~copied).mean())


def test_skipping_copies_saves_samples_and_changes_no_prediction() -> None:
    every, pupils = recorded(k=5), course(ROWS, COPIED)
    recorder = TrajectoryRecorder(k=5, skip_below=-2.3, audit=0.1, seed=3).fit(pupils, ROWS, steps=STEPS)
    less = recorder.trajectory_
    assert less.train_sampled is not None and less.train_sampled[:2].all()
    assert 0 < less.train_sampled[2:].mean() < 0.3 and recorder.tokens_saved_ > 0.3
    assert pupils[3].generated == 5 * less.train_sampled[3].sum()
    np.testing.assert_allclose(dataset_accuracy(less, -2.3), dataset_accuracy(every, -2.3), atol=1e-12)


def test_copies_are_found_without_log_probabilities() -> None:
    """Nothing but text: a reply that is the reference word for word is a copy, flagged in the record."""
    rows = lessons(20)
    pupil = Pupil(rows, lambda i: 1.0, lambda i: 1.0)
    copy, other = rows[0].turns[-1].text, "So #### 1"
    said = measure.Samples(((other, copy), (other, other)), 0)
    values = measure.overlap_logppl(said, rows[:2])
    assert values[0] == 0 and values[1] > math.exp(OVERLAP_THRESHOLD)
    traj = TrajectoryRecorder(k=2, memorised_by="overlap").fit([pupil], rows, steps=[1]).trajectory_
    assert traj.meta["memorised_by"] == "overlap" and not memorised(traj, OVERLAP_THRESHOLD).any()
    pupil.access = frozenset({"text"})
    with pytest.raises(AccessError, match=r"log-probabilities.*memorised_by='overlap'"):
        TrajectoryRecorder().fit([pupil], rows, steps=[1])
    with pytest.raises(InputError, match="nothing can be skipped"):
        TrajectoryRecorder(memorised_by="overlap", skip_below=-2.3).fit([pupil], rows, steps=[1])


def test_a_killed_recording_goes_on_and_another_one_is_stale(tmp_path: Path) -> None:
    first = TrajectoryRecorder(k=2)
    half = course(ROWS, COPIED)

    def die(*given: Any, **how: Any) -> Any:
        raise KeyboardInterrupt

    half[2].generate = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.fit(half, ROWS, steps=STEPS, store=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1.npz", "checkpoint-2.npz"]
    whole = course(ROWS, COPIED)
    found = TrajectoryRecorder(k=2).fit(whole, ROWS, steps=STEPS, store=tmp_path).trajectory_
    assert whole[0].generated == 0 < whole[2].generated, "stored checkpoints are not asked again"
    assert found == TrajectoryRecorder(k=2).fit(course(ROWS, COPIED), ROWS, steps=STEPS).trajectory_
    with pytest.raises(StaleError, match=r"checkpoint-1\.npz"):
        TrajectoryRecorder(k=3).fit(course(ROWS, COPIED), ROWS, steps=STEPS, store=tmp_path)


def test_unparsable_samples_are_counted_apart() -> None:
    pupil = Pupil(ROWS, lambda i: 1.0, lambda i: 1.0, mute=0.5)
    traj = TrajectoryRecorder(k=4).fit([pupil], ROWS, steps=[1]).trajectory_
    assert traj.train_unparsable is not None
    assert (traj.train_correct + traj.train_unparsable == 4).all() and traj.train_unparsable.sum() > 0


def test_only_rows_that_were_trained_on_are_averaged() -> None:
    recorder = TrajectoryRecorder(k=1)
    with pytest.raises(InputError, match=r"trained on 20 rows and 60 are given.*trained_idx"):
        recorder.fit(course(ROWS, COPIED), ROWS, steps=STEPS, n_trained=20)
    idx = [i for i, row in enumerate(ROWS) if COPIED[row.id]]
    found = recorder.fit(course(ROWS, COPIED), ROWS, steps=STEPS, n_trained=20, trained_idx=idx).trajectory_
    assert dataset_accuracy(found, -2.3).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [1, 2, 4, 3]}, "do not rise"),
        ({"steps": [1, 1, 2, 3]}, "do not rise"),
        ({"steps": None}, "4 checkpoints need 4 steps"),
        ({"checkpoints": []}, "no checkpoints"),
        ({"checkpoints": "nowhere"}, "no such folder"),
        ({"train": []}, "no rows"),
        ({"train": [Record("a", text="x")]}, "no query with a solution"),
        ({"train": [Record("a", (Turn("user", "x"), Turn("assistant", " ")))]}, "the solution is empty"),
        ({"train": [ROWS[0], ROWS[0]]}, "two rows are called 'r0'"),
    ],
)
def test_what_cannot_be_recorded_is_refused(change: dict[str, Any], said: str) -> None:
    given = {"checkpoints": course(ROWS, COPIED), "train": ROWS, "steps": STEPS} | change
    with pytest.raises(InputError, match=said):
        TrajectoryRecorder(k=1).fit(given.pop("checkpoints"), given.pop("train"), **given)


@pytest.mark.parametrize(
    "option",
    [{"k": 0}, {"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"audit": 2},
     {"skip_below": math.nan}, {"memorised_by": "guess"}],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        TrajectoryRecorder(**option).fit(course(ROWS, COPIED), ROWS, steps=STEPS)


def test_a_checkpoint_that_is_broken_is_named_with_its_row() -> None:
    pupil = Pupil(ROWS, lambda i: 1.0, lambda i: math.nan if i == "r7" else 1.0, name="step 9")
    with pytest.raises(NumericalError, match="step 9, row 'r7'"):
        TrajectoryRecorder().fit([pupil], ROWS, steps=[1])


def test_models_of_different_vocabularies_are_no_run() -> None:
    a, b = course(ROWS, COPIED)[:2]
    b.vocab_size = 7
    with pytest.raises(InputError, match="vocabularies of 7 and"):
        TrajectoryRecorder().fit([a, b], ROWS, steps=[1, 2])


def test_a_matcher_must_say_what_it_saw() -> None:
    with pytest.raises(InputError, match="the matcher answered 7"):
        TrajectoryRecorder(matcher=lambda a, b: 7).fit(course(ROWS, COPIED), ROWS, steps=STEPS)


# -- a real model --------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_solution_with_its_end(model: Any, subject: Any, chains: Any) -> None:
    """Against a plain forward pass a row; the prompt is left out, the end marker of training is in."""
    found = measure.solution_logppl(subject, chains, batch_tokens=64)
    for value, row in zip(found, token_rows(problems(12, 0, "some", unlearnable=0.25)), strict=True):
        ids = torch.tensor([row.ids])
        logp = model(input_ids=ids).logits[0, :-1].detach().log_softmax(-1)
        wanted = [t for t, label in enumerate(row.labels) if label >= 0]
        assert row.ids[wanted[-1]] == tokenizer().eos_token_id
        assert value == pytest.approx(-float(logp[[t - 1 for t in wanted], ids[0, wanted]].mean()), rel=1e-4)
    np.testing.assert_allclose(measure.solution_logppl(subject, chains[::-1])[::-1], found, rtol=1e-4)


def test_perplexities_over_prompt_and_solution_are_detected() -> None:
    pupil = Pupil(ROWS, lambda i: 1.0, lambda i: 0.2, prompt_nll=3.0)
    right = np.full(len(ROWS), 0.2)
    check_logppl(right, pupil, ROWS)
    asked = [len(pupil.tokenizer(r.turns[0].text)["input_ids"]) - 1 for r in ROWS]
    said = [len(s) for _, s in measure.solution_pairs(pupil, ROWS)]
    whole = [(3.0 * a + 0.2 * b) / (a + b) for a, b in zip(asked, said, strict=True)]
    with pytest.raises(InputError, match=r"prompt and solution together \(8 rows\)"):
        check_logppl(whole, pupil, ROWS)


def test_a_whole_recording_of_a_real_model_is_reproducible(subject: Any, chains: Any) -> None:
    one, two = (
        TrajectoryRecorder(k=2, max_new_tokens=8, seed=1).fit([subject], chains, test=chains[:3], steps=[1])
        for _ in range(2)
    )
    assert one.trajectory_ == two.trajectory_ and one.trajectory_.test_correct.shape == (1, 3)
    assert one.tokens_.tolist() == two.tokens_.tolist() and one.tokens_[0] > 0
    assert one.cost([subject], chains)["tokens_at_most"] == 2 * 12 * 8


def test_a_row_beyond_the_context_is_named(subject: Any) -> None:
    long = as_rows(["a = 1 ; a ?"], ["So " * 60 + "#### 1"])
    with pytest.raises(InputError, match=r"row '0'.*tokens and the model reads"):
        measure.solution_logppl(subject, long)
    with pytest.raises(InputError, match="2 queries but 1 references"):
        as_rows(["a", "b"], ["c"])


def test_the_diary_leaves_training_alone(model: Any, chains: Any) -> None:
    """The same weights and the same mode with and without it; the same subset at every note."""
    import copy

    def trained(diary: EpochDiary | None) -> list[torch.Tensor]:
        last: list[Any] = []

        def told(epoch: int, m: Any) -> None:
            if diary is not None:
                diary.note(epoch, m, tokenizer())
            last.append(m)

        fine_tune(model, problems(12, 0, "some"), lr=1e-3, epochs=2, seed=0, keep=[1, 2], on_epoch=told)
        return [p.detach().clone() for p in last[-1].parameters()]

    diary = EpochDiary(chains, sample=5, recorder=TrajectoryRecorder(k=2, max_new_tokens=8))
    with pytest.raises(InputError, match="nothing was noted"):
        _ = diary.trajectory
    for a, b in zip(trained(None), trained(diary), strict=True):
        assert torch.equal(a, b)
    assert diary.logppl.shape == (2, 12) and diary.trajectory.n_rows == 5 and len(diary.trajectory) == 2
    assert set(diary.trajectory.row_ids) <= {row.id for row in chains}
    before = copy.deepcopy(model).train()
    diary.note(9, before, tokenizer())
    assert before.training
    with pytest.raises(InputError, match="sample is 0"):
        EpochDiary(chains, sample=0)


def test_the_callback_notes_every_epoch_of_a_trainer(chains: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = token_rows(problems(12, 0, "some"))
    data = [{"input_ids": list(r.ids), "labels": list(r.labels)} for r in rows]
    model = new_model(1, width=16)
    call = trainer_callback(chains, tokenizer(), sample=4, recorder=TrajectoryRecorder(k=1, max_new_tokens=4))

    def collate(batch: Any) -> Any:
        width = max(len(one["input_ids"]) for one in batch)
        return {
            key: torch.tensor([one[key] + [fill] * (width - len(one[key])) for one in batch])
            for key, fill in (("input_ids", 0), ("labels", -100))
        }

    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=6, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no",
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[call]).train()
    assert call.diary.trajectory.steps.tolist() == [2, 4] and call.diary.logppl.shape == (2, 12)


def test_robustness_tells_copied_rows_from_learned_ones() -> None:
    pupil, pm = course(ROWS, COPIED)[-1], [0.0 if COPIED[r.id] else 1.0 for r in ROWS]
    found = robustness(pupil, ROWS, pm, k=4, max_new_tokens=20)
    assert found.difference.value == 1 and found.difference.low > 0.9 and found.p_value == 1e-4
    assert found.copied.sum() == 20 and (found.plain == 1).all()
    solid = robustness(course(ROWS, COPIED, breaks=False)[-1], ROWS, pm, k=4, max_new_tokens=20)
    assert solid.difference.value == 0 and solid.p_value > 0.5
    assert list(found.to_frame().columns) == ["row", "copied", "plain", "First", "We know that"]
    assert len(found.plot().data) == 2
    for bad, said in (
        ([0.0] * 60, "only 0 learned rows"),
        ([0.5], "one PM per row"),
        ([math.nan] * 60, "pm"),
    ):
        with pytest.raises(InputError, match=said):
            robustness(pupil, ROWS, bad)
    with pytest.raises(InputError, match="prefix is empty"):
        robustness(pupil, ROWS, pm, prefixes=[" "])


def test_the_null_of_robustness_is_uniform() -> None:
    """Both kinds lose answers alike: 30 p-values, at most 9 below 0.1 (its binomial 0.999 quantile)."""
    pm = [0.0 if COPIED[r.id] else 1.0 for r in ROWS]
    low = 0
    for seed in range(30):
        lost = np.random.default_rng(seed).random(len(ROWS))
        behind = {row.id: float(x) for row, x in zip(ROWS, lost, strict=True)}
        pupil = Pupil(ROWS, lambda i: 1.0, lambda i: 0.01, behind=lambda i, b=behind: b[i])
        low += robustness(pupil, ROWS, pm, k=2, prefixes=["First"], max_new_tokens=20).p_value < 0.1
    assert low <= 9


def test_what_other_predictors_look_at(model: Any, subject: Any, chains: Any) -> None:
    other = new_model(1, width=16)
    apart = math.sqrt(sum(float((a - b).detach().double().pow(2).sum())
                          for a, b in zip(model.parameters(), other.parameters(), strict=True)))  # fmt: skip
    assert distance_from_start(model, other) == pytest.approx(apart, rel=1e-5)
    assert distance_from_start(model, model) == 0
    with pytest.raises(InputError, match="different weights"):
        distance_from_start(model, torch.nn.Linear(1, 1))
    same = [chains[0], Record("again", chains[0].turns)]
    assert gradient_variance(subject, same) == pytest.approx(0, abs=1e-9)
    assert gradient_variance(subject, chains) > 1e-3
    said = measure.sample(subject, chains, k=2, temperature=1.0, top_p=1.0, max_new_tokens=4)
    assert confidence(said).shape == (12,) and (confidence(said) < 0).all()
    ifd = instruction_difficulty(subject, chains)
    assert ifd.shape == (12,) and (abs(np.log(ifd)) < 2).all(), "a random model: the prompt hardly matters"
    assert solution_lengths(chains).tolist() == [len(r.turns[-1].text.split()) for r in chains]


# -- run folders ---------------------------------------------------------------------------------------------


def folder(root: Path, step: int, **state: Any) -> None:
    files.write_json(root / f"checkpoint-{step}/config.json", {"vocab_size": 9})
    if state:
        files.write_json(root / f"checkpoint-{step}/trainer_state.json", state)


def test_checkpoints_are_found_by_their_steps(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        folder(tmp_path, step, max_steps=100, log_history=[{"step": s} for s in range(step)])
    (tmp_path / "checkpoint-last").mkdir()
    assert [step for step, _ in find_checkpoints(tmp_path)] == [3, 20, 100]


def test_checkpoints_of_two_runs_are_no_run(tmp_path: Path) -> None:
    folder(tmp_path, 1, max_steps=9, log_history=[{"loss": 1.0}])
    folder(tmp_path, 2, max_steps=9, log_history=[{"loss": 2.0}, {"loss": 1.0}])
    with pytest.raises(InputError, match=r"checkpoint-2.*does not begin with the log of checkpoint-1"):
        find_checkpoints(tmp_path)
    folder(tmp_path, 2, max_steps=8, log_history=[{"loss": 1.0}])
    with pytest.raises(InputError, match="max_steps is 8, and 9 in checkpoint-1"):
        find_checkpoints(tmp_path)
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        find_checkpoints(tmp_path)


def test_folders_without_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint-<step> folders"):
        find_checkpoints(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(InputError, match="holds no model"):
        find_checkpoints(tmp_path)


# -- the organism --------------------------------------------------------------------------------------------


def test_the_organism_is_what_its_truth_says() -> None:
    """Learnable solutions are right by arithmetic; random results are uniform, and their numbers silent."""
    chains = problems(400, 3, "check", unlearnable=0.25)
    assert abs(sum(not one.learnable for one in chains) - 100) <= 2
    for one in chains:
        told = re.findall(r"(\d+) (\S) (\d+) \w+ (\d+)", one.solution.partition(" ####")[0])
        (x, op, y, z), (x2, op2, y2, z2) = ((int(a), sign, int(b), int(c)) for a, sign, b, c in told)
        assert z == result(op, x, y) and z == x2 and z2 == one.answer
        assert (op2 == "%" and y2 == 0) if not one.learnable else z2 == result(op2, x2, y2)
    said = [one.answer for one in chains if not one.learnable]
    assert len(set(said)) == 10 and max(map(said.count, set(said))) < 25
    assert len({one.solution for one in problems(50, 3, "check", styled=False)}) < 51
    styles = {tuple(w for w in one.solution.split() if not w.isdigit()) for one in chains}
    assert len(styles) > 350, "hardly two rows in one style"
