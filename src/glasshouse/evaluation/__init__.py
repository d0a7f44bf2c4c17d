"""Evaluations on Inspect: our model provider with `score`, log frames, resumable runs, the sandbox.

Names are loaded when first used: importing this package loads neither Inspect nor torch nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glasshouse.evaluation.boundary import BoundaryMergeError
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
    "boundary": ("BoundaryMergeError",),
    "choices": ("Item", "ItemScores", "accuracy", "items_frame", "score_items"),
    "frames": ("query", "read_logs", "scores_df", "write_scores"),
    "running": ("model_string", "run_eval"),
    "sandbox": ("Limits", "SandboxResult", "SandboxUnavailable", "run_command", "run_python"),
    "scoring": ("TokenLogprobs",),
    "summary": ("Rate", "mean_of", "rates"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BoundaryMergeError",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
