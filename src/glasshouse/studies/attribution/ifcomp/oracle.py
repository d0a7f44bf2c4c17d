"""What training on one more labelled point really does, beside what the linear step says."""

from __future__ import annotations

from typing import Any

import numpy as np

from glasshouse.runtime.seeds import rng
from glasshouse.studies.attribution.ifcomp.measure import SAMPLES, Column
from glasshouse.studies.attribution.ifcomp.organism import grown, test_rows

LABELS = 10


def gains(
    column: Column, x: Any, *, steps: int, rate: float, momentum: float, weight: float, seed: int
) -> np.ndarray:
    """Rise of p(k|x) after `steps` of SGD on the data and (x, k), beyond that without (x, k), [n, 10].

    The batches of 50 rows are the same for every point and label; beside them the point counts `weight` times
    its share in the data. All labels of a point are trained side by side, as copies of the network.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    model = column.model
    start = {k: v.detach() for k, v in model.named_parameters()}
    batches = [
        torch.from_numpy(rng(seed, "oracle", s).choice(len(column.x), 50, replace=False))
        for s in range(steps)
    ]

    def loss(weights: Any, point: Any, label: Any, on: Any, bx: Any, by: Any) -> Any:
        z = functional_call(model, weights, (torch.cat([bx, point[None]]),))
        each = torch.nn.functional.cross_entropy(z, torch.cat([by, label[None]]), reduction="none")
        return each[:-1].mean() + on * each[-1]

    step = vmap(grad(loss), in_dims=(0, None, 0, 0, None, None))
    labels = torch.arange(LABELS + 1) % LABELS  # the last copy trains on the data alone
    on = torch.full((LABELS + 1,), weight / len(column.x))
    on[-1] = 0
    out = np.zeros((len(x), LABELS))
    for n, point in enumerate(x):
        weights = {k: v.expand(LABELS + 1, *v.shape).clone() for k, v in start.items()}
        speed = {k: torch.zeros_like(v) for k, v in weights.items()}
        for rows in batches:
            found = step(weights, point, labels, on, column.x[rows], column.y[rows])
            speed = {k: momentum * v + found[k] for k, v in speed.items()}
            weights = {k: v - rate * speed[k] for k, v in weights.items()}
        p = vmap(lambda w, point=point: functional_call(model, w, (point[None],)))(weights)[:, 0].softmax(1)
        out[n] = (p[torch.arange(LABELS), torch.arange(LABELS)] - p[-1]).double().numpy()
    return out


def oracle(
    name: str,
    seed: int,
    *,
    points: int = 30,
    steps: int = 20,
    rate: float = 0.02,
    momentum: float = 0.9,
    weight: float = 1.0,
) -> dict[str, Any]:
    """Gains [points, 10] of SGD as the README's recipe has it, and p_k norm_k beside them."""
    from glasshouse.attribution.ifcomp import IFComp

    column = grown(name, seed)
    x, _ = test_rows()
    at = np.sort(rng(seed, "oracle points").choice(len(x), points, replace=False))
    asked = x[at]
    true = gains(column, asked, steps=steps, rate=rate, momentum=momentum, weight=weight, seed=seed)
    told = {}
    for key, options in {
        # Descent for a time t leaves directions of curvature below 1 / t as they are: that is a damping.
        "EK-FAC": {"damping": (1 - momentum) / (rate * steps)},
        "EK-FAC, usual damping": {},
        "EK-FAC, T=1000": {"temperature": 1000.0},
        "identity": {"strategy": "identity"},
    }.items():
        method = IFComp(**{"temperature": 1.0, "samples": SAMPLES, **options})
        found = method.fit(column.model, (column.x, column.y)).complexity(asked)
        told[key] = found.proba * found.norms
    told["other points"] = told["EK-FAC"][rng(seed, "other points").permutation(points)]
    return {
        "seed": seed,
        "column": name,
        "gain": true.tolist(),
        "told": {key: value.tolist() for key, value in told.items()},
    }
