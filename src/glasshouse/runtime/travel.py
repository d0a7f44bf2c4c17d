"""Results on their way between processes: tensors leave the accelerator and come back to the reader's.

A tensor that is sent as it lies names the device of its sender, which the reader may not have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Landed:
    """A tensor of an accelerator, in host memory."""

    tensor: Any
    kind: str


def packed(tree: Any) -> Any:
    """`tree` (dicts, lists and tuples of anything) with the tensors of accelerators moved to host memory."""
    torch = sys.modules.get("torch")
    if torch is None:
        return tree

    def pack(leaf: Any) -> Any:
        away = isinstance(leaf, torch.Tensor) and leaf.device.type not in ("cpu", "meta")
        return _Landed(leaf.detach().cpu(), leaf.device.type) if away else leaf

    return _mapped(tree, pack)


def unpacked(tree: Any, index: int | None = None) -> Any:
    """What `packed` made, on the reader's own accelerator of that kind: number `index`, or its current one.

    Without such an accelerator the tensors stay in host memory, where the reader's sums are then made too.
    """

    def unpack(leaf: Any) -> Any:
        if not isinstance(leaf, _Landed):
            return leaf
        return leaf.tensor.to(_here(leaf.kind, index)) if _has(leaf.kind) else leaf.tensor

    return _mapped(tree, unpack)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    # Exact types only: a named tuple or a subclass has a constructor of its own.
    if type(tree) is dict:
        return {key: _mapped(value, change) for key, value in tree.items()}
    if type(tree) is list:
        return [_mapped(value, change) for value in tree]
    if type(tree) is tuple:
        return tuple(_mapped(value, change) for value in tree)
    return change(tree)


def _here(kind: str, index: int | None) -> str:
    return kind if index is None else f"{kind}:{index}"


def _has(kind: str) -> bool:
    import torch

    return bool(getattr(torch, kind).is_available()) if hasattr(torch, kind) else False
