"""`Estimate`: the only way a number leaves this house."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, its level, its n, and how the interval was made.

    `value`, `low`, `high` are in the unit of the quantity; NaN means "undefined" and `method` then says why
    (JSON null). `n` counts the independent units (prompts, seeds, organisms), not tokens.

    >>> print(Estimate(0.5, 0.25, 0.75, 0.95, 12, "wilson"))
    0.500 [0.250, 0.750] (95%, n=12, wilson)
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    method: str

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if not math.isnan(self.low) and not math.isnan(self.high) and self.low > self.high:
            raise ValueError(f"the interval is reversed: low {self.low} > high {self.high}")

    @property
    def defined(self) -> bool:
        """False where the quantity does not exist (for example an AUROC with one class)."""
        return not math.isnan(self.value)

    def excludes(self, null: float) -> bool:
        """True when `null` lies strictly outside the interval."""
        return self.defined and (null < self.low or null > self.high)

    def to_json(self) -> dict[str, Any]:
        """`{"value","low","high","level","n","method"}`; NaN becomes null, an infinite bound a string."""
        return {
            "value": _number(self.value),
            "low": _number(self.low),
            "high": _number(self.high),
            "level": self.level,
            "n": self.n,
            "method": self.method,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Estimate:
        """The inverse of `to_json`."""
        return cls(
            _parse(data["value"]), _parse(data["low"]), _parse(data["high"]),
            float(data["level"]), int(data["n"]), str(data["method"]),
        )  # fmt: skip

    @classmethod
    def undefined(cls, why: str, n: int = 0, level: float = 0.95) -> Estimate:
        """An estimate of something that does not exist here, with the reason."""
        return cls(math.nan, math.nan, math.nan, level, n, f"undefined: {why}")

    @classmethod
    def exact(cls, value: float, n: int, error: float = 0.0, method: str = "deterministic") -> Estimate:
        """A deterministic result; its interval is the stated numerical error."""
        return cls(value, value - error, value + error, 0.95, n, method)

    def __str__(self) -> str:
        if not self.defined:
            return self.method
        return (
            f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] "
            f"({self.level:.0%}, n={self.n}, {self.method})"
        )


def _number(x: float) -> float | str | None:
    if math.isnan(x):
        return None
    return x if math.isfinite(x) else ("inf" if x > 0 else "-inf")


def _parse(x: float | str | None) -> float:
    return math.nan if x is None else float(x)
