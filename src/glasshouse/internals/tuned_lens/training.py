"""The training loop: gradients of all layers, one clip over the whole lens, one step; resumable.

A snapshot holds the lens, the optimizer's state and the losses so far. A killed run goes on from the last one
with the very same additions, so it ends in the same bytes as one that was not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.disk import read_tensors, write_tensors
from glasshouse.internals.tuned_lens.head import Head
from glasshouse.internals.tuned_lens.kernel import Gradient, add_gradient
from glasshouse.internals.tuned_lens.options import Options
from glasshouse.internals.tuned_lens.supply import Supply
from glasshouse.runtime import files
from glasshouse.runtime.errors import NumericalError, StaleError
from glasshouse.runtime.progress import Progress

SNAPSHOT_EVERY = 25
"""Steps between snapshots: a kill costs at most as many."""


def train(
    head: Head,
    supply: Supply,
    weight: Tensor,
    bias: Tensor,
    options: Options,
    *,
    store: Path | None = None,
    job: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Trained A [L, d, d] and b [L, d], and the loss of every step and layer [steps, L], in nats.

    `weight` and `bias` are where training starts. `store` is a folder for snapshots; `job` says what belongs
    to it. Raises StaleError for a folder of another job, NumericalError when the loss diverges.
    """
    state = _State(weight, bias, options)
    done = 0
    if store is not None:
        _bind(store, job or {})
        done = state.restore(store / "snapshot.safetensors")
    with Progress() as progress, progress.task("training the lens", options.steps) as task:
        task.advance(done)
        for step, rows in enumerate(islice(supply.steps(), done, options.steps), done):
            state.step(head, supply, rows, step)
            task.advance()
            if store is not None and ((step + 1) % SNAPSHOT_EVERY == 0 or step + 1 == options.steps):
                state.save(store / "snapshot.safetensors", step + 1)
    return state.weight.detach(), state.bias.detach(), torch.stack(state.losses)


class _State:
    """The lens in training."""

    def __init__(self, weight: Tensor, bias: Tensor, options: Options) -> None:
        self.weight, self.bias, self.options = weight.clone(), bias.clone(), options
        self.losses: list[Tensor] = []
        trained = [self.bias] if options.bias_only else [self.weight, self.bias]
        self.optimizer = _optimizer(trained, options)

    def step(self, head: Head, supply: Supply, rows: list[int], step: int) -> None:
        """One update from the rows of a step; gradients are means over its tokens."""
        found = Gradient.zeros(self.weight, self.bias)
        with torch.no_grad():
            for h, goal in supply.parts(rows):
                add_gradient(head, self.weight, self.bias, h, goal, found, bias_only=self.options.bias_only)
        tokens = sum(supply.counts[i] for i in rows)
        loss = found.loss / tokens
        if not bool(torch.isfinite(loss).all()):
            layer = int((~torch.isfinite(loss)).int().argmax())
            raise NumericalError(
                f"the loss of step {step} is not finite", where=f"layer {layer}", fix="lower lr_scale"
            )
        self.losses.append(loss.float().cpu())
        self.bias.grad = found.bias.div_(tokens)
        if not self.options.bias_only:
            self.weight.grad = found.weight.div_(tokens)
        trained = self.optimizer.param_groups[0]["params"]
        if self.options.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, self.options.clip)
        self.optimizer.param_groups[0]["lr"] = self.options.rate(step)
        self.optimizer.step()

    def save(self, path: Path, done: int) -> None:
        """Write everything the next step needs."""
        moments = {
            f"moment.{i}.{name}": value
            for i, found in self.optimizer.state_dict()["state"].items()
            for name, value in found.items()
            if isinstance(value, Tensor)
        }
        learned = {"weight": self.weight, "bias": self.bias, "losses": torch.stack(self.losses)}
        write_tensors(path, {**learned, **moments}, {"done": str(done)})

    def restore(self, path: Path) -> int:
        """Take up a snapshot, if there is one; returns the number of steps done."""
        if not path.exists():
            return 0
        tensors, meta = read_tensors(path)
        with torch.no_grad():
            self.weight.copy_(tensors["weight"])
            self.bias.copy_(tensors["bias"])
        self.losses = list(tensors["losses"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _moments(tensors):
            state.setdefault(int(key[1]), {})[key[2]] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        return int(meta["done"])


def _optimizer(trained: list[Tensor], options: Options) -> torch.optim.Optimizer:
    lr, decay, momentum = options.rate(0), options.weight_decay, options.momentum
    if options.opt == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=momentum, nesterov=True, weight_decay=decay)
    return torch.optim.Adam(trained, lr=lr, betas=(momentum, 0.999), amsgrad=True, weight_decay=decay)


def _moments(tensors: dict[str, Tensor]) -> Iterator[tuple[list[str], Tensor]]:
    for key, value in sorted(tensors.items()):
        if key.startswith("moment."):
            yield key.split("."), value


def _bind(store: Path, job: dict[str, Any]) -> None:
    """A folder belongs to one job, and says which."""
    manifest = store / "job.json"
    if not manifest.exists():
        files.write_json(manifest, job)
        return
    found = files.read_json(manifest)
    changed = [key for key in sorted({*found, *job}) if found.get(key) != job.get(key)]
    if changed:
        raise StaleError(
            f"it holds another training ({', '.join(changed)} differ)", where=str(store),
            fix="choose an empty folder",
        )  # fmt: skip
