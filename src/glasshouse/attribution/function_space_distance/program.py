"""A network as a short list of steps whose moments are known.

Values are flat: a step maps rows [..., k_in] to [..., k_out]; the shapes are kept beside the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AFFINE = ("linear", "conv2d", "batchnorm", "gain")
FIXED = ("avgpool", "chunk")
ALIAS = ("flatten", "identity")
GATES = ("relu", "smooth", "gated", "maxpool")

Tensors = Mapping[str, Tensor]
Affine = tuple[Tensor, Tensor | None]
"""The effective matrix (or kernel, or gains) of a step and its bias."""


@dataclass(frozen=True)
class Node:
    """One step: its kind, the values it reads, the module whose weights it uses, and plain options."""

    name: str
    kind: str
    parents: tuple[str, ...]
    module: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The step as plain JSON."""
        return {"name": self.name, "kind": self.kind, "parents": list(self.parents), "module": self.module,
                "options": dict(self.options)}  # fmt: skip

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Node:
        """The inverse of `to_json`."""
        return cls(row["name"], row["kind"], tuple(row["parents"]), row["module"], row["options"])

    @property
    def words(self) -> str:
        """The step for a message: kind and place."""
        return f"{self.kind} {self.module or self.name!r}"


def effective(nodes: Sequence[Node], tensors: Tensors) -> dict[str, Affine]:
    """Matrix and bias of every step with weights, from parameters and buffers by name; gradients flow."""
    return {node.name: _affine(node, tensors) for node in nodes if node.kind in AFFINE}


def apply(node: Node, A: Tensor | None, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The linear part of a step on rows x [..., k_in]; `shape` is that of one input, bias not added."""
    if node.kind == "linear":
        return x @ A.mT  # type: ignore[union-attr]
    if node.kind in ("batchnorm", "gain"):
        return x * _spread(A, shape)  # type: ignore[arg-type]
    if node.kind == "chunk":
        return x.chunk(node.options["count"], -1)[node.options["index"]]
    images, o = x.reshape(-1, *shape), node.options
    if node.kind == "conv2d":
        assert A is not None
        found = F.conv2d(images, A, None, o["stride"], o["padding"], o["dilation"], o["groups"])
    else:
        found = F.avg_pool2d(images, o["kernel"] or shape[-2:], o["stride"] or None, o["padding"])
    return found.reshape(*x.shape[:-1], math.prod(found.shape[1:]))


def bias_of(node: Node, b: Tensor | None, shape: Sequence[int]) -> Tensor | float:
    """The bias of a step on its flat output of `shape`."""
    return 0.0 if b is None else _spread(b, shape)


def windows(node: Node, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Input indices of every max-pool window [k_out, places], and which of them are inside the image."""
    o = node.options
    flat = torch.arange(1, 1 + int(torch.tensor(shape).prod()), device=device).reshape(1, *shape).float()
    pad = o["padding"]
    found = F.unfold(F.pad(flat, (pad[1], pad[1], pad[0], pad[0])), o["kernel"], stride=o["stride"])
    places = o["kernel"][0] * o["kernel"][1]
    at = found.reshape(shape[0], places, -1).transpose(1, 2).reshape(-1, places).round().long() - 1
    return at.clamp_min(0), at >= 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (with their gradients) and buffers by name."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def used(nodes: Sequence[Node], tensors: Tensors) -> dict[str, Tensor]:
    """The tensors that the steps read."""
    homes = {node.module for node in nodes if node.kind in AFFINE}
    return {
        name: value
        for name, value in tensors.items()
        if name.rpartition(".")[0] in homes and value.is_floating_point()
    }


def first_mismatch(mine: Sequence[Node], other: Sequence[Node]) -> str | None:
    """Where two lists of steps part, in words; None where they agree."""
    for k, (a, b) in enumerate(zip(mine, other, strict=False)):
        if (a.kind, a.parents, a.module, dict(a.options)) != (b.kind, b.parents, b.module, dict(b.options)):
            return f"step {k} is {a.words} in the reference and {b.words} in the other model"
    if len(mine) != len(other):
        longer, where = (mine, "reference") if len(mine) > len(other) else (other, "other model")
        return f"only the {where} has {longer[min(len(mine), len(other))].words}"
    return None


def shape_mismatch(reference: Tensors, other: Tensors) -> str | None:
    """The first tensor that is missing or shaped otherwise, in words."""
    for name, value in reference.items():
        if name not in other:
            return f"{name!r} is missing in the other model"
        if other[name].shape != value.shape:
            return f"{name!r} is {tuple(value.shape)} in the reference and {tuple(other[name].shape)}"
    return None


def _affine(node: Node, tensors: Tensors) -> Affine:
    def get(name: str) -> Tensor | None:
        return tensors.get(f"{node.module}.{name}" if node.module else name)

    weight, bias = get("weight"), get("bias")
    if node.kind == "linear":
        assert weight is not None
        return (weight.mT if node.options["transposed"] else weight), bias
    if node.kind == "conv2d":
        assert weight is not None
        return weight, bias
    if node.kind == "gain":
        assert weight is not None
        return weight + node.options["offset"], bias
    mean, var = get("running_mean"), get("running_var")
    assert mean is not None and var is not None
    gain = (var + node.options["eps"]).rsqrt() * (1.0 if weight is None else weight)
    return gain, (0.0 if bias is None else bias) - mean * gain


def _spread(per_channel: Tensor, shape: Sequence[int]) -> Tensor:
    """One number per channel as one per place of a flat [C, H, W]."""
    places = 1
    for size in shape[1:]:
        places *= size
    if len(shape) == 1 or per_channel.numel() != shape[0]:
        return per_channel
    return per_channel.repeat_interleave(places)
