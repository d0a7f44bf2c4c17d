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


CALL = ".glasshouse-call"
"""The file in a log folder that says which call it belongs to."""


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
    a model does not know, and for a `log_dir` that another call has written: another task, model (one saved
    anew is another), or other options.
    """
    from inspect_ai import eval_set
    from inspect_ai._util.error import PrerequisiteError

    _claim(Path(log_dir), {"tasks": tasks, "model": model, "model_args": dict(model_args or {}), **options})
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


def _claim(log_dir: Path, call: Mapping[str, Any]) -> None:
    """Mark the folder as this call's. Raises InputError where it is another's.

    Inspect would take a finished sample of another model or of other options for an answer to this call.
    """
    now = {name: _plain(value) for name, value in call.items()} | {"saved": _saved(call["model"])}
    digest = files.sha256_json(now)
    mark = log_dir / CALL
    if not mark.is_file():
        files.write_json(mark, {"sha256": digest, "call": now})
        return
    before = files.read_json(mark)
    if before["sha256"] != digest:
        names = sorted({*now, *before["call"]})
        changed = [name for name in names if now.get(name) != before["call"].get(name)]
        raise InputError(
            f"this folder holds the log of another call (it differs in {', '.join(changed)})",
            where=str(log_dir),
            fix="give a folder of its own",
        )


def _plain(value: Any) -> Any:
    """JSON that tells one setting from another; objects (a Task, a Model) by their type and name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    return f"{type(value).__name__} {getattr(value, 'name', '')}".strip()


def _saved(model: Any) -> list[list[Any]]:
    """What tells one save of a local model from the next; empty for others."""
    if not isinstance(model, str | Path):
        return []
    folder = Path(str(model).removeprefix("glasshouse/")).expanduser()
    return [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.glob("*"))
        if path.suffix in (".safetensors", ".json", ".jinja")
    ]


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
    digest = files.sha256_json({"task": task, "model": model, "saved": _saved(model), **settings})[:8]
    name = re.sub(r"[^\w.-]+", "-", f"{task.rpartition('/')[2]}-{Path(model).name}").strip("-")
    return Path(root) / f"{name}-{digest}"


def quiet_display() -> str:
    """Inspect's display for where we are: its own in a terminal, none in pipes and files."""
    return "full" if sys.stdout.isatty() else "none"


def _sentence(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    plain = re.sub(r"^(ERROR|Error): ", "", re.sub(r"\[/?[a-z ]+\]", "", text))
    return plain[:300] or type(error).__name__
