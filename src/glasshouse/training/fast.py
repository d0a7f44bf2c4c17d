"""The bare training loop for small models: what transformers' Trainer computes, without its surroundings.

Same loss (mean over the labelled tokens of the batch), same AdamW (matrices decay, vectors do not), same
schedule, same clipping. It is faster because only labelled positions go through the output head, right
padding needs no attention mask under causal attention, and nothing is logged, gathered or re-collated.
Loads neither trl nor peft.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import derive, seeded
from glasshouse.training._order import BatchOrder, count_steps
from glasshouse.training._packed import PackedRows
from glasshouse.training._schedule import Schedule, lr_factor
from glasshouse.training._state import load_state, save_state

Loss = Callable[[nn.Module, Tensor], Tensor]
"""`loss(model, rows)`: scalar mean loss of the rows with these indices (int64 [B], on the model's device)."""

Callback = Callable[[int, float | None, nn.Module], None]
"""`callback(steps_done, loss, model)`: once before the first step (0, no loss), then after every step."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides model, rows and loss."""

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    final_lr_share: float = 0.0
    clip: float | None = 1.0
    seed: int = 0
    length_buckets: bool = True


def fit_rows(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    save_every: int | None = None,
    autocast: torch.dtype | None = None,
    **recipe: Any,
) -> list[float]:
    """Train a causal language model on token rows in place; returns the loss (nats per token) of every step.

    `recipe` holds the fields of `Recipe` (steps or epochs, batch_size, lr, betas, weight_decay, warmup_steps,
    schedule, final_lr_share, clip, seed, length_buckets). With `checkpoint_dir`, the state is written every
    `save_every` steps and a second call resumes from it, bit-exactly on CPU.
    Raises InputError (naming the row) for a row without a label to predict, NumericalError for a NaN loss,
    StaleError for a checkpoint of another training.

    >>> losses = fit_rows(model, rows, epochs=12, batch_size=64, lr=3e-3, seed=0)  # doctest: +SKIP
    """
    settings = Recipe(**recipe)
    packed = PackedRows.of(rows, device=next(model.parameters()).device)
    forward = _language_loss(model, packed)
    return fit(
        model,
        len(rows),
        forward,
        lengths=packed.lengths if settings.length_buckets else None,
        data_hash=files.sha256_json([[row.ids, row.labels] for row in rows]) if checkpoint_dir else "",
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        save_every=save_every,
        autocast=autocast,
        **recipe,
    )


def fit(
    model: nn.Module,
    n_rows: int,
    loss: Loss,
    *,
    lengths: tuple[int, ...] | None = None,
    data_hash: str = "",
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    save_every: int | None = None,
    autocast: torch.dtype | None = None,
    **recipe: Any,
) -> list[float]:
    """Train any module on `n_rows` rows known only to `loss(model, indices)`; returns the loss of every step.

    The same loop as `fit_rows`, for models and losses of the caller's own. Randomness inside the model
    (dropout) is drawn from a stream per step; the global generators are left as they were.

    >>> fit(mlp, len(y), lambda m, i: cross_entropy(m(x[i]), y[i]), epochs=5)  # doctest: +SKIP
    """
    r = Recipe(**recipe)
    order = BatchOrder(n_rows, r.batch_size, r.seed, lengths)
    steps = count_steps(order, steps=r.steps, epochs=r.epochs)
    settings = {**asdict(r), "steps": steps, "epochs": None, "n_rows": n_rows, "data": data_hash}
    optimizer = _adamw(model, r)
    losses: list[float] = []
    if checkpoint_dir:
        losses = load_state(checkpoint_dir, model, optimizer, settings=settings)
    with _training(model), seeded(r.seed, "fit"), _forked(optimizer):
        if not losses:
            _tell(callbacks, 0, None, model)
        for step, rows in enumerate(order.walk(len(losses), steps), start=len(losses)):
            _set_rate(optimizer, r, step, steps)
            losses.append(_step(model, optimizer, loss, rows, r, step, autocast))
            _tell(callbacks, step + 1, losses[-1], model)
            if checkpoint_dir and save_every and (step + 1) % save_every == 0:
                save_state(checkpoint_dir, model, optimizer, losses=losses, settings=settings)
    return losses


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    rows: np.ndarray,
    r: Recipe,
    step: int,
    autocast: torch.dtype | None,
) -> float:
    # A stream per step: what callbacks or earlier steps drew cannot matter, and a resume needs no RNG state.
    torch.manual_seed(derive(r.seed, "step", step))
    device = _device(optimizer)
    with _precision(device, autocast):
        value = loss(model, torch.from_numpy(rows).to(device))
    number = _finite(value, step)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if r.clip:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, r.clip)
    optimizer.step()
    return number


def _device(optimizer: torch.optim.Optimizer) -> torch.device:
    parameter: nn.Parameter = optimizer.param_groups[0]["params"][0]
    return parameter.device


def _forked(optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    """`seeded` restores the CPU's generators; the GPU's is restored by this."""
    device = _device(optimizer)
    return torch.random.fork_rng(devices=[device]) if device.type == "cuda" else nullcontext()


def _set_rate(optimizer: torch.optim.Optimizer, r: Recipe, step: int, steps: int) -> None:
    factor = lr_factor(
        step,
        schedule=r.schedule,
        steps=steps,
        warmup_steps=r.warmup_steps,
        final_share=r.final_lr_share,
    )
    for group in optimizer.param_groups:
        group["lr"] = r.lr * factor


def _language_loss(model: nn.Module, packed: PackedRows) -> Loss:
    trimmed = _head_can_be_trimmed(model, packed)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        ids, targets = packed.batch(rows)
        labelled = targets != IGNORE
        logits = _trimmed_logits(model, ids, labelled) if trimmed else _logits(model, ids)[labelled]
        return nn.functional.cross_entropy(logits.float(), targets[labelled])

    return loss


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids)
    return out if isinstance(out, Tensor) else out.logits


def _trimmed_logits(model: Any, ids: Tensor, labelled: Tensor) -> Tensor:
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, d)
    return model.get_output_embeddings()(hidden[labelled])  # (labelled tokens, V)


def _head_can_be_trimmed(model: Any, packed: PackedRows) -> bool:
    """Whether head(last hidden state) is all the model does to its hidden state: asked of the model itself.

    Some architectures scale or cap their logits after the head; they take the slower, full forward.
    """
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        return False
    if model.base_model is model:
        return False
    ids, targets = packed.batch(torch.arange(min(2, len(packed.counts)), device=packed.ids.device))
    labelled = targets != IGNORE
    was_training = model.training
    model.eval()
    with torch.no_grad():
        full, trimmed = _logits(model, ids)[labelled], _trimmed_logits(model, ids, labelled)
    model.train(was_training)
    return full.shape == trimmed.shape and torch.allclose(full, trimmed, rtol=1e-4, atol=1e-5)


def _adamw(model: nn.Module, r: Recipe) -> torch.optim.AdamW:
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("the model has no trainable parameter", fix="unfreeze some, or add an adapter")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": r.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=r.lr, betas=r.betas, eps=r.eps, fused=True
    )


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


def _tell(callbacks: Sequence[Callback], step: int, loss: float | None, model: nn.Module) -> None:
    for callback in callbacks:
        callback(step, loss, model)
    if callbacks:
        model.train()


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def _finite(value: Tensor, step: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise NumericalError(
            f"the loss is {number}",
            where=f"training step {step}",
            fix="lower the learning rate or check the rows",
        )
    return number
