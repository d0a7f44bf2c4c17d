"""Evaluations on Inspect: our model provider with `score`, log frames, resumable runs, the sandbox.

Names are loaded when first used: importing this package loads neither Inspect nor torch nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.evaluation.choices import Item, ItemScores, accuracy, items_frame, score_items
    from glasshouse.evaluation.frames import query, read_logs, scores_df, write_scores
    from glasshouse.evaluation.running import model_string, run_eval
    from glasshouse.evaluation.sandbox import (
        Limits,
        SandboxResult,
        SandboxUnavailable,
        run_command,
        run_python,
    )
    from glasshouse.evaluation.scoring import TokenLogprobs
    from glasshouse.evaluation.summary import Rate, mean_of, rates

_HOMES = {
    "choices": ("Item", "ItemScores", "accuracy", "items_frame", "score_items"),
    "frames": ("query", "read_logs", "scores_df", "write_scores"),
    "running": ("model_string", "run_eval"),
    "sandbox": ("Limits", "SandboxResult", "SandboxUnavailable", "run_command", "run_python"),
    "scoring": ("TokenLogprobs",),
    "summary": ("Rate", "mean_of", "rates"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Item",
    "ItemScores",
    "Limits",
    "Rate",
    "SandboxResult",
    "SandboxUnavailable",
    "TokenLogprobs",
    "accuracy",
    "items_frame",
    "mean_of",
    "model_string",
    "query",
    "rates",
    "read_logs",
    "run_command",
    "run_eval",
    "run_python",
    "score_items",
    "scores_df",
    "write_scores",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
