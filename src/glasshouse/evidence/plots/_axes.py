"""Axes: from data to pixels, and the ticks a reader expects."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_TICKS = 5


class Axis:
    """One axis of a panel: `at(value)` is its pixel between `start` and `stop` (which may run upward)."""

    def __init__(self, settings: Mapping[str, Any], values: Sequence[Any], *, zero: bool, pad: float) -> None:
        self.title = label(title_of(settings))
        self.start, self.stop = 0.0, 1.0
        numbers = [x for x in values if is_number(x)]
        self.categories: list[str] = []
        if settings.get("type") == "category" or any(isinstance(x, str) for x in values):
            self.categories = list(dict.fromkeys(str(x) for x in values if x is not None))
        self.log = settings.get("type") == "log" and not self.categories
        self.named = _named_ticks(settings)
        self.low, self.high = self._range(settings, numbers, zero, pad)
        self.whole = all(x == round(x) for x in numbers)

    def _range(
        self, settings: Mapping[str, Any], numbers: Sequence[float], zero: bool, pad: float
    ) -> tuple[float, float]:
        if self.categories:
            return -0.5, len(self.categories) - 0.5
        if self.log:
            numbers = [math.log10(x) for x in numbers if x > 0]
        if settings.get("range"):  # plotly gives the range of a logarithmic axis in powers of ten
            return float(settings["range"][0]), float(settings["range"][1])
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        if zero and not self.log:
            low, high = min(low, 0.0), max(high, 0.0)
        margin = pad * (high - low) or max(abs(high), 1.0) * pad
        return (low if zero and low == 0 else low - margin), (high if zero and high == 0 else high + margin)

    def number(self, value: Any) -> float | None:
        """The place of a value on the axis before scaling; None for what has no place (NaN, log of 0)."""
        if self.categories:
            text = str(value)
            return float(self.categories.index(text)) if text in self.categories else None
        if not is_number(value) or (self.log and value <= 0):
            return None
        return math.log10(value) if self.log else float(value)

    def scaled(self, number: float) -> float:
        """A number of `number`, or between two, in pixels; kept inside the panel."""
        share = (min(max(number, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def at(self, value: Any) -> float | None:
        """The pixel of a value; None for what has no place."""
        number = self.number(value)
        return None if number is None else self.scaled(number)

    def ticks(self) -> list[tuple[float, str]]:
        """(pixel, text) of each tick."""
        if self.named:
            return [(self.scaled(x), text) for x, text in self.named if self.low <= x <= self.high]
        if self.categories:
            return [(self.scaled(i), label(text)) for i, text in enumerate(self.categories)]
        return [(self.scaled(x), short(10**x if self.log else x)) for x in self._steps()]

    def _steps(self) -> list[float]:
        if self.log:
            powers = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            if len(powers) >= 2:
                return [float(p) for p in powers]
            return [math.log10(x) for x in nice(10**self.low, 10**self.high)]
        steps = nice(self.low, self.high)
        return [x for x in steps if x == round(x)] if self.whole and self.high - self.low > 1 else steps


def nice(low: float, high: float) -> list[float]:
    """At most `MOST_TICKS` + 1 round numbers in [low, high]."""
    rough = (high - low) / MOST_TICKS
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def is_number(value: Any) -> bool:
    """Whether a value can be placed on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numbers_of(values: Any) -> list[Any]:
    """A plotly array as a list: plain lists stay, base64 arrays (`{"dtype","bdata"}`) are read."""
    if isinstance(values, Mapping) and "bdata" in values:
        import base64

        import numpy as np

        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(str(values["dtype"])))
        shape = [int(n) for n in str(values.get("shape", "")).split(",") if n.strip()]
        found: list[Any] = (flat.reshape(shape) if shape else flat).tolist()
        return found
    return list(values) if values is not None else []


def title_of(settings: Mapping[str, Any]) -> str:
    """The title of a layout or an axis, however plotly wrote it."""
    title = settings.get("title")
    return str((title.get("text") if isinstance(title, Mapping) else title) or "")


def label(text: Any, limit: int = 60) -> str:
    """Plotly's text as plain text: tags gone, entities read, shortened. Escaped by whoever prints it."""
    plain = html.unescape(re.sub(r"<[^>]*>", " ", str(text)))
    return cut(" ".join("".join(c for c in plain if c.isprintable() or c.isspace()).split()), limit)


def cut(plain: str, limit: int) -> str:
    """Plain text, shortened."""
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def short(x: float) -> str:
    """A tick's number."""
    if x == 0 or 0.001 <= abs(x) < 100_000:
        return f"{x:.3f}".rstrip("0").rstrip(".") if x != round(x) else f"{x:,.0f}"
    return f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _named_ticks(settings: Mapping[str, Any]) -> list[tuple[float, str]]:
    places, texts = numbers_of(settings.get("tickvals")), numbers_of(settings.get("ticktext"))
    pairs: Iterable[tuple[Any, Any]] = zip(places, texts, strict=False)
    return [(float(x), label(text)) for x, text in pairs if is_number(x)]
