"""Part A: the authors' own measurements of Llama-3-8B, read again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization import Prediction, Trajectory

THRESHOLDS = {"gsm8k": -2.3, "math": -1.7}
EXAMPLES = {
    "gsm8k_orig_6epochs_full_lr0.0002_bs128": (0.962, 0.298, 0.239),
    "gsm8k_orig_6epochs_full_lr5e-07_bs128": (0.546, 0.542, 0.512),
    "gsm8k_orig_12epochs_quarter_lr2e-05_bs128": (0.999, 0.401, 0.435),
}
"""Train, pre-memorization and test accuracy at the last checkpoint, as the spec prints them."""
AUDIT = 0.05


def data_folder() -> Path | None:
    """The real records, where GLASSHOUSE_DATA points at them."""
    root = os.environ.get("GLASSHOUSE_DATA")
    folder = Path(root) / "pre-memorization" if root else None
    return folder if folder is not None and folder.is_dir() else None


def read(name: str) -> dict[str, Trajectory]:
    """The runs of 'gsm8k' or 'math', by name."""
    from glasshouse.attribution.pre_memorization import load_trajectories

    folder = data_folder()
    assert folder is not None
    return load_trajectories(folder / f"{name}_llama3_8b_runs.npz")


def summary(name: str) -> dict[str, Any]:
    """Everything about one of the two sets: fit, control, threshold sweep, other predictors, savings."""
    from glasshouse.attribution.pre_memorization import calibrate_threshold, predict_test

    runs = read(name)
    found = predict_test(runs, THRESHOLDS[name])
    swept = calibrate_threshold(runs)
    flat = calibrate_threshold(runs, labels=False)
    one = {key: getattr(found, key).to_json() for key in ("r2", "mae", "correlation2")}
    return {
        "points": len(found.run), "runs": len(runs), **one,
        "control": {key: value.to_json() for key, value in found.control.items()},
        "peak": swept.threshold, "peak_interval": swept.interval.to_json(), "grid": swept.grid.tolist(),
        "curve": swept.curve.tolist(), "scrambled_peak": scrambled_peak(runs),
        "flat": flat.threshold, "flat_r2": predict_test(runs, flat).r2.to_json(),
        "predicted": found.predicted.tolist(), "measured": found.measured.tolist(),
        "train": found.train.tolist(), "run": list(found.run), "rivals": rivals(runs, found),
        "savings": savings(runs, THRESHOLDS[name]),
    }  # fmt: skip


def scrambled_peak(runs: dict[str, Trajectory]) -> float:
    """Where the sweep peaks when every row is given the perplexities of another row of its run."""
    from dataclasses import replace

    from glasshouse.attribution.pre_memorization import calibrate_threshold

    mixed = {}
    for name, one in runs.items():
        order = rng(0, "scrambled", name).permutation(one.n_rows)
        mixed[name] = replace(one, train_logppl=one.train_logppl[:, order])
    return calibrate_threshold(mixed).threshold


def rivals(runs: dict[str, Trajectory], found: Prediction) -> list[dict[str, Any]]:
    """Identity R^2 and mean error of other predictors; perplexity gets the line of the other runs."""
    from glasshouse.attribution.pre_memorization.baselines import (
        from_other_runs,
        held_out_accuracy,
        mean_logppl,
    )
    from glasshouse.attribution.pre_memorization.prediction import identity_r2, mae

    measured = {name: one.test_accuracy for name, one in runs.items()}
    truth = np.concatenate(list(measured.values()))  # type: ignore[arg-type]
    guesses = {
        "pre-memorization accuracy": found.predicted, "training accuracy": found.train,
        "mean log-perplexity, line of other runs": np.concatenate(
            list(from_other_runs({n: mean_logppl(t) for n, t in runs.items()}, measured).values())  # type: ignore[arg-type]
        ),
    }  # fmt: skip
    table = [_row(name, truth, guess, identity_r2, mae) for name, guess in guesses.items()]
    left_out = {n: t for n, t in runs.items() if len(t.trained) < t.n_rows}
    if left_out:
        held = np.concatenate([held_out_accuracy(t) for t in left_out.values()])
        test = np.concatenate([t.test_accuracy for t in left_out.values()])  # type: ignore[misc]
        own = np.concatenate([found.predicted[np.array(found.run) == n] for n in left_out])
        table.append(_row("held-out training rows (runs that left some out)", test, held, identity_r2, mae))
        table.append(_row("pre-memorization accuracy (the same runs)", test, own, identity_r2, mae))
    return table


def _row(name: str, truth: Any, guess: Any, r2: Any, error: Any) -> dict[str, Any]:
    return {"predictor": name, "points": len(truth), "R^2": r2(truth, guess), "MAE": error(truth, guess)}


def savings(runs: dict[str, Trajectory], threshold: float, *, seed: int = 0) -> dict[str, float]:
    """Samples that need not be drawn where copied rows are only audited, and what that does to PM."""
    from dataclasses import replace

    from glasshouse.attribution.pre_memorization import dataset_accuracy, memorised

    drawn, every, error = 0, 0, 0.0
    for name, one in runs.items():
        copied = memorised(one, threshold)
        sampled = ~copied | (rng(seed, "audit", name).random(copied.shape) < AUDIT)
        right = np.where(sampled, one.train_correct, one.train_samples[:, None])
        less = replace(one, train_correct=right, train_sampled=sampled)
        gap = np.abs(dataset_accuracy(less, threshold) - dataset_accuracy(one, threshold)).max()
        error = max(error, float(gap))
        drawn += int(sampled[:, one.trained].sum())
        every += len(one) * len(one.trained)
    return {"share of samples saved": 1 - drawn / every, "largest change of PM": error}


def examples() -> list[dict[str, Any]]:
    """Train, PM and test accuracy at the end of the three runs that the spec prints."""
    from glasshouse.attribution.pre_memorization import dataset_accuracy

    runs = read("gsm8k")
    rows = []
    for name, spec in EXAMPLES.items():
        one = runs[name]
        ours = (
            float(one.accuracy[-1, one.trained].mean()),
            float(dataset_accuracy(one, THRESHOLDS["gsm8k"])[-1]), float(one.test_accuracy[-1]),  # type: ignore[index]
        )  # fmt: skip
        rows.append({"run": name, **dict(zip(("train", "pm", "test"), ours, strict=True)),
                     "off": largest_gap(ours, spec)})  # fmt: skip
    return rows


def largest_gap(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference between two lists of numbers."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
