"""Fashion-MNIST, 800 images, MLP 784-64-64-10: retraining on subsets, and the proximal Bregman response."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from glasshouse.attribution.evaluate import RetrainBank

TRAIN, QUERIES, EPOCHS, BATCH, RATE = 800, 60, 30, 50, 0.02


def data_file() -> Path | None:
    """The real images, where GLASSHOUSE_DATA points at them."""
    root = os.environ.get("GLASSHOUSE_DATA")
    path = Path(root) / "fashion-mnist" / "fashion_mnist_subset.npz" if root else None
    return path if path is not None and path.exists() else None


def images() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(train images, labels), (query images, labels); pixels normalised, flattened."""
    import torch

    path = data_file()
    assert path is not None
    stored = np.load(path, allow_pickle=False)

    def part(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = stored[f"{name}_images"][:count].reshape(count, -1).astype(np.float32) / 255
        labels = stored[f"{name}_labels"][:count].astype(np.int64)
        return torch.from_numpy((pixels - 0.2861) / 0.353), torch.from_numpy(labels)

    return part("pool", TRAIN), part("eval", QUERIES)


def train_mlp(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """SGD, rate 0.02, momentum 0.9, weight decay 1e-4, batch 50, 30 epochs: converged."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    with seeded(seed, "mlp"):
        model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    for epoch in range(EPOCHS):
        order = torch.from_numpy(rng(seed, "mlp", epoch).permutation(len(x)))
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Log-odds of the true label, log p - log(1 - p), [Q]."""
    import torch

    with torch.no_grad():
        z = model(x)
        own = z.gather(1, y[:, None]).squeeze(1)
        others = z.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return (own - others).double().numpy()


def retrain_bank(subsets: int, seeds: int, store: Path, say: Callable[[str], None]) -> RetrainBank:
    """`subsets` x `seeds` models on random halves; resumable, about 0.7 CPU seconds a model."""
    from glasshouse.attribution.evaluate import RetrainBank

    (x, y), (qx, qy) = images()
    done = 0

    def measure(rows: list[int], seed: int) -> np.ndarray:
        nonlocal done
        done += 1
        if done % 20 == 0:
            say(f"bank: {done} models trained")
        return margins(train_mlp(x[rows], y[rows], seed), qx, qy)

    return RetrainBank.build(measure, TRAIN, subsets=subsets, seeds=seeds, store=store)


def lds_all(bank: RetrainBank, seed: int = 0) -> dict[str, Any]:
    """LDS per query of each method on one model, and of EK-FAC on a model whose weights were shuffled."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.evaluate import randomised
    from glasshouse.attribution.evaluate.lds import lds_by_query

    (x, y), query = images()
    model = train_mlp(x, y, seed)
    found: dict[str, Any] = {}
    for name, options in {
        "identity": {"strategy": "identity"},
        "diagonal": {"strategy": "diagonal"},
        "kfac": {"strategy": "kfac"},
        "ekfac": {},
        "ekfac, damping 1e-8": {"damping": 1e-8},
    }.items():
        table = EKFAC(seed=seed, **options).fit(model, (x, y)).score(query, "margin")  # type: ignore[arg-type]
        found[name] = lds_by_query(table.scores, bank).tolist()
    shuffled = EKFAC(seed=seed).fit(randomised(model), (x, y)).score(query, "margin")
    found["ekfac, shuffled weights"] = lds_by_query(shuffled.scores, bank).tolist()
    found["representation"] = lds_by_query(_representation(model, x, query[0], y, query[1]), bank).tolist()
    return found


def _representation(
    model: Any, x: torch.Tensor, qx: torch.Tensor, y: torch.Tensor, qy: torch.Tensor
) -> np.ndarray:
    """Cosine of last hidden layers, positive for the same label: the plain similarity baseline."""
    import torch

    with torch.no_grad():
        a, b = (torch.nn.functional.normalize(model[:-1](part), dim=1) for part in (qx, x))
    return ((a @ b.T) * (2.0 * (qy[:, None] == y[None]).float() - 1)).numpy()


def pbrf_seed(seed: int, points: int, iterations: int) -> dict[str, Any]:
    """Spearman over `points` training rows of EK-FAC and of identity with the exact response, per query."""
    from scipy.stats import spearmanr

    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.ekfac import pbrf_influence
    from glasshouse.attribution.objectives import measure
    from glasshouse.attribution.units import as_units

    (x, y), query = images()
    model = train_mlp(x, y, seed)
    rows = sorted(rng(seed, "pbrf points").choice(TRAIN, points, replace=False).tolist())
    method = EKFAC(seed=seed).fit(model, (x, y))
    truth = pbrf_influence(method, as_units(query), rows, measure("margin"), iterations=iterations)
    tables = {
        "ekfac": method.score(query, "margin").scores[:, rows],
        "identity": EKFAC("identity").fit(model, (x, y)).score(query, "margin").scores[:, rows],
    }
    found: dict[str, Any] = {
        name: [float(spearmanr(a, b)[0]) for a, b in zip(scores, truth.scores, strict=True)]
        for name, scores in tables.items()
    }
    draw = rng(seed, "pbrf control")
    found["permuted"] = [
        float(np.mean([spearmanr(draw.permutation(a), b)[0] for _ in range(50)]))
        for a, b in zip(tables["ekfac"], truth.scores, strict=True)
    ]
    found["residual_median"] = float(np.median(truth.residual))
    found["residual_max"] = float(truth.residual.max())
    return found
