"""Training losses and measurements. All are sums per row, never means.

With a mean-reduced loss every output gradient is divided by the batch size and curvature by its square, and a
fixed damping silently changes its meaning. `Objective`s know how to draw labels from the model (the true
Fisher); a measurement is any function `f(model, batch) -> [B]`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from glasshouse.attribution.units import Batch, TensorBatch
from glasshouse.corpora.rows import IGNORE, TokenBatch
from glasshouse.runtime.errors import InputError, ReductionError
from glasshouse.runtime.seeds import derive

Measurement: TypeAlias = Callable[[nn.Module, Batch], Tensor]


@runtime_checkable
class Objective(Protocol):
    """A training loss whose labels can be drawn from the model."""

    name: str

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the loss is computed from, with gradients."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Summed loss per row, `[B]`, in nats (or half squared units)."""

    def draw(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with labels drawn from the model; the draw depends on seed, row id and token only."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per row, `[B]`."""


@dataclass(frozen=True)
class TokenLoss:
    """Next-token cross-entropy, summed over the labelled tokens of a row.

    `all_positions` sends every position through the LM head: needed where the head itself is tracked, whose
    inputs must not depend on which rows share a batch.
    """

    name: str = "token_cross_entropy"
    all_positions: bool = False

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, K, V] at the K positions that predict a labelled token in any row."""
        assert isinstance(batch, TokenBatch)
        return _token_logits(model, batch, all_positions=self.all_positions)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Summed cross-entropy, `[B]` in nats."""
        assert isinstance(batch, TokenBatch)
        targets = batch.labels[:, _kept(batch) + 1]
        flat = F.cross_entropy(
            outputs.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return flat.view(targets.shape).sum(1)

    def draw(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """One label per labelled token."""
        assert isinstance(batch, TokenBatch)
        kept = _kept(batch)
        targets = batch.labels[:, kept + 1]
        # Positions are counted inside the row, so that padding changes no draw.
        uniform = _uniform(seed, batch.row_ids, batch.position_ids[:, kept + 1]).to(outputs.device)
        drawn = _inverse_cdf(outputs.detach(), uniform)
        labels = batch.labels.clone()
        labels[:, kept + 1] = torch.where(targets == IGNORE, targets, drawn)
        return replace(batch, labels=labels)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per row, `[B]`."""
        return self.loss(self.outputs(model, batch), batch)


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy of one label per row."""

    name: str = "cross_entropy"

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        assert isinstance(batch, TensorBatch)
        return _tensor(model(batch.inputs))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, `[B]` in nats."""
        assert isinstance(batch, TensorBatch)
        return F.cross_entropy(outputs.float(), batch.targets, reduction="none")

    def draw(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """One label per row."""
        assert isinstance(batch, TensorBatch)
        uniform = _uniform(seed, batch.row_ids, torch.zeros(len(batch), 1, dtype=torch.long))
        return replace(batch, targets=_inverse_cdf(outputs.detach(), uniform[:, 0].to(outputs.device)))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per row, `[B]`."""
        return self.loss(self.outputs(model, batch), batch)


@dataclass(frozen=True)
class SquaredLoss:
    """Half the summed squared error: negative log-likelihood of unit Gaussian noise, so that G = J^T J."""

    name: str = "squared_error"

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Predictions [B, C]."""
        assert isinstance(batch, TensorBatch)
        return _tensor(model(batch.inputs))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Half squared error, `[B]`."""
        assert isinstance(batch, TensorBatch)
        return 0.5 * (outputs.float() - batch.targets.view_as(outputs)).square().flatten(1).sum(1)

    def draw(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """Prediction plus unit Gaussian noise."""
        assert isinstance(batch, TensorBatch)
        at = torch.arange(outputs[0].numel()).expand(len(batch), -1)
        uniform = _uniform(seed, batch.row_ids, at).double().clamp(1e-12, 1 - 1e-12)
        noise = torch.special.ndtri(uniform).to(outputs).view_as(outputs)
        return replace(batch, targets=(outputs.detach() + noise).view_as(batch.targets))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per row, `[B]`."""
        return self.loss(self.outputs(model, batch), batch)


BUILT_IN = (TokenLoss, ClassLoss, SquaredLoss)


def default_objective(batch: Batch) -> Objective:
    """Cross-entropy for token rows and integer targets, half the squared error for float targets."""
    if isinstance(batch, TokenBatch):
        return TokenLoss()
    return SquaredLoss() if batch.targets.is_floating_point() else ClassLoss()


def measure(name: str | Measurement, *, a: int | None = None, b: int | None = None) -> Measurement:
    """A measurement by name: loss, completion_logprob, margin, logit, output, logprob_difference (a, b).

    On token rows each is summed over the labelled tokens; `margin` is log p - log(1 - p), computed as the
    label's logit minus the logsumexp of the others. Raises InputError for an unknown name.
    """
    if callable(name):
        return name
    if name == "logprob_difference" and (a is None or b is None):
        raise InputError("logprob_difference needs two labels", fix="pass a= and b=")
    if name not in _VALUES and name != "output":
        raise InputError(
            f"no measurement is called {name!r}", fix=f"use one of {', '.join([*_VALUES, 'output'])}"
        )

    def f(model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(batch, TensorBatch):
            outputs = _tensor(model(batch.inputs)).float()
            if name == "output":
                return outputs.flatten(1).sum(1)
            if name == "loss":
                return default_objective(batch).loss(outputs, batch)
            return _VALUES[name](outputs, batch.targets, a, b)
        if name == "output":
            raise InputError("the measurement 'output' is for regression", fix="use completion_logprob")
        outputs, targets = _token_logits(model, batch).float(), batch.labels[:, _kept(batch) + 1]
        labelled = targets != IGNORE
        values = outputs.new_zeros(targets.shape)
        values[labelled] = _VALUES[name](outputs[labelled], targets[labelled], a, b)
        return values.sum(1)

    f.__name__ = name
    return f


def check_sums(f: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch, what: str) -> None:
    """Raise ReductionError when repeating the batch does not double the sum of `f`."""
    with torch.no_grad():
        once, twice = f(model, batch), f(model, _repeat(batch))
    if once.ndim > 1 or (once.ndim == 1 and len(once) != len(batch)):
        raise ReductionError(
            f"it returned shape {tuple(once.shape)} for {len(batch)} rows", where=what,
            fix="return one summed number per row",
        )  # fmt: skip
    single, double = float(once.double().sum()), float(twice.double().sum())
    if abs(double - 2 * single) > 1e-3 * max(abs(single), abs(double), 1e-12):
        raise ReductionError(
            f"repeating the batch changed it from {single:.6g} to {double:.6g} instead of doubling it",
            where=what, fix="return a sum over rows and tokens, not a mean",
        )  # fmt: skip


def _repeat(batch: Batch) -> Batch:
    names = batch.row_ids + tuple(f"{name} again" for name in batch.row_ids)
    if isinstance(batch, TensorBatch):
        return TensorBatch(batch.inputs.repeat(2, *[1] * (batch.inputs.ndim - 1)),
                           batch.targets.repeat(2, *[1] * (batch.targets.ndim - 1)), names)  # fmt: skip
    parts = (batch.input_ids, batch.attention_mask, batch.position_ids, batch.labels)
    return TokenBatch(*(part.repeat(2, 1) for part in parts), names)


def _token_logits(model: nn.Module, batch: TokenBatch, *, all_positions: bool = False) -> Tensor:
    """Logits [B, K, V] at `_kept(batch)`; only these go through the LM head where the model allows it."""
    accepted = inspect.signature(model.forward).parameters
    kept = _kept(batch)
    if "attention_mask" not in accepted:
        return _tensor(model(batch.input_ids))[:, kept]
    inputs: dict[str, Any] = batch.model_inputs()
    if bool(batch.attention_mask.all()):
        inputs.pop("attention_mask")  # the causal kernel without a mask is faster and gives the same numbers
    if "position_ids" not in accepted:
        inputs.pop("position_ids")
    inputs |= {"use_cache": False} if "use_cache" in accepted else {}
    if not all_positions and "logits_to_keep" in accepted:
        return _tensor(model(**inputs, logits_to_keep=kept))
    logits = _tensor(model(**inputs))
    contiguous = len(kept) == int(kept[-1]) - int(kept[0]) + 1
    return logits[:, int(kept[0]) : int(kept[-1]) + 1] if contiguous else logits[:, kept]


def _kept(batch: TokenBatch) -> Tensor:
    """Positions whose next token is labelled in at least one row."""
    return (batch.labels[:, 1:] != IGNORE).any(0).nonzero().flatten()


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _uniform(seed: int, row_ids: Sequence[str], positions: Tensor) -> Tensor:
    """Uniform draws in [0, 1) addressed by (seed, row id, position): the same in any batch or order."""
    stream = derive(seed, "labels").to_bytes(8, "big")
    keys = [hashlib.blake2b(r.encode(), digest_size=8, key=stream).digest() for r in row_ids]
    rows = np.array([int.from_bytes(key, "big") for key in keys], dtype=np.uint64)[:, None]
    bits = _splitmix(rows + positions.cpu().numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).float()


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection with full avalanche."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Labels [...] drawn from softmax(logits [..., C]) with the given uniforms [...]."""
    cumulative = torch.softmax(logits.float(), -1).cumsum(-1)
    # Scaled by the last entry, which rounding keeps from being exactly one.
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def _margin(z: Tensor, y: Tensor, a: int | None, b: int | None) -> Tensor:
    at = y.unsqueeze(-1)
    others = z.scatter(-1, at, float("-inf")).logsumexp(-1)
    return z.gather(-1, at).squeeze(-1) - others


def _logit(z: Tensor, y: Tensor, a: int | None, b: int | None) -> Tensor:
    return z.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def _logprob(z: Tensor, y: Tensor, a: int | None, b: int | None) -> Tensor:
    return _logit(z, y, a, b) - z.logsumexp(-1)


def _loss(z: Tensor, y: Tensor, a: int | None, b: int | None) -> Tensor:
    return -_logprob(z, y, a, b)


def _difference(z: Tensor, y: Tensor, a: int | None, b: int | None) -> Tensor:
    return z[..., a] - z[..., b]


_VALUES: dict[str, Callable[[Tensor, Tensor, int | None, int | None], Tensor]] = {
    "loss": _loss,
    "completion_logprob": _logprob,
    "margin": _margin,
    "logit": _logit,
    "logprob_difference": _difference,
}
