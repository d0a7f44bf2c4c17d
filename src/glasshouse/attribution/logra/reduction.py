"""Is the loss of a live training step a sum or a mean? Looked at once, without changing the step.

Where the model's outputs are the logits of a cross-entropy, their gradient is `c (softmax - one-hot)` at
every labelled position, and c says what the loss was divided by, whoever divided: a mean, gradient
accumulation, a loss scaler. For other losses the graph between loss and outputs is searched for a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glasshouse.runtime.errors import ReductionError

ROWS = 64
"""Logit rows looked at."""
CLOSE = 1e-2
"""Relative distance of a logit gradient from `c (softmax - one-hot)`, and of c from what was said."""
STEPS = 200
"""Graph nodes looked at."""


class Reduction:
    """Watches one recorded step: `look` is a forward hook of the whole model.

    `divided` is what the loss was divided by (None: could not be seen); `mean` says that a mean stands
    between loss and outputs.
    """

    def __init__(self) -> None:
        self.divided: float | None = None
        self.mean = False
        self._outputs: Any = None

    def look(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Put a hook on the model's logits."""
        z = _logits(output)
        if z is None or not z.requires_grad or not torch.is_grad_enabled():
            return
        self._outputs = z.grad_fn
        values = z.detach()

        def backward(grad: Tensor) -> None:
            self.divided = divisor(values, grad.detach())

        z.register_hook(backward)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Catch the tensor on which `backward` is called inside the block."""
        with _SeeBackward(self):
            yield

    def started(self, loss: Any) -> None:
        """Search the graph above the outputs for a mean."""
        if isinstance(loss, Tensor) and loss.grad_fn is not None and self._outputs is not None:
            self.mean = _has_mean(loss.grad_fn, self._outputs)

    def check(self, divided_by: float) -> str:
        """What is known ("sum", "divided" or "unseen"); ReductionError for a divisor that was not said."""
        if self.divided is not None:
            if abs(self.divided / divided_by - 1) <= CLOSE:
                return "sum" if divided_by == 1 else "divided"
            said = "is a sum" if divided_by == 1 else f"was said to be divided by {divided_by:g}"
            raise ReductionError(
                f"the loss {said}, but its gradient at the logits is that of a loss divided by "
                f"{self.divided:.4g}", where="GradientLog.record",
                fix="sum the loss over rows and tokens, or pass divided_by= (rows or labelled tokens)",
            )  # fmt: skip
        if self.mean and divided_by == 1:
            raise ReductionError(
                "the loss is a mean", where="GradientLog.record",
                fix="sum it over rows and tokens, or pass divided_by= (what the mean divides by)",
            )  # fmt: skip
        return "unseen" if divided_by == 1 else "divided"


def divisor(z: Tensor, g: Tensor) -> float | None:
    """1 / c where the rows of `g` are `c (softmax(z) - one-hot)` with one c; None where they are not."""
    if z.shape != g.shape or z.ndim < 2 or z.shape[-1] < 2:
        return None
    z, g = z.reshape(-1, z.shape[-1]).float(), g.reshape(-1, g.shape[-1]).float()
    rows = (g.abs().amax(1) > 0).nonzero()[:ROWS, 0]
    if not len(rows):
        return None
    p, g = torch.softmax(z[rows], 1), g[rows]
    found = []
    for sign in (1.0, -1.0):  # a loss, or a log-probability
        e = p - torch.nn.functional.one_hot((sign * g).argmin(1), p.shape[1])
        scale = (g * e).sum(1) / e.square().sum(1)
        rest = (g - scale[:, None] * e).norm(dim=1) / g.norm(dim=1)
        # Where the label was certain, g is rounding and says nothing.
        clear = e.norm(dim=1) > 1e-3
        if bool(clear.any()) and float(rest[clear].max()) < CLOSE:
            found.append(scale[clear].abs())
    if not found:
        return None
    c = float(found[0].median())
    return 1 / c if float((found[0] / c - 1).abs().max()) < CLOSE else None


class _SeeBackward(TorchFunctionMode):
    def __init__(self, watcher: Reduction) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.watcher.started(args[0])
        return func(*args, **(kwargs or {}))


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        found = output[0]
    return found if isinstance(found, Tensor) else None


def _has_mean(start: Any, stop: Any) -> bool:
    """Whether a mean, or a loss reduced by one, stands on a path from `start` down to `stop`."""
    waiting, seen = [start], set()
    while waiting and len(seen) < STEPS:
        node = waiting.pop(0)
        if node is None or node is stop or node in seen:
            continue
        seen.add(node)
        if type(node).__name__.startswith("MeanBackward") or getattr(node, "_saved_reduction", 0) == 1:
            return True
        waiting += [parent for parent, _ in node.next_functions]
    return False
