"""How a tuned lens is trained: the options, checked in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from glasshouse.runtime.errors import InputError

Loss = Literal["kl", "ce"]
Opt = Literal["sgd", "adam"]


@dataclass(frozen=True)
class Options:
    """The options of `TunedLens`, validated. Raises InputError naming the option."""

    loss: Loss
    steps: int
    tokens_per_step: int
    opt: Opt
    lr_scale: float
    momentum: float
    weight_decay: float
    clip: float | None
    bias_only: bool
    skip_first: int
    batch_tokens: int
    seed: int

    def __post_init__(self) -> None:
        for name, right, what in (
            ("loss", self.loss in ("kl", "ce"), "'kl' or 'ce'"),
            ("steps", self.steps >= 1, "at least 1"),
            ("tokens_per_step", self.tokens_per_step >= 1, "at least 1"),
            ("opt", self.opt in ("sgd", "adam"), "'sgd' or 'adam'"),
            ("lr_scale", 0 < self.lr_scale < float("inf"), "a positive number"),
            ("momentum", 0 < self.momentum < 1, "between 0 and 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more"),
            ("clip", self.clip is None or self.clip > 0, "a positive number, or None"),
            ("skip_first", self.skip_first >= 0, "0 or more"),
            ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
        ):
            if not right:
                raise InputError(f"{name} is {getattr(self, name)!r}", fix=f"give {what}")

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear to 0 over the run; Adam warms up first.

        SGD divides by 1 / (1 - momentum), which torch's momentum multiplies the step by.
        """
        if self.opt == "sgd":
            return self.lr_scale * (1 - self.momentum) * (self.steps - step) / self.steps
        warm = min(1000, self.steps // 5)
        if step < warm:
            return 1e-3 * self.lr_scale * (step + 1) / warm
        return 1e-3 * self.lr_scale * (self.steps - step) / (self.steps - warm)

    def counted(self, length: int) -> int:
        """How many tokens of a row carry loss."""
        return max(0, length - self.skip_first - (self.loss == "ce"))

    def facts(self) -> dict[str, Any]:
        """The options as plain values."""
        return asdict(self)
