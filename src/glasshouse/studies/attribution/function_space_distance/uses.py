"""What a distance is good for: which layers a fine-tune moved, and which rows carry a wrong label."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng, seeded
from glasshouse.studies.attribution.fashion import Recipe, pictures, train_mlp, train_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    Labelled = tuple[torch.Tensor, torch.Tensor]

DEPTH = 6
TUNED = {"steps": 20, "rate": 0.002}
"""A fine-tune that leaves the network within the distances of the accuracy table, nearly."""
MISLABELLED = Recipe("mislabelled", epochs=4, noise=0.2)
EXACT_ROWS = 400


def audit_seed(seed: int, rows: int, rank: int) -> dict[str, Any]:
    """Kendall correlation of layers' distances with the true ones after a class was added, by ranking."""
    import torch
    from scipy.stats import kendalltau

    from glasshouse.attribution.function_space_distance import CoresetDistance, FSDSketch, L2Distance

    torch.set_num_threads(1)
    x, y = pictures("pool", 0, rows)
    new = y == seed % 10
    known = x[~new], y[~new]
    model = _deep(seed)
    _train(model, known, 300, 0.02, seed)
    some = torch.cat([new.nonzero()[:, 0], (~new).nonzero()[: int(new.sum()), 0]])
    tuned = copy.deepcopy(model)
    _train(tuned, (x[some], y[some]), TUNED["steps"], TUNED["rate"], seed + 1)
    truth = CoresetDistance(None).fit(model, known).breakdown(tuned)
    sketch = FSDSketch(True, cov=rank).fit(model, known)
    found = {
        "sketch": sketch.breakdown(tuned).values,
        "relu-gaussian, 200 draws": sketch.breakdown(tuned, "relu-gaussian", seed=seed).values,
        "40 stored examples": CoresetDistance(seed=seed).fit(model, known).breakdown(tuned).values,
        "L2 of parameters": L2Distance().fit(model, known).breakdown(tuned).values,
        "random order": rng(seed, "order").random(len(truth.values)),
    }
    kendall = {name: float(kendalltau(values, truth.values)[0]) for name, values in found.items()}
    return {"kendall": kendall, "truth": list(truth.values), "sketch": list(found["sketch"])}


def mislabel_seed(seed: int, rank: int, draws: int) -> dict[str, Any]:
    """Spearman with the exact self-influence and AUROC of mislabelled rows, by score."""
    import torch
    from scipy.stats import spearmanr

    from glasshouse.attribution.evaluate import randomised
    from glasshouse.attribution.function_space_distance import FSDInfluence, FSDSketch
    from glasshouse.statistics import auroc

    torch.set_num_threads(1)
    (x, y), wrong = train_rows(MISLABELLED)
    model = train_mlp(x, y, seed, MISLABELLED)
    sketch = FSDSketch(True, cov=rank).fit(model, (x, y))
    real = torch.from_numpy(rng(seed, "real rows").choice(len(x), EXACT_ROWS, replace=False))
    exact = FSDInfluence(sketch, inputs=x[real])
    found = {"with data": exact.self_influence((x, y))}
    same = exact.damping_  # the damping is one question, the source of H another
    found["sketch"] = FSDInfluence(sketch, draws=draws, damping=same, seed=seed).self_influence((x, y))
    alone = FSDSketch(cov=4 * rank).fit(model, (x, y))
    found["sketch without classes"] = FSDInfluence(
        alone, draws=draws, damping=same, seed=seed
    ).self_influence((x, y))
    shuffled = FSDSketch(True, cov=rank).fit(randomised(model), (x, y))
    found["shuffled weights"] = FSDInfluence(shuffled, draws=draws, seed=seed).self_influence((x, y))
    with torch.no_grad():
        found["loss"] = torch.nn.functional.cross_entropy(model(x), y, reduction="none").numpy()
    return {
        "spearman": {name: float(spearmanr(v, found["with data"])[0]) for name, v in found.items()},
        "auroc": {name: auroc(v[wrong], v[~wrong]).value for name, v in found.items()},
    }


def _deep(seed: int) -> nn.Module:
    from torch import nn

    with seeded(seed, "deep"):
        layers: list[nn.Module] = [nn.Linear(784, 64)]
        for width in [64] * (DEPTH - 1) + [10]:
            layers += [nn.ReLU(), nn.Linear(64, width)]
        return nn.Sequential(*layers).eval()


def _train(model: nn.Module, data: Labelled, steps: int | float, rate: float, seed: int) -> None:
    import torch

    x, y = data
    draw = rng(seed, "steps", len(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(int(steps)):
        rows = torch.from_numpy(np.sort(draw.choice(len(x), 50, replace=False)))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
