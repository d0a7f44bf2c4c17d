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
    from glasshouse.attribution.pre_memorization.callback import EpochDiary, trainer_callback
    from glasshouse.attribution.pre_memorization.curation import (
        CurationPlan,
        data_efficiency,
        instruction_difficulty,
        solution_lengths,
    )
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
    "callback": ("EpochDiary", "trainer_callback"),
    "curation": ("CurationPlan", "data_efficiency", "instruction_difficulty", "solution_lengths"),
    "answers": ("Match", "answers_match", "final_answer", "whole_reply"),
    "calibration": ("Calibration", "calibrate_threshold"),
    "measure": ("OVERLAP_THRESHOLD", "as_rows", "check_logppl", "rouge_l"),
    "prediction": ("Prediction", "predict_test", "predicted_accuracy"),
    "recorder": ("TrajectoryRecorder",),
    "perturbation": ("Robustness", "robustness"),
    "trajectory": ("Trajectory", "load_trajectories", "save_trajectories"),
}

__all__ = [
    "Calibration",
    "CurationPlan",
    "EpochDiary",
    "Match",
    "OVERLAP_THRESHOLD",
    "Prediction",
    "Robustness",
    "Trajectory",
    "TrajectoryRecorder",
    "answers_match",
    "as_rows",
    "calibrate_threshold",
    "check_logppl",
    "data_efficiency",
    "dataset_accuracy",
    "final_answer",
    "fragile_examples",
    "instruction_difficulty",
    "load_trajectories",
    "memorised",
    "notes",
    "pre_memorization",
    "predict_test",
    "predicted_accuracy",
    "robustness",
    "rouge_l",
    "save_trajectories",
    "solution_lengths",
    "trainer_callback",
    "whole_reply",
]

__getattr__, __dir__ = lazy_names(__name__, {name: home for home, names in _HOMES.items() for name in names})
