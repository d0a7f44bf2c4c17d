"""`SourceCheckpoints`: a Trainer keeps what SOURCE needs, so that nobody has to guess steps and rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glasshouse.attribution.source.moments import second_moments
from glasshouse.attribution.source.recorded import MOMENTS, NAME, step_folder
from glasshouse.attribution.store import write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError


class SourceCheckpoints(TrainerCallback):
    """Writes `n` checkpoints at the ends of n equal parts of training, with every step's learning rate.

    A checkpoint is the weights (of a LoRA model: the trained ones) and, for Adam, the bias-corrected second
    moments. They go to `folder` (default: `source-checkpoints` in the Trainer's output folder), apart from
    the Trainer's own, which `save_total_limit` may delete. Read them with `recorded_run(folder)`.

    >>> trainer = Trainer(..., callbacks=[SourceCheckpoints(n=6)])  # doctest: +SKIP
    """

    def __init__(self, n: int = 6, *, folder: Path | str | None = None) -> None:
        if n < 1:
            raise InputError(f"n is {n}", where="SourceCheckpoints", fix="keep at least one checkpoint")
        self.n, self.folder = n, None if folder is None else Path(folder)
        self._rates: dict[int, float] = {}
        self._written: list[int] = []
        self._optimizer: dict[str, Any] | None = None
        self._planned: set[int] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the steps; a resumed run goes on with the rates it had."""
        total = state.max_steps
        if total < self.n:
            raise InputError(
                f"{total} steps hold no {self.n} checkpoints",
                where="SourceCheckpoints",
                fix="use a smaller n",
            )
        self._planned = {(2 * total * (k + 1) + self.n) // (2 * self.n) for k in range(self.n)}
        self._rates, self._written = {}, []
        place = self._place(args) / NAME
        if state.global_step and place.exists():
            before = files.read_json(place)
            done = state.global_step
            self._rates = {int(k): v for k, v in before["rates"].items() if int(k) <= done}
            self._written = [step for step in before["written"] if step <= done]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the rate of the step that was just taken, before the scheduler changes it."""
        optimizer = kwargs["optimizer"]
        self._rates[state.global_step + 1] = float(optimizer.param_groups[0]["lr"])
        if self._optimizer is None:
            self._optimizer = _about(optimizer)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write a checkpoint where one is due."""
        step = state.global_step
        if step not in self._planned or step in self._written or not state.is_world_process_zero:
            return
        place = step_folder(self._place(args), step)
        write_tensors(place / "model.safetensors", _weights(kwargs["model"]), {"step": str(step)})
        moments = second_moments(kwargs["model"], _plain(kwargs["optimizer"]))
        if moments:
            eps = str((self._optimizer or {}).get("eps", 1e-8))
            write_tensors(place / MOMENTS, moments, {"step": str(step), "eps": eps})
        self._written.append(step)
        self._write(args, state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rates beside every checkpoint of the Trainer, so that a resumed run knows them."""
        self._write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rates of the last steps."""
        self._write(args, state)

    def _place(self, args: TrainingArguments) -> Path:
        return self.folder or Path(str(args.output_dir)) / "source-checkpoints"

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        clip = float(args.max_grad_norm or 0)
        about = {
            "n": self.n, "steps": state.max_steps, "written": self._written,
            "rates": {str(k): v for k, v in self._rates.items()},
            "optimizer": self._optimizer or {"kind": "unknown", "momentum": 0.0, "weight_decay": 0.0},
            "max_grad_norm": clip if clip > 0 else None,
        }  # fmt: skip
        files.write_json(self._place(args) / NAME, about)


def _about(optimizer: Any) -> dict[str, Any]:
    """Kind and constants of an optimiser; the decay is that of its first group (the matrices)."""
    inner, group = _plain(optimizer), optimizer.param_groups[0]
    kind = (
        "adam" if "betas" in group else "sgd" if isinstance(inner, torch.optim.SGD) else type(inner).__name__
    )
    return {
        "kind": kind, "momentum": float(group.get("momentum", 0.0)),
        "weight_decay": float(group.get("weight_decay", 0.0)), "eps": float(group.get("eps", 1e-8)),
    }  # fmt: skip


def _plain(optimizer: Any) -> Any:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, tied ones once; of a model with adapters only what is trained."""
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    adapters = hasattr(model, "peft_config")
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.data_ptr() in seen or (adapters and name not in trained):
            continue
        seen.add(value.data_ptr())
        found[name] = value.detach().cpu().clone()
    return found
