"""Running evaluations so that an interruption costs nothing that was finished.

`inspect_ai.eval_set` does the work: it keeps finished samples of a killed run and asks only for the others.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError, InputError, RunError

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
    from inspect_ai._util.error import PrerequisiteError

    if isinstance(tasks, str):
        _check_task(tasks, options.get("task_args") or {})
    given: dict[str, Any] = {
        "retry_attempts": 0,
        "retry_immediate": False,
        "log_level": "warning",
        "log_dir_allow_dirty": True,
        "log_buffer": 1,  # a finished sample is in the log before the next one ends
        **options,
    }
    try:
        success, logs = eval_set(
            tasks,
            log_dir=str(log_dir),
            model=model_string(model),
            model_args=dict(model_args or {}),
            display=display or quiet_display(),
            **given,
        )
    except (PrerequisiteError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, GlasshouseError):
            raise
        raise InputError(_sentence(error), where=str(tasks), fix="see inspect eval --help") from error
    if not success and not allow_failed:
        bad = next(log for log in logs if log.status != "success")
        why = bad.error.message if bad.error is not None else bad.status
        raise RunError(
            f"{bad.eval.task} on {bad.eval.model} did not finish: {why.splitlines()[0]}",
            where=str(log_dir),
            fix="repair the cause and run the same again: finished samples are kept",
        )
    return logs


def _check_task(task: str, given: Mapping[str, Any]) -> None:
    """Raise InputError for a task we lack or an argument it lacks, of which Inspect would only warn."""
    from inspect_ai._util.registry import registry_lookup

    function = registry_lookup("task", task)
    if function is None and task.startswith("glasshouse/"):
        name = task.removeprefix("glasshouse/")
        raise InputError(f"we have no task called {name!r}", fix="see the tasks in `glasshouse list`")
    if function is None or not given:  # a file or a package that Inspect will load
        return
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise InputError(f"the task has no argument {name!r}", where=task, fix=f"choose from {known}")


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


def full_task_name(task: str) -> str:
    """Inspect's name of a task: a bare word is one of ours.

    >>> full_task_name("questions"), full_task_name("inspect_evals/sycophancy"), full_task_name("a.py@b")
    ('glasshouse/questions', 'inspect_evals/sycophancy', 'a.py@b')
    """
    return task if "/" in task or ".py" in task else f"glasshouse/{task}"


def folder_of(root: str | Path, task: str, model: str, settings: Mapping[str, Any]) -> Path:
    """Where the log of one evaluation lives: the same task, model and settings have the same folder.

    A local model that was saved anew is another model.
    """
    saved = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(Path(model).expanduser().glob("*"))
        if path.suffix in (".safetensors", ".json", ".jinja")
    ]
    digest = files.sha256_json({"task": task, "model": model, "saved": saved, **settings})[:8]
    name = re.sub(r"[^\w.-]+", "-", f"{task.rpartition('/')[2]}-{Path(model).name}").strip("-")
    return Path(root) / f"{name}-{digest}"


def quiet_display() -> str:
    """Inspect's display for where we are: its own in a terminal, none in pipes and files."""
    return "full" if sys.stdout.isatty() else "none"


def _sentence(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    plain = re.sub(r"^(ERROR|Error): ", "", re.sub(r"\[/?[a-z ]+\]", "", text))
    return plain[:300] or type(error).__name__
