"""From what a user has to points and heads: which labels there are, and which one each point carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glasshouse.attribution.ifcomp.choices import Choices
from glasshouse.attribution.ifcomp.heads import (
    ClassHead,
    CompletionHead,
    NextTokenHead,
    check_logits,
    check_width,
)
from glasshouse.attribution.units import TensorUnits, TokenUnits, Units, as_units
from glasshouse.corpora.rows import IGNORE
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import _refuse_training_mode

AnyHead = ClassHead | CompletionHead | NextTokenHead


def head_for(units: Units, temperature: float, top_k: int | None) -> AnyHead:
    """The head that reads labels of such units. InputError for labels that may hold together."""
    if isinstance(units, Choices):
        if top_k is not None:
            raise InputError("top_k has no use where the answers are given", fix="leave it out")
        return CompletionHead(temperature, units.width)
    if isinstance(units, TokenUnits):
        many = [
            name for name, row in zip(units.ids, units.rows, strict=True)
            if sum(label != IGNORE for label in row.labels[1:]) != 1
        ]  # fmt: skip
        if many:
            raise InputError(
                f"{len(many)} rows have more than one labelled token (first: {many[0]!r})",
                fix="give Choices for whole answers, or label one token a row",
            )
        return NextTokenHead(temperature, top_k)
    if not isinstance(units, TensorUnits):
        kind = type(units).__name__
        raise InputError(f"cannot read labels from {kind}", fix="give (inputs, targets), or Choices")
    y = units.targets
    if y.is_floating_point() or y.ndim != 1:
        raise InputError(
            f"targets of type {y.dtype} and shape {tuple(y.shape)} are not one label a row",
            fix="give integer classes; labels that may hold together are not covered",
        )
    return ClassHead(temperature, top_k)


def count_classes(model: nn.Module, head: AnyHead, units: Units, top_k: int | None, parameters: int) -> int:
    """Number of labels, from a few rows; refuses what is no logits, too many labels, and training mode."""
    _refuse_training_mode(model)  # before a pass would move the statistics of a BatchNorm
    if isinstance(units, Choices):
        return units.width
    device = next(model.parameters()).device
    with torch.no_grad():
        z = head.logits(model, units.batch(range(min(8, len(units)))).to(device))
    if isinstance(head, ClassHead):
        check_logits(z, model)
    check_width(z.shape[1], top_k, parameters)
    return int(z.shape[1])


def points(x: Any, y: Any, head: AnyHead, tokenizer: Any, classes: int) -> Units:
    """Points as units of the kind that `head` reads; `y` replaces the labels they carry."""
    if isinstance(x, Tensor) and isinstance(head, ClassHead):
        units: Units = TensorUnits(
            x, torch.zeros(len(x), dtype=torch.long) if y is None else torch.as_tensor(y)
        )
    else:
        units = as_units(x, tokenizer=tokenizer)
        if y is not None:
            units = _relabelled(units, torch.as_tensor(y))
    if type(head_for(units, 1.0, None)) is not type(head):
        raise InputError(
            f"these points are {type(units).__name__} and the fit had others",
            fix="give points of the kind that was fitted on",
        )
    if isinstance(units, Choices) and units.width != classes:
        raise InputError(
            f"these points have {units.width} answers, the fit had {classes}", fix="give as many"
        )
    check_labels(units, classes)
    return units


def check_labels(units: Units, classes: int) -> None:
    """Raise InputError for classes out of range, naming the first row."""
    if not isinstance(units, TensorUnits):
        return
    bad = ((units.targets < 0) | (units.targets >= classes)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"{len(bad)} labels lie outside 0..{classes - 1} (first: {int(units.targets[bad[0]])} of row "
            f"{units.ids[bad[0]]!r})",
            fix="number the classes from 0",
        )


def given(units: Units) -> NDArray[np.int64]:
    """The label that each point carries, [n]."""
    if isinstance(units, Choices):
        return np.asarray(units.given)
    if isinstance(units, TensorUnits):
        return np.asarray(units.targets)
    assert isinstance(units, TokenUnits)
    return np.array([max(row.labels[1:]) for row in units.rows], dtype=np.int64)


def _relabelled(units: Units, y: Tensor) -> Units:
    if isinstance(units, Choices):
        return Choices(units.rows, y, labels=units.labels, ids=units.ids, pad_id=units.pad_id)
    if isinstance(units, TensorUnits):
        return TensorUnits(units.inputs, y, units.ids)
    raise InputError("token rows carry their own labels", fix="leave y out")
