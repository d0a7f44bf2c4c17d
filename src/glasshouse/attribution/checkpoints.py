"""Checkpoints of a training run: where the weights lie, at which step, at which learning rate.

TracIn, SOURCE and other methods that follow the training path share this one description. Weights may be a
folder of a Hugging Face `Trainer`, a file of tensors, a state dict in memory or a module.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

State = dict[str, Tensor]

NESTED = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which training scripts like to put the weights of a `.pt` file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One stored moment of training.

    `weights`: a folder (as `save_pretrained` or `Trainer` write it), a `.safetensors`, `.pt`, `.pth` or
    `.bin` file, a state dict, a module (its weights are copied now), or None: the weights of the subject that
    `fit` is given, which is the end of training. `step`: optimiser steps done. `lr`:
    learning rate at that step. `lr_sum`: sum of the learning rates of all steps since the checkpoint before
    (or the start of the stage); None where only `lr` is known. `stage` names the part of training, so that
    pretraining and fine-tuning data are told apart. `optimizer_state`: path or state dict of the optimiser.
    """

    weights: Path | str | Mapping[str, Tensor] | nn.Module | None
    step: int
    lr: float = 1.0
    stage: str = "train"
    lr_sum: float | None = None
    optimizer_state: Path | str | Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.step < 0 or not self.lr >= 0 or not (self.lr_sum is None or self.lr_sum >= 0):
            raise InputError(f"step {self.step}, lr {self.lr}, lr_sum {self.lr_sum}", where=self.name,
                             fix="none may be negative")  # fmt: skip
        if isinstance(self.weights, nn.Module | Mapping):
            state = self.weights.state_dict() if isinstance(self.weights, nn.Module) else self.weights
            object.__setattr__(self, "weights", {k: v.detach().clone() for k, v in state.items()})
        elif self.weights is not None and not Path(self.weights).exists():
            raise InputError("it does not exist", where=str(self.weights), fix="give a folder or a file")

    @property
    def name(self) -> str:
        """`stage@step`, for messages and file names."""
        return f"{self.stage}@{self.step}"

    @property
    def path(self) -> Path | None:
        """Where the weights lie, None for weights in memory."""
        return Path(self.weights) if isinstance(self.weights, Path | str) else None

    def state(self) -> State:
        """The weights by name, none for the subject's own. Raises InputError where there are no weights."""
        if isinstance(self.weights, Mapping):
            return dict(self.weights)
        return {} if self.path is None else read_state(self.path)

    @cached_property
    def hash(self) -> str:
        """Content address: SHA-256 over names, dtypes and bytes of the weights; "subject" for its own."""
        if self.weights is None:
            return "subject"
        digest, state = hashlib.sha256(), self.state()
        for name in sorted(state):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.stage, self.step, self.lr, self.lr_sum, self.hash

    def to_json(self) -> dict[str, Any]:
        """What a manifest says about it: name, rates and the content address of the weights."""
        return {
            "stage": self.stage, "step": self.step, "lr": self.lr, "lr_sum": self.lr_sum,
            "weights": self.hash, "path": None if self.path is None else str(self.path),
        }  # fmt: skip


@dataclass(frozen=True)
class RateLog:
    """Logged learning rates by step, as far as training wrote them down."""

    rates: Mapping[int, float]

    def at(self, step: int) -> float:
        """The rate at a step: logged, interpolated between neighbours, or that of the nearest logged one."""
        return float(self._all(step, step)[0])

    def total(self, after: int, upto: int) -> float:
        """Sum of the rates of steps `after + 1` to `upto`."""
        return float(self._all(after + 1, upto).sum()) if upto > after else 0.0

    def gaps(self, upto: int, *, share: float = 0.05) -> list[tuple[int, int]]:
        """Runs of steps (first, last) between 1 and `upto` without a log entry, longer than `share` of it."""
        known = [0, *sorted(s for s in self.rates if 0 < s <= upto), upto + 1]
        return [(a + 1, b - 1) for a, b in pairwise(known) if b - a - 1 > share * upto]

    def _all(self, first: int, last: int) -> Any:
        import numpy as np

        if not self.rates:
            raise InputError("no learning rate was logged", fix="give lr= or weights by hand")
        known = sorted(self.rates)
        return np.interp(np.arange(first, last + 1), known, [self.rates[s] for s in known])


@dataclass(frozen=True)
class TrainingRun:
    """The checkpoints of one run in the order of their steps, and its learning rates."""

    checkpoints: tuple[Checkpoint, ...]
    rates: RateLog

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


def read_run(folder: Path | str, *, stage: str = "train") -> TrainingRun:
    """The `checkpoint-<step>` folders of a Hugging Face `Trainer`, with the rates of `trainer_state.json`.

    Rates of steps between two log entries are interpolated (`TrainingRun.rates.gaps` says where that is a
    guess). Raises InputError for a folder without checkpoints, or whose log holds no learning rate.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError("it is not a folder", where=str(root), fix="give the Trainer's output_dir")
    found = sorted((int(p.name.split("-")[-1]), p) for p in root.glob("checkpoint-*") if _stepped(p))
    if not found:
        raise InputError(
            "it holds no checkpoint-<step> folder", where=str(root),
            fix='train with save_strategy="steps", or list Checkpoints by hand',
        )  # fmt: skip
    log = RateLog(_logged(root, found[-1][1]))
    made, before = [], 0
    for step, path in found:
        state = path / "optimizer.pt"
        rates = log.at(step), stage, log.total(before, step)
        made.append(Checkpoint(path, step, *rates, state if state.exists() else None))
        before = step
    return TrainingRun(tuple(made), log)


def rate_sums(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Sum of learning rates that each checkpoint stands for: its `lr_sum`, or lr times steps since the last.

    The steps of a stage are counted from the stage's first step on. Raises InputError for checkpoints that
    are not in order.
    """
    check_order(checkpoints)
    found, before = [], {}
    for c in checkpoints:
        steps = c.step - before.get(c.stage, _start(checkpoints, c.stage))
        found.append(c.lr * steps if c.lr_sum is None else c.lr_sum)
        before[c.stage] = c.step
    return found


def check_order(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise InputError unless there are checkpoints, steps rise, and each stage is in one piece."""
    if not checkpoints:
        raise InputError("there are no checkpoints", fix="give at least one Checkpoint")
    for a, b in pairwise(checkpoints):
        if b.step <= a.step:
            raise InputError(
                f"step {b.step} follows step {a.step}", where=f"checkpoint {b.name}",
                fix="sort them, count steps through all stages, and give each step once",
            )  # fmt: skip
    stages = [c.stage for c in checkpoints]
    pieces = [s for k, s in enumerate(stages) if k == 0 or s != stages[k - 1]]
    if len(set(pieces)) < len(pieces):
        raise InputError(f"stages alternate: {', '.join(pieces)}", fix="give each stage a name of its own")


@contextmanager
def loaded(model: nn.Module, checkpoint: Checkpoint) -> Iterator[nn.Module]:
    """A copy of `model` with the checkpoint's weights, in eval mode; the given model is not touched.

    Raises InputError where names or shapes differ from the model's.
    """
    working = copy.deepcopy(model).eval()
    put(working, checkpoint)
    yield working


def put(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Write the checkpoint's weights into `model`. Raises InputError where names or shapes differ.

    Weights tied to one that is stored need not be stored themselves. A LoRA model takes adapter files.
    """
    if checkpoint.weights is None:
        return
    state = checkpoint.state()
    if hasattr(model, "peft_config") and not set(state) & set(model.state_dict()):
        state = _adapter(state)
    own = model.state_dict()
    unknown = sorted(set(state) - set(own))
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    missing = _missing(own, state, adapter=hasattr(model, "peft_config"))
    if unknown or shapes or missing:
        raise InputError(_difference(unknown, shapes, missing), where=f"checkpoint {checkpoint.name}",
                         fix="give checkpoints of this very architecture")  # fmt: skip
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def read_state(path: Path) -> State:
    """Tensors of a checkpoint folder or file, by name; no pickled code is run.

    Raises InputError for a folder or file without weights.
    """
    found: State = {}
    for file in _weight_files(path):
        found |= _read_file(file)
    return found


# ── inside ───────────────────────────────────────────────────────────────────


def _start(checkpoints: Sequence[Checkpoint], stage: str) -> int:
    """The last step before a stage."""
    earlier = [c.step for c in checkpoints if c.stage != stage]
    first = min(c.step for c in checkpoints if c.stage == stage)
    return max((s for s in earlier if s < first), default=0)


def _stepped(path: Path) -> bool:
    return path.is_dir() and path.name.split("-")[-1].isdigit()


def _logged(root: Path, last: Path) -> dict[int, float]:
    for place in (root / "trainer_state.json", last / "trainer_state.json"):
        if place.exists():
            try:
                history = files.read_json(place)["log_history"]
                rates = {int(e["step"]): float(e["learning_rate"]) for e in history if "learning_rate" in e}
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"it is damaged ({error})", where=str(place)) from error
            if rates:
                return rates
    raise InputError(
        "its trainer_state.json logs no learning rate", where=str(root),
        fix="train with logging_steps=1, or list Checkpoints with lr= by hand",
    )  # fmt: skip


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index).exists():
            names = sorted(set(files.read_json(path / index)["weight_map"].values()))
            return [path / name for name in names]
    for name in ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin"):
        if (path / name).exists():
            return [path / name]
    raise InputError("it holds no weights", where=str(path), fix="give a folder with model.safetensors")


def _read_file(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        # Other people's checkpoints come like this; with weights_only nothing but tensors is built.
        stored = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # reading foreign files raises anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"it cannot be read as weights ({first})", where=str(path),
                         fix="save the state dict, best as safetensors") from error  # fmt: skip
    for key in NESTED:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise InputError("it holds something else than a state dict", where=str(path))
    return dict(stored)


def _adapter(state: State) -> State:
    """Names of an adapter file as the model's own: `lora_A.weight` becomes `lora_A.default.weight`."""
    parts = {k: k.rsplit(".", 1) for k in state}
    return {f"{head}.default.{tail}": state[k] for k, (head, tail) in parts.items()}


def _missing(own: State, state: State, *, adapter: bool) -> list[str]:
    """Weights of the model that the checkpoint neither holds nor ties to one it holds."""
    stored = {own[k].data_ptr() for k in state if k in own}
    absent = [k for k in own if k not in state and own[k].data_ptr() not in stored]
    return [k for k in absent if "lora_" in k] if adapter else absent


def _difference(unknown: list[str], shapes: list[str], missing: list[str]) -> str:
    kinds = (unknown, "are not the model's"), (shapes, "have another shape"), (missing, "are missing")
    said = [f"{len(names)} tensor(s) {what} (first: {names[0]!r})" for names, what in kinds if names]
    return "its weights do not fit the model: " + ", ".join(said)
