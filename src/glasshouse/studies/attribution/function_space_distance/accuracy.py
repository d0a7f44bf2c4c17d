"""How well each estimator tells the distance of 68 perturbed networks, one base network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng, torch_generator
from glasshouse.studies.attribution.fashion import Recipe, pictures, train_mlp

if TYPE_CHECKING:
    import torch
    from torch import nn

TASKS, STEPS = 8, (1, 2, 4, 8, 16, 24)
NOISES = np.geomspace(0.002, 0.03, 20)
KEPT = 40


def accuracy_seed(seed: int, rows: int, rank: int) -> dict[str, Any]:
    """True distances, estimates, numbers stored and milliseconds per distance, by estimator."""
    import torch

    torch.set_num_threads(1)
    x, y = pictures("pool", 0, rows)
    model = train_mlp(x, y, seed, Recipe("distance", rows=rows, epochs=8))
    networks, clusters = perturbed(model, x, y, seed)
    found: dict[str, Any] = {"clusters": clusters, "distances": {}, "numbers": {}, "milliseconds": {}}
    with torch.no_grad():
        z = model(x)
        found["truth"] = [float(0.5 * (net(x) - z).square().sum(1).mean()) for net in networks]
    for name, (numbers, distance) in estimators(model, x, y, seed, rank).items():
        start = time.process_time()
        with torch.no_grad():
            found["distances"][name] = [float(distance(net)) for net in networks]
        found["milliseconds"][name] = (time.process_time() - start) / len(networks) * 1e3
        found["numbers"][name] = numbers
    return found


def perturbed(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
) -> tuple[list[nn.Module], list[str]]:
    """48 fine-tunes (8 tasks of permuted pixels, 1 to 24 SGD steps) and 20 noises, with their groups.

    Networks of one task lie on one path, so they are one group.
    """
    import torch

    networks, groups = [], []
    for task in range(TASKS):
        draw = rng(seed, "task", task)
        pixels = torch.from_numpy(draw.permutation(x.shape[1]))
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        for step in range(1, max(STEPS) + 1):
            rows = torch.from_numpy(draw.choice(len(x), 50, replace=False))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows][:, pixels]), y[rows]).backward()
            optimizer.step()
            if step in STEPS:
                networks.append(copy.deepcopy(net))
                groups.append(f"task {task}")
    for k, size in enumerate(NOISES):
        net, generator = copy.deepcopy(model), torch_generator(seed, "noise", k)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=float(size))
        networks.append(net)
        groups.append(f"noise {k}")
    return networks, groups


def estimators(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int, rank: int
) -> dict[str, tuple[int, Callable[[nn.Module], Any]]]:
    """Numbers stored and the distance, by estimator; all fitted on (x, y)."""
    from glasshouse.attribution.function_space_distance import (
        CoresetDistance,
        EWCDistance,
        FSDSketch,
        GGNDistance,
        L2Distance,
        NTKDistance,
    )

    data = x, y
    classes = FSDSketch(True, cov=rank).fit(model, data)
    alone = FSDSketch(cov="full").fit(model, data)
    own, all_in_one = "class-conditional", "global"

    def asked(sketch: Any, **how: Any) -> tuple[int, Callable[[nn.Module], Any]]:
        return sketch.numbers(), lambda net: sketch.distance(net, **how)

    drawn = {"n": 200, "seed": seed}
    return {
        f"deterministic, {own}": asked(classes),
        f"deterministic, {all_in_one}": asked(alone),
        f"published recursion, {own}": asked(classes, variant="reference"),
        f"stochastic, {own}, 200 draws": asked(classes, method="stochastic", **drawn),
        f"relu-gaussian, {own}, 200 draws": asked(classes, method="relu-gaussian", **drawn),
        f"{KEPT} stored examples": asked(CoresetDistance(KEPT, seed=seed).fit(model, data)),
        f"NTK on all {len(x):,} rows": asked(NTKDistance().fit(model, data)),
        "Gauss-Newton of outputs, EK-FAC": asked(GGNDistance(seed=seed).fit(model, data)),
        "diagonal Gauss-Newton of outputs": asked(GGNDistance("diagonal", seed=seed).fit(model, data)),
        "EWC, diagonal Fisher of the loss": asked(EWCDistance(seed=seed).fit(model, data)),
        "EWC, last batch (straw man)": asked(EWCDistance("last-batch", seed=seed).fit(model, data)),
        "L2 of parameters": asked(L2Distance().fit(model, data)),
    }
