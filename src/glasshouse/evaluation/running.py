"""Running evaluations so that an interruption costs nothing that was finished.

`inspect_ai.eval_set` does the work: it keeps finished samples of a killed run and asks only for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import RunError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog


def run_eval(
    tasks: Any,
    model: Any,
    log_dir: str | Path,
    *,
    display: str | None = None,
    allow_failed: bool = False,
    model_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[EvalLog]:
    """Run Inspect tasks on a model; the same call after an interruption goes on where it stopped.

    `log_dir` belongs to this one call: its finished samples are not asked again, neither by a second call nor
    after a kill. A folder or `organism://NAME` as `model` means our own provider. `options` are those of
    `inspect_ai.eval_set` (`task_args`, `limit`, `epochs`, `model_roles`, `temperature`, ...).

    Raises RunError naming the first task that did not succeed, unless `allow_failed`, InputError for settings
    a model does not know.
    """
    from inspect_ai import eval_set

    given: dict[str, Any] = {
        "retry_attempts": 0,
        "retry_immediate": False,
        "log_level": "warning",
        "log_dir_allow_dirty": True,
        "log_buffer": 1,  # a finished sample is in the log before the next one ends
        **options,
    }
    success, logs = eval_set(
        tasks,
        log_dir=str(log_dir),
        model=model_string(model),
        model_args=dict(model_args or {}),
        display=display or quiet_display(),
        **given,
    )
    if not success and not allow_failed:
        bad = next(log for log in logs if log.status != "success")
        why = bad.error.message if bad.error is not None else bad.status
        raise RunError(
            f"{bad.eval.task} on {bad.eval.model} did not finish: {why.splitlines()[0]}",
            where=str(log_dir),
            fix="repair the cause and run the same again: finished samples are kept",
        )
    return logs


def model_string(model: Any) -> Any:
    """Inspect's name for a model: folders and organisms go through our provider, other strings stay.

    >>> model_string("organism://resident"), model_string("openai/gpt-4o")
    ('glasshouse/organism://resident', 'openai/gpt-4o')
    """
    if isinstance(model, Path):
        return f"glasshouse/{model}"
    if not isinstance(model, str) or model.startswith("glasshouse/"):
        return model
    if model.startswith("inspect:"):
        return model.removeprefix("inspect:")
    local = "://" in model or model.startswith((".", "/", "~")) or Path(model).is_dir()
    return f"glasshouse/{model}" if local else model


def quiet_display() -> str:
    """Inspect's display for where we are: its own in a terminal, none in pipes and files."""
    return "full" if sys.stdout.isatty() else "none"
