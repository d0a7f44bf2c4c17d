"""The recursion of the published code, kept to compare with: not the second moment of its own model.

`determ_fsd` of the reference repository multiplies covariances by mu mu^T on the diagonal too (where a gate
meets itself the factor is mu), and lets the covariance of the change run without the terms that couple it to
the activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.program import ALIAS
from glasshouse.runtime.errors import InputError


def reference_distance(graph: Graph, tensors: Mapping[str, Tensor]) -> Tensor:
    """Half the squared mean change plus half the trace of the published covariance recursion; MLPs only."""
    kinds = {node.kind for node in graph.nodes} - {"input", "linear", "relu", *ALIAS}
    if kinds:
        raise InputError(
            f"the published recursion knows linear layers and ReLU only, not {', '.join(sorted(kinds))}",
            fix='use variant="exact"',
        )
    base, moved = graph.pair(tensors, torch.float32)
    total = torch.zeros((), device=graph.moments.mean.device)
    for k, weight in enumerate(graph.moments.weights):
        total = total + weight * _one(graph, base, moved, k)
    return total


def _one(graph: Graph, base: Mapping, moved: Mapping, k: int) -> Tensor:
    a, C = graph.moments.mean[k], graph.moments.covariance(k)
    d, D = torch.zeros_like(a), torch.zeros_like(C)
    for node in graph.nodes:
        if node.kind == "linear":
            (W0, b0), (W1, b1) = base[node.name], moved[node.name]
            bias, shift = (0.0, 0.0) if b0 is None else (b0, b1 - b0)
            dW = W1 - W0
            d = dW @ a + W1 @ d + shift
            a = W0 @ a + bias
            C, D = W0 @ C @ W0.mT, dW @ C @ dW.mT + W1 @ D @ W1.mT
        elif node.kind == "relu":
            mu = graph.gates[node.name]["mu"][k].to(a)
            a, d = mu * a, mu * d
            C, D = torch.outer(mu, mu) * C, torch.outer(mu, mu) * D
    return 0.5 * (d.square().sum() + D.diagonal().sum())
