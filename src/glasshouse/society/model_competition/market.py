"""The market: how many providers, how users choose, how losses are measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from glasshouse.runtime.errors import InputError

Loss = Literal["l1_sigmoid", "l1_softmax", "zero_one"]
LOSSES = ("l1_sigmoid", "l1_softmax", "zero_one")
LEAST_NOISE = 0.02


@dataclass(frozen=True)
class CompetitionMarket:
    """m providers; users choose provider j with probability proportional to w_j exp(-loss_j / c).

    `c` is the users' noise (0: always the best, ties by w), `T` the temperature of the predictor, `w` the
    reputations (None: equal; normalised here, with a warning if they did not sum to 1). `loss`:
    'l1_sigmoid' |sigmoid(z/T) - y| for labels 0 and 1; 'l1_softmax' half the L1 distance of softmax(z/T) to
    the one-hot label; 'zero_one' for theory and given predictions only.
    Raises InputError for m < 2 (one provider is the Bayes risk), c < 0, T <= 0, or reputations that are not
    m positive numbers.
    """

    m: int = 3
    c: float = 0.3
    T: float = 0.1
    w: Sequence[float] | None = None
    loss: Loss = "l1_sigmoid"

    def __post_init__(self) -> None:
        if self.m < 2:
            raise InputError(
                f"m is {self.m}", fix="give at least 2 providers; one provider is the Bayes risk"
            )
        if not (self.c >= 0 and math.isfinite(self.c)):
            raise InputError(f"the noise c is {self.c}", fix="give a number >= 0")
        if not (self.T > 0 and math.isfinite(self.T)):
            raise InputError(f"the temperature T is {self.T}", fix="give a number above 0")
        if self.loss not in LOSSES:
            raise InputError(f"the loss is {self.loss!r}", fix="use one of " + ", ".join(LOSSES))
        if self.w is not None:
            object.__setattr__(self, "w", _normalised(self.w, self.m))

    @property
    def reputations(self) -> tuple[float, ...]:
        """w, summing to 1."""
        return tuple(self.w) if self.w is not None else (1 / self.m,) * self.m

    def with_(self, **changes: Any) -> CompetitionMarket:
        """A copy with other values."""
        return replace(self, **changes)

    def for_gradients(self) -> CompetitionMarket:
        """Itself. Raises InputError where shares are piecewise constant: no gradient leads anywhere."""
        if self.loss == "zero_one":
            raise InputError("0-1 losses have no gradient", fix="use closed_form, or the loss 'l1_sigmoid'")
        if self.c < LEAST_NOISE:
            raise InputError(
                f"with noise c = {self.c} market share is piecewise constant",
                fix=f"use closed_form or c >= {LEAST_NOISE}",
            )
        return self


def _normalised(w: Sequence[float], m: int) -> tuple[float, ...]:
    values = tuple(float(x) for x in w)
    if len(values) != m or not all(x > 0 and math.isfinite(x) for x in values):
        raise InputError(f"the reputations w are {list(values)}", fix=f"give {m} positive numbers")
    total = sum(values)
    if abs(total - 1) > 1e-9:
        warnings.warn(f"the reputations sum to {total:g}; they are divided by it", stacklevel=4)
    return tuple(x / total for x in values)
