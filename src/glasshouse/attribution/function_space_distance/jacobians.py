"""Gradients of outputs and losses in the weights, kept as pairs (a, g) per layer: their products come cheap.

The gradient of output o of input i at a layer is `g[i, o] a[i]^T`, so inner products of gradients are
products of two small ones. Convolutions, whose gradients are sums over places, are written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from glasshouse.attribution.function_space_distance.program import Affine, Node
from glasshouse.runtime.errors import InputError

TRACKED = ("linear", "conv2d")


@dataclass
class Rows:
    """R gradients for each of n inputs: per layer a [n, in] and g [n, R, out], or None and G [n, R, P]."""

    pairs: dict[str, tuple[Tensor | None, Tensor]]

    def __len__(self) -> int:
        g = next(iter(self.pairs.values()))[1]
        return int(g.shape[0] * g.shape[1])

    def scaled(self, weights: Tensor) -> Rows:
        """Every gradient of input i times `weights[i]`."""
        return Rows({name: (a, g * weights.to(g)[:, None, None]) for name, (a, g) in self.pairs.items()})

    def inner(self, other: Rows) -> Tensor:
        """All inner products [n R, n' R'], float64."""
        total: Tensor | float = 0.0
        for name, (a, g) in self.pairs.items():
            b, h = other.pairs[name]
            found = g.flatten(0, 1) @ h.flatten(0, 1).mT
            if a is not None and b is not None:
                outer = a @ b.mT
                outer = outer.repeat_interleave(g.shape[1], 0).repeat_interleave(h.shape[1], 1)
                found = found.mul_(outer)
            total = total + found.double()
        assert isinstance(total, Tensor)
        return total

    def squares(self) -> Tensor:
        """Squared lengths [n R], float64."""
        total: Tensor | float = 0.0
        for a, g in self.pairs.values():
            found = g.square().sum(-1)
            if a is not None:
                found = found * a.square().sum(-1, keepdim=True)
            total = total + found.double()
        assert isinstance(total, Tensor)
        return total.flatten()

    def matrices(self, outs: Mapping[str, int]) -> dict[str, Tensor]:
        """Layer gradients [n R, out, in(+1)] of every layer; `outs` are the layers' output channels."""
        return {
            name: (g if a is None else torch.einsum("nro,ni->nroi", g, a)).reshape(len(self), outs[name], -1)
            for name, (a, g) in self.pairs.items()
        }


@dataclass
class Recorder:
    """A probe (see `forward.Probe`): notes inputs of layers and adds zeros that can be differentiated."""

    nodes: Mapping[str, Node]
    weights: Mapping[str, Affine]
    shapes: Mapping[str, tuple[int, ...]]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    zeros: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, node: Node, x: Tensor, out: Tensor) -> Tensor:
        """The output of a step, with zeros added."""
        if node.kind not in TRACKED:
            return out
        self.inputs[node.name] = x.detach()
        self.zeros[node.name] = torch.zeros_like(out).requires_grad_()
        return out + self.zeros[node.name]

    def rows(self, values: list[Tensor]) -> Rows:
        """Gradients of each of the R `values` [n], one of its kind per input."""
        names = list(self.zeros)
        targets = [self.zeros[name] for name in names]
        grads = [torch.autograd.grad(v.sum(), targets, retain_graph=True) for v in values]
        stacked = {name: torch.stack([g[k] for g in grads], 1) for k, name in enumerate(names)}
        return Rows({name: self._pair(self.nodes[name], g) for name, g in stacked.items()})

    def _pair(self, node: Node, g: Tensor) -> tuple[Tensor | None, Tensor]:
        a, bias = self.inputs[node.name], self.weights[node.name][1] is not None
        if node.kind == "linear":
            if bias:
                a = torch.cat([a, a.new_ones(len(a), 1)], 1)
            return a, g
        A, o = self.weights[node.name][0], node.options
        if o["groups"] != 1:
            raise InputError("a grouped convolution is not one outer product", where=f"layer {node.module!r}")
        images = a.reshape(len(a), *self.shapes[node.parents[0]])
        patches = F.unfold(
            images, A.shape[2:], dilation=o["dilation"], padding=o["padding"], stride=o["stride"]
        )
        if bias:
            patches = torch.cat([patches, patches.new_ones(len(a), 1, patches.shape[2])], 1)
        g = g.reshape(*g.shape[:2], A.shape[0], -1)
        return None, torch.einsum("nrot,nit->nroi", g, patches).flatten(2)


def split_parameters(node: Node, matrix: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer matrix [..., out, in(+1)] as tensors shaped like the layer's `weight` and `bias`."""
    prefix = f"{node.module}." if node.module else ""
    found = {}
    if f"{prefix}bias" in like:
        found[f"{prefix}bias"], matrix = matrix[..., -1], matrix[..., :-1]
    if node.kind == "linear" and node.options["transposed"]:
        matrix = matrix.mT
    shape = like[f"{prefix}weight"].shape
    found[f"{prefix}weight"] = matrix.reshape(*matrix.shape[:-2], *shape)
    return found
