"""Pre-memorization accuracy: will a fine-tuned reasoner generalise, and which rows has it merely copied?

    recorder = TrajectoryRecorder(k=5).fit("run/", read_records("train.jsonl"))
    predicted_accuracy(recorder.trajectory_, threshold=-2.3)
    fragile_examples(recorder.trajectory_, threshold=-2.3)

Kang, Setlur, Ghosh, Steinhardt, Tomlin, Levine, Kumar 2024 (arXiv 2411.07681).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization.accuracy import (
        dataset_accuracy,
        fragile_examples,
        memorised,
        notes,
        pre_memorization,
    )
    from glasshouse.attribution.pre_memorization.answers import (
        Match,
        answers_match,
        final_answer,
        whole_reply,
    )
    from glasshouse.attribution.pre_memorization.calibration import Calibration, calibrate_threshold
    from glasshouse.attribution.pre_memorization.measure import (
        OVERLAP_THRESHOLD,
        as_rows,
        check_logppl,
        rouge_l,
    )
    from glasshouse.attribution.pre_memorization.perturbation import Robustness, robustness
    from glasshouse.attribution.pre_memorization.prediction import (
        Prediction,
        predict_test,
        predicted_accuracy,
    )
    from glasshouse.attribution.pre_memorization.recorder import TrajectoryRecorder
    from glasshouse.attribution.pre_memorization.trajectory import (
        Trajectory,
        load_trajectories,
        save_trajectories,
    )

_HOMES = {
    "accuracy": ("dataset_accuracy", "fragile_examples", "memorised", "notes", "pre_memorization"),
    "answers": ("Match", "answers_match", "final_answer", "whole_reply"),
    "calibration": ("Calibration", "calibrate_threshold"),
    "measure": ("OVERLAP_THRESHOLD", "as_rows", "check_logppl", "rouge_l"),
    "prediction": ("Prediction", "predict_test", "predicted_accuracy"),
    "recorder": ("TrajectoryRecorder",),
    "perturbation": ("Robustness", "robustness"),
    "trajectory": ("Trajectory", "load_trajectories", "save_trajectories"),
}

__all__ = [
    "OVERLAP_THRESHOLD",
    "Calibration",
    "Match",
    "Prediction",
    "Robustness",
    "Trajectory",
    "TrajectoryRecorder",
    "answers_match",
    "as_rows",
    "calibrate_threshold",
    "check_logppl",
    "dataset_accuracy",
    "final_answer",
    "fragile_examples",
    "load_trajectories",
    "memorised",
    "notes",
    "pre_memorization",
    "predict_test",
    "predicted_accuracy",
    "robustness",
    "rouge_l",
    "save_trajectories",
    "whole_reply",
]

__getattr__, __dir__ = lazy_names(__name__, {name: home for home, names in _HOMES.items() for name in names})
