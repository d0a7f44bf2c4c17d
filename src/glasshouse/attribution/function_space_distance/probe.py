"""Where the assumption of shared gates breaks: gates that differ between the two networks on probe inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from glasshouse.attribution.function_space_distance.forward import run
from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.program import Node
from glasshouse.statistics import Estimate, bootstrap


def gate_flips(graph: Graph, tensors: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Estimate]:
    """Per ReLU step the share of its gates that differ, with a bootstrap interval over rows."""
    base, moved = graph.pair(tensors, torch.float32)
    with torch.no_grad():
        before, after = (_gates(graph, weights, inputs) for weights in (base, moved))
    return {name: bootstrap((before[name] != after[name]).double().mean(1).cpu().numpy()) for name in before}


def _gates(graph: Graph, weights: Mapping, inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(node: Node, parents: list[Tensor]) -> None:
        if node.kind == "relu":
            found[node.name] = parents[0] >= 0

    run(graph.nodes, weights, inputs.float(), dict(graph.shapes), note)
    return found
