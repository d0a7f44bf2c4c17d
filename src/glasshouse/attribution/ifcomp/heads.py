"""Where labels come out of a model, and the tempered loss over them (arXiv:2406.02745, section 3).

A head gives the logits `z` [n, C] of n points; the Boltzmann loss of label k is `-log softmax(z / T)_k`. At
T = 1 a confident network has gradients and curvature near zero on its own labels; at a large T the labels are
nearly equally likely and the geometry is that of the logits. Loss and sampled labels use the same T, so that
factors fitted with a head are the Fisher of the very loss whose gradients are taken.

    ClassHead        a module that returns logits [n, C], one integer target per row
    CompletionHead   a language model and C whole answers a point: z is each answer's log-probability
    NextTokenHead    a language model and one labelled token a row: the `top_k` likeliest tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from glasshouse.attribution.objectives import ClassLoss, TokenLoss
from glasshouse.attribution.units import Batch, TensorBatch
from glasshouse.corpora.rows import IGNORE, TokenBatch
from glasshouse.runtime.errors import InputError

MOST_CLASSES = 200
"""More labels need `top_k`: each costs a backward pass."""


class Head(Protocol):
    """An objective with access to its logits."""

    name: str
    temperature: float
    top_k: int | None
    fold: int
    """Rows of the model's batch that make one point: 1, or the number of answers."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """All logits [n, C], with gradients, in float32."""

    def given(self, batch: Batch) -> Tensor:
        """The label that each point carries, [n]."""

    def ids(self, batch: Batch) -> tuple[str, ...]:
        """One name per point."""


class _Tempered:
    """The parts that all heads share; an `Objective` of `attribution.objectives`."""

    temperature: float
    top_k: int | None

    def kept(self, z: Tensor) -> Tensor | None:
        """Which labels take part, [n, k], the likeliest first; None for all in their order."""
        if self.top_k is None or self.top_k >= z.shape[1]:
            return None
        return z.detach().topk(self.top_k, dim=1).indices

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [n, k] of the labels that take part."""
        z = self.logits(model, batch)  # type: ignore[attr-defined]
        at = self.kept(z)
        return z if at is None else z.gather(1, at)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Boltzmann cross-entropy of each point, [n] in nats."""
        return ClassLoss().loss(outputs / self.temperature, batch)

    def draw(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """A batch whose targets are labels (places among those that take part) drawn from softmax(z / T)."""
        empty = torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
        names = self.ids(batch)  # type: ignore[attr-defined]
        bare = TensorBatch(outputs.detach(), empty, names)
        return ClassLoss().draw(outputs / self.temperature, bare, seed)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of the labels that the points carry, [n]; only where all labels take part."""
        z = self.logits(model, batch)  # type: ignore[attr-defined]
        targets = self.given(batch)  # type: ignore[attr-defined]
        return self.loss(z, TensorBatch(z, targets, self.ids(batch)))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ClassHead(_Tempered):
    """Logits of a classifier."""

    temperature: float = 1.0
    top_k: int | None = None
    name: str = "boltzmann_classes"
    fold: int = 1

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, C]."""
        assert isinstance(batch, TensorBatch)
        output = model(batch.inputs)
        z = output if isinstance(output, Tensor) else output.logits
        if z.ndim != 2 or z.shape[1] < 2:
            raise InputError(
                f"the model returns shape {tuple(z.shape)} for {len(batch)} rows, not logits of two or more "
                "classes that exclude each other",
                where="model", fix="give a softmax classifier; for token rows give Choices",
            )  # fmt: skip
        return z.float()

    def given(self, batch: Batch) -> Tensor:
        """The targets."""
        assert isinstance(batch, TensorBatch)
        return batch.targets

    def ids(self, batch: Batch) -> tuple[str, ...]:
        """The rows' ids."""
        return batch.row_ids


@dataclass(frozen=True)
class CompletionHead(_Tempered):
    """Log-probability of each of `fold` whole answers; see `Choices` for the order of the rows."""

    temperature: float = 1.0
    fold: int = 2
    all_positions: bool = False
    name: str = "boltzmann_answers"
    top_k: int | None = None

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, fold]."""
        assert isinstance(batch, TokenBatch)
        return -TokenLoss(all_positions=self.all_positions)(model, batch).view(-1, self.fold)

    def given(self, batch: Batch) -> Tensor:
        """Not in the batch: `Choices.given` holds them."""
        raise InputError("answers do not say which was given", fix="read Choices.given")

    def ids(self, batch: Batch) -> tuple[str, ...]:
        """The points' ids: those of every `fold`-th row."""
        return batch.row_ids[:: self.fold]


@dataclass(frozen=True)
class NextTokenHead(_Tempered):
    """Logits of the one labelled token of each row."""

    temperature: float = 1.0
    top_k: int | None = None
    all_positions: bool = False
    name: str = "boltzmann_next_token"
    fold: int = 1

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, V]."""
        assert isinstance(batch, TokenBatch)
        z = TokenLoss(all_positions=self.all_positions).outputs(model, batch)  # [n, kept, V]
        place = (self._labels(batch) != IGNORE).long().argmax(1)
        return z[torch.arange(len(z), device=z.device), place].float()

    def given(self, batch: Batch) -> Tensor:
        """The labelled tokens."""
        assert isinstance(batch, TokenBatch)
        return self._labels(batch).max(1).values

    def ids(self, batch: Batch) -> tuple[str, ...]:
        """The rows' ids."""
        return batch.row_ids

    @staticmethod
    def _labels(batch: TokenBatch) -> Tensor:
        """Labels at the positions that `TokenLoss.outputs` keeps, [n, kept]."""
        labels = batch.labels[:, 1:]
        return labels[:, (labels != IGNORE).any(0)]


def check_logits(z: Tensor, model: nn.Module) -> None:
    """Raise InputError for outputs that are probabilities already, or come from a sigmoid."""
    last = list(model.modules())[-1]
    if isinstance(last, nn.Sigmoid | nn.Softmax):
        raise InputError(
            f"the model ends in {type(last).__name__}, so its outputs are no logits", where="model",
            fix="leave that layer out" if isinstance(last, nn.Softmax)
            else "give a softmax classifier; labels that may hold together are not covered",
        )  # fmt: skip
    if bool((z >= 0).all()) and bool((z.sum(1) - 1).abs().max() < 1e-4):
        raise InputError(
            "the model's outputs are probabilities (each row sums to 1), no logits", where="model",
            fix="return the logits before the softmax",
        )  # fmt: skip


def check_width(classes: int, top_k: int | None, parameters: int) -> None:
    """Raise InputError for more than 200 labels without `top_k`, saying what they would cost."""
    if top_k is None and classes > MOST_CLASSES:
        raise InputError(
            f"there are {classes:,} labels, each a backward pass over {parameters:,} weights a point "
            f"({4 * classes * parameters:.3g} FLOP)",
            fix=f"pass top_k=10 or so (at most {MOST_CLASSES} labels are followed without it)",
        )  # fmt: skip
