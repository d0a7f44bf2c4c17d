"""How sketches are kept: float16 with one power of two a line, bfloat16, or float32.

Gradients of fitted rows span more than the twelve decades of float16, and what underflows there is gone. So
each line is scaled by a power of two that brings its largest number near 2^13: nothing over- or underflows,
and the scaling itself rounds nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.logra.layout import Layout
from glasshouse.runtime.errors import NumericalError

Dtype = Literal["float16", "bfloat16", "float32"]
Scaling = Literal["line", "none"]

LARGEST = 6e4
"""Float16 ends at 65,504."""
TARGET = 13
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def pack(lines: Tensor, dtype: Dtype, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """`lines` [n, width] in the stored dtype, and the exponents [n] (int16) they were divided by 2 to.

    With `scaling` "none" float16 overflows; see `check_overflow`.
    """
    exponents = torch.zeros(len(lines), dtype=torch.int16)
    if dtype == "float16" and scaling == "line" and lines.numel():
        top = lines.abs().amax(1)
        # Not below 2^-100: the power of two itself must stay a float32.
        found = (torch.frexp(top)[1] - (TARGET + 1)).clamp_min(-100).to(torch.int16)
        exponents = torch.where(top > 0, found, torch.zeros_like(found)).cpu()
        lines = torch.ldexp(lines, -exponents[:, None].to(lines.device, torch.int32))
    return lines.to(getattr(torch, dtype)).cpu(), exponents


def check_overflow(lines: Tensor, names: list[str], layout: Layout, dtype: Dtype, scaling: Scaling) -> None:
    """Raise NumericalError naming row and module where plain float16 cannot hold a sketch."""
    if dtype != "float16" or scaling != "none" or not lines.numel():
        return
    top = lines.abs().amax(1)
    n = int(top.argmax())
    if float(top[n]) <= LARGEST:
        return
    column = int(lines[n].abs().argmax())
    starts = [(b.start if layout.unit == "row" else b.line) for b in layout.blocks]
    block = layout.blocks[int(np.searchsorted(starts, column, side="right")) - 1]
    raise NumericalError(
        f"a sketch of row {names[n]!r} reaches {float(top[n]):.3g}, beyond float16 ({LARGEST:g})",
        where=f"module {block.name!r}", fix='use scaling="line" or dtype="bfloat16"',
    )  # fmt: skip


def scales(exponents: Tensor) -> Tensor:
    """What stored lines must be multiplied by, [n] float32."""
    return torch.ldexp(torch.ones(len(exponents)), exponents.to(torch.int32))


def to_numpy(lines: Tensor) -> NDArray[np.generic]:
    """The array an `.npy` holds: bfloat16 as its bits, int16."""
    lines = lines.contiguous()
    return (lines.view(torch.int16) if lines.dtype == torch.bfloat16 else lines).numpy()


def from_numpy(array: NDArray[np.generic], dtype: str) -> Tensor:
    """The stored lines of an array read from disk."""
    found = torch.from_numpy(array)
    return found.view(torch.bfloat16) if dtype == "bfloat16" else found
