"""What `SourceCheckpoints` wrote, read back as the options of `SOURCE`; runs of several stages joined."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glasshouse.attribution.checkpoints import Checkpoint, RateLog, TrainingRun
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

NAME = "source.json"
MOMENTS = "second-moments.safetensors"


@dataclass(frozen=True)
class RecordedRun:
    """Checkpoints, learning rates and optimiser of a run, one entry a stage where they may differ."""

    checkpoints: tuple[Checkpoint, ...]
    rates: RateLog
    optimizer: str = "sgd"
    momentum: float | Mapping[str, float] = 0.0
    weight_decay: float | Mapping[str, float] = 0.0
    max_grad_norm: float | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max([*self.rates.rates, self.checkpoints[-1].step])

    def options(self) -> dict[str, Any]:
        """Keyword options for `SOURCE`: `SOURCE(**run.options(), segments=3)`.

        Raises InputError for an optimiser that SOURCE has no form for.
        """
        if self.optimizer not in ("sgd", "adam"):
            raise InputError(
                f"the run used {self.optimizer}, which is neither plain SGD nor Adam",
                fix="pass checkpoints= and lr_log= yourself, with assume_sgd=True if you accept that",
            )
        return {
            "checkpoints": self.checkpoints, "lr_log": self.rates, "optimizer": self.optimizer,
            "momentum": self.momentum, "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
        }  # fmt: skip


def recorded_run(folder: Path | str, *, stage: str = "train") -> RecordedRun:
    """The run that `SourceCheckpoints` kept in `folder`. Raises InputError where there is none."""
    path = Path(folder) / NAME
    if not path.exists():
        raise InputError(
            f"it holds no {NAME}", where=str(folder), fix="train with SourceCheckpoints, or use read_run"
        )
    try:
        about = files.read_json(path)
        rates = {int(k): float(v) for k, v in about["rates"].items()}
        steps, how = [int(s) for s in about["written"]], about["optimizer"]
        found = dict(
            optimizer=str(how["kind"]), momentum=float(how["momentum"]),
            weight_decay=float(how["weight_decay"]), max_grad_norm=about["max_grad_norm"],
        )  # fmt: skip
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"it is damaged ({error})", where=str(path), fix="train again") from error
    if not steps:
        raise InputError("training stopped before its first checkpoint", where=str(folder))
    log, points, before = RateLog(rates), [], 0
    for step in steps:
        place = step_folder(Path(folder), step)
        moments = place / MOMENTS
        rate = log.at(step), stage, log.total(before, step)
        points.append(Checkpoint(place, step, *rate, moments if moments.exists() else None))
        before = step
    return RecordedRun(tuple(points), log, **found)


def joined(runs: Sequence[RecordedRun | TrainingRun]) -> RecordedRun:
    """Runs that followed one another (pretraining, then fine-tuning) as one run; steps count on.

    Each needs a stage name of its own. Raises InputError for shared names and for different optimisers.
    """
    parts = [_recorded(run) for run in runs]
    names = [part.checkpoints[0].stage for part in parts]
    if not parts or len(set(names)) < len(names):
        raise InputError(
            f"stages are called {', '.join(map(repr, names))}", fix="give each run its own stage="
        )
    if len({part.optimizer for part in parts}) > 1:
        raise InputError("the runs used different optimisers", fix="attribute to one run at a time")
    points: list[Checkpoint] = []
    rates: dict[int, float] = {}
    offset = 0
    for part in parts:
        points += [replace(point, step=point.step + offset) for point in part.checkpoints]
        rates |= {step + offset: rate for step, rate in part.rates.rates.items()}
        offset += part.steps
    clips = [part.max_grad_norm for part in parts if part.max_grad_norm is not None]
    return RecordedRun(
        tuple(points), RateLog(rates), parts[0].optimizer,
        {n: _number(p.momentum) for n, p in zip(names, parts, strict=True)},
        {n: _number(p.weight_decay) for n, p in zip(names, parts, strict=True)},
        min(clips, default=None),
    )  # fmt: skip


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of one step lies."""
    return folder / f"step-{step:07d}"


def _recorded(run: RecordedRun | TrainingRun) -> RecordedRun:
    if isinstance(run, RecordedRun):
        return run
    from glasshouse.attribution.source.moments import holds_second_moments

    kind = "adam" if holds_second_moments(run.checkpoints[0]) else "sgd"
    return RecordedRun(run.checkpoints, run.rates, kind)


def _number(value: float | Mapping[str, float]) -> float:
    if isinstance(value, Mapping):
        raise InputError("a run that was joined already cannot be joined again", fix="join all runs at once")
    return float(value)
