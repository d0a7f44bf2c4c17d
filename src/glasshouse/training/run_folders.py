"""The checkpoints of one run: `checkpoint-<step>` folders in the order of their steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

_FOLDER = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
SAME_RUN = ("max_steps", "num_train_epochs", "train_batch_size")
"""Settings that transformers' Trainer writes into every checkpoint and that one run cannot change."""


def find_checkpoints(folder: Path | str) -> tuple[tuple[int, Path], ...]:
    """(step, folder) of every `checkpoint-<step>` below `folder`, by step.

    Raises InputError where there is none, a checkpoint holds no weights, or their `trainer_state.json` says
    that they belong to different runs.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError("there is no such folder", where=str(root), fix="give the output_dir of a run")
    found = sorted(
        (int(match[1]), path) for path in root.iterdir() if (match := _FOLDER.fullmatch(path.name))
    )
    if not found:
        raise InputError(
            "it holds no checkpoint-<step> folders", where=str(root),
            fix="give the output_dir of a training with save_strategy='epoch' or 'steps'",
        )  # fmt: skip
    for _, path in found:
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise InputError(
                "the checkpoint holds no model", where=str(path), fix="remove it or save it whole"
            )
    check_one_run([path for _, path in found])
    return tuple(found)


def check_one_run(paths: Sequence[Path]) -> None:
    """Raise InputError where two checkpoints cannot be of one run: settings or the log of losses differ."""
    states = [(path, _state(path)) for path in paths]
    known = [(path, state) for path, state in states if state]
    for (before, a), (after, b) in pairwise(known):
        for key in SAME_RUN:
            if a.get(key) != b.get(key):
                raise InputError(
                    f"its {key} is {b.get(key)}, and {a.get(key)} in {before.name}", where=str(after),
                    fix="give the checkpoints of one run",
                )  # fmt: skip
        early, late = a.get("log_history", []), b.get("log_history", [])
        if late[: len(early)] != early:
            raise InputError(
                f"its log does not begin with the log of {before.name}", where=str(after),
                fix="give the checkpoints of one run: these were trained apart",
            )  # fmt: skip


def _state(path: Path) -> dict[str, Any]:
    file = path / STATE
    if not file.is_file():
        return {}
    try:
        state = files.read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(
            "the trainer's state cannot be read", where=str(file), fix="save it again"
        ) from error
    return state if isinstance(state, dict) else {}
