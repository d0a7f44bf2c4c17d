"""What a training engine hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fitted:
    """A trained model, the loss of every step, further numbers by step, and the completions of all steps."""

    model: Any
    losses: list[float]
    numbers: list[dict[str, float]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
