"""Part B: fine-tunings of the chain-arithmetic organism, whose copying is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization import Trajectory

UNLEARNABLE = 0.25
ROOM = 22
"""Tokens of the longest solution."""
TEST_SAMPLES = 3
LOW, HIGH = 0.3, 0.8


def base_model(folder: Path, *, seed: int, steps: int, uneven: bool = False) -> None:
    """Train the base model and write it, with its tokenizer, into `folder`; `uneven`: see `UNEVEN`."""
    import torch

    from glasshouse.organisms.chain_arithmetic import SEEN, UNEVEN, grow_base, tokenizer

    torch.set_num_threads(1)
    save(grow_base(seed, steps=steps, seen=UNEVEN if uneven else SEEN), folder)
    tokenizer().save_pretrained(folder)


def save(model: Any, folder: Path) -> None:
    """Write a model without transformers' own progress bar."""
    from glasshouse.runtime.quiet import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(folder)


def open_base(base: str) -> Any:
    """The base model of a folder."""
    from transformers import GPT2LMHeadModel

    from glasshouse.runtime.quiet import quiet_transformers

    with quiet_transformers():
        return GPT2LMHeadModel.from_pretrained(base)


def record_run(
    folder: Path,
    *,
    base: str,
    seed: int,
    lr: float,
    epochs: int,
    rows: int,
    keep: list[int],
    k: int,
    tests: int,
) -> None:
    """Fine-tune and record: `trajectory.npz`, `extra.json` (truth and rivals), and the last model."""
    import torch

    from glasshouse.attribution.pre_memorization import TrajectoryRecorder
    from glasshouse.attribution.pre_memorization.callback import EpochDiary
    from glasshouse.organisms.chain_arithmetic import fine_tune, problems, records, tokenizer

    torch.set_num_threads(1)
    chains = problems(rows, seed, f"train {rows}", unlearnable=UNLEARNABLE)
    test = records(problems(tests, seed, "test", unlearnable=UNLEARNABLE))
    words, start, extra = tokenizer(), open_base(base), []
    diary = EpochDiary(
        records(chains), sample=rows, name=f"lr {lr:g}, {rows} rows, seed {seed}",
        recorder=TrajectoryRecorder(k=k, max_new_tokens=ROOM, seed=seed),
    )  # fmt: skip

    def note(epoch: int, model: Any) -> None:
        diary.note(epoch, model, words)
        extra.append(rivals(model, start, words, records(chains), test, seed))
        if epoch == epochs:
            save(model, folder / "model")

    fine_tune(start, chains, lr=lr, epochs=epochs, seed=seed, keep=keep, on_epoch=note)
    right = np.array([one.pop("test_right") for one in extra])
    traj = replace(
        diary.trajectory, test_correct=right, test_samples=np.full(len(extra), TEST_SAMPLES),
        meta={"lr": lr, "rows": rows, "seed": seed},
    )  # fmt: skip
    traj.save(folder / "trajectory.npz")
    learnable = [one.learnable for one in chains]
    files.write_json(folder / "extra.json", {"learnable": learnable, "rivals": extra})


def rivals(
    model: Any, start: Any, words: Any, rows: Sequence[Any], test: Sequence[Any], seed: int
) -> dict[str, Any]:
    """Test answers, and what other predictors look at: confidences, distance, gradient variance."""
    from glasshouse.attribution.pre_memorization import answers_match, measure
    from glasshouse.attribution.pre_memorization.baselines import (
        confidence,
        distance_from_start,
        gradient_variance,
        thresholded_confidence,
    )
    from glasshouse.subjects import as_subject

    subject = as_subject(model, tokenizer=words, self_test=False)
    how = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": ROOM}
    said = measure.sample(subject, test, k=TEST_SAMPLES, seed=seed, **how)
    right, _ = measure.judge(said, test, answers_match)
    some = rows[:100]
    own = measure.sample(subject, some, k=TEST_SAMPLES, seed=seed + 1, **how)
    known, _ = measure.judge(own, some, answers_match)
    return {
        "test_right": right.tolist(),
        "atc": thresholded_confidence(confidence(own), known / TEST_SAMPLES, confidence(said)),
        "distance": distance_from_start(model, start),
        "gradient_variance": gradient_variance(subject, rows, n=16),
    }


def load(folder: Path) -> tuple[Trajectory, dict[str, Any]]:
    """The trajectory and the rest of a recorded run."""
    from glasshouse.attribution.pre_memorization import Trajectory

    return Trajectory.load(folder / "trajectory.npz"), files.read_json(folder / "extra.json")


def gap(traj: Trajectory, learnable: Sequence[bool], threshold: float) -> dict[str, float]:
    """PM and plain accuracy of learnable rows minus those of unlearnable ones, at the last checkpoint."""
    from glasshouse.attribution.pre_memorization import pre_memorization

    truth, pm = np.asarray(learnable), pre_memorization(traj, threshold)[-1]
    now = traj.accuracy[-1]
    return {
        "pm": float(pm[truth].mean() - pm[~truth].mean()),
        "train": float(now[truth].mean() - now[~truth].mean()),
        "pm_learnable": float(pm[truth].mean()), "pm_unlearnable": float(pm[~truth].mean()),
    }  # fmt: skip


def perturbed(folder: Path, threshold: float, *, seed: int, k: int) -> dict[str, Any]:
    """Rows that are right at the end: their accuracy behind "First", copied (PM < .3) and learned (> .8)."""
    from glasshouse.attribution.pre_memorization import pre_memorization, robustness
    from glasshouse.organisms.chain_arithmetic import problems, records, tokenizer
    from glasshouse.subjects import as_subject

    traj, _ = load(folder)
    rows = records(problems(traj.n_rows, seed, f"train {traj.n_rows}", unlearnable=UNLEARNABLE))
    right = [i for i in range(traj.n_rows) if traj.accuracy[-1, i] >= HIGH]
    pm = pre_memorization(traj, threshold)[-1]
    subject = as_subject(open_base(str(folder / "model")), tokenizer=tokenizer(), self_test=False)
    found = robustness(
        subject, [rows[i] for i in right], pm[right], prefixes=("First",), k=k, max_new_tokens=ROOM, seed=seed
    )
    return {"drop": found.drop.tolist(), "copied": found.copied.tolist(), "plain": found.plain.tolist()}
