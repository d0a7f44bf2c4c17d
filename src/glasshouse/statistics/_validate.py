"""What every statistic checks at its border: numbers, finite, of the right shape."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError

Floats = NDArray[np.float64]


def floats(values: Any, *, name: str, ndim: int | None = None) -> Floats:
    """`values` as float64 with `ndim` axes; raises InputError for text, NaN, infinity or another shape."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error})") from None
    if ndim is not None and array.ndim != ndim:
        raise InputError(f"{name} has shape {array.shape}", fix=f"give an array with {ndim} axes")
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        position = first[0] if len(first) == 1 else first
        raise InputError(
            f"{name} holds {int((~finite).sum())} NaN or infinite values, the first at {position}",
            fix="say what is undefined instead of passing it on",
        )
    return array


def check_level(level: float) -> float:
    """A confidence level strictly between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level is {level}", fix="give a share between 0 and 1, such as 0.95")
    return float(level)


def check_counts(successes: int, n: int) -> tuple[int, int]:
    """Whole numbers with 0 <= successes <= n."""
    try:
        k, size = operator.index(successes), operator.index(n)
    except TypeError:
        k, size = _whole(successes, "successes"), _whole(n, "n")
    if not 0 <= k <= size:
        raise InputError(f"{k} successes of {size}", fix="give 0 <= successes <= n")
    return k, size


def _whole(x: Any, name: str) -> int:
    try:
        value = float(x)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {x!r}", fix="give a whole number") from None
    if not math.isfinite(value) or value != math.floor(value):
        raise InputError(f"{name} is {x!r}", fix="give a whole number")
    return int(value)
