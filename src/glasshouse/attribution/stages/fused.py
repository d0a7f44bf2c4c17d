"""The same activation functions, in one kernel each, while gradients are taken.

Some checkpoints spell tanh-GELU in eight elementwise operations; their traffic costs as much time as the
matrix products of the pass. The swap lasts for a `with` block and changes results by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# By class name: importing transformers here would cost seconds to those who trace a plain torch model.
FUSED = {"NewGELUActivation": "tanh", "FastGELUActivation": "tanh"}


@contextmanager
def fused_activations(model: nn.Module) -> Iterator[None]:
    """Replace spelled-out tanh-GELUs by torch's kernel inside the block."""
    found = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent.named_children()
        if type(child).__name__ in FUSED and not child._forward_hooks
    ]
    for parent, key, child in found:
        setattr(parent, key, nn.GELU(approximate=FUSED[type(child).__name__]).train(child.training))
    try:
        yield
    finally:
        for parent, key, child in found:
            setattr(parent, key, child)
