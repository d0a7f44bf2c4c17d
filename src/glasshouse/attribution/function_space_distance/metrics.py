"""How far two outputs of one input are apart: squared distance, KL divergence, or of probabilities."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from glasshouse.runtime.errors import InputError, NumericalError

Rho = Literal["l2", "kl", "prob_l2"]


def output_distance(f0: Tensor, f1: Tensor, rho: Rho, change: Tensor | None = None) -> Tensor:
    """Per row of outputs [n, C]: `[n]` >= 0; `change` is f1 - f0 where it is known more exactly.

    "l2": half the squared difference of the outputs. "kl": KL(softmax f0 || softmax f1), nats. "prob_l2":
    half the squared difference of the softmaxes (which the reference code calls l2).
    """
    if rho == "l2":
        return 0.5 * (f1 - f0 if change is None else change).square().sum(-1)
    if rho == "kl":
        log0, log1 = f0.log_softmax(-1), f1.log_softmax(-1)
        return (log0.exp() * (log0 - log1)).sum(-1)
    return 0.5 * (f1.softmax(-1) - f0.softmax(-1)).square().sum(-1)


def checked(distance: Tensor) -> Tensor:
    """The distance, or NumericalError where it is not finite."""
    if not bool(torch.isfinite(distance)):
        raise NumericalError("the distance is not finite", fix="look for NaN in the other model's weights")
    return distance


def check_rho(rho: str, allowed: tuple[str, ...] = get_args(Rho), why: str = "") -> None:
    """Raise InputError for a distance between outputs that does not exist here."""
    if rho not in allowed:
        raise InputError(f"rho is {rho!r}{why}", fix=f"use {' or '.join(repr(name) for name in allowed)}")
