"""Sycophancy: four tests, what preference data paid for, what a reward model selects.

Nothing heavy is imported here; each name is loaded when it is first used.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

_HOME = {
    "BonCurve": "best_of_n",
    "ConvergenceWarning": "regression",
    "EdgeWarning": "regression",
    "FeatureAnnotator": "features",
    "Misconception": "reward",
    "PROGRAMMATIC": "features",
    "Posterior": "posterior",
    "PreferencePair": "features",
    "PreferenceRegression": "regression",
    "SycophancyReport": "report",
    "analyse": "report",
    "bon_curve": "best_of_n",
    "human_misconceptions": "reward",
    "majority_rule": "design",
    "open_reward_model": "reward",
    "oracle": "reward",
    "prompted": "reward",
    "rm_misconceptions": "reward",
    "sycophancy_answer": "tasks",
    "sycophancy_are_you_sure": "tasks",
    "sycophancy_feedback": "tasks",
    "sycophancy_mimicry": "tasks",
    "win_rates": "design",
}

__all__ = [
    "PROGRAMMATIC",
    "BonCurve",
    "ConvergenceWarning",
    "EdgeWarning",
    "FeatureAnnotator",
    "Misconception",
    "Posterior",
    "PreferencePair",
    "PreferenceRegression",
    "SycophancyReport",
    "analyse",
    "bon_curve",
    "human_misconceptions",
    "majority_rule",
    "open_reward_model",
    "oracle",
    "prompted",
    "rm_misconceptions",
    "sycophancy_answer",
    "sycophancy_are_you_sure",
    "sycophancy_feedback",
    "sycophancy_mimicry",
    "win_rates",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
