"""Fashion-MNIST and the MLP 784-64-64-10: organisms on which scores are checked by retraining.

Two recipes, the same for every method: `CONVERGED` and `NOISY` (30% wrong labels, three epochs). Their
retrain banks are shared by all studies through the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glasshouse.runtime.seeds import rng, seeded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.studies._lab import Lab

    Labelled = tuple[torch.Tensor, torch.Tensor]

QUERIES = 60


@dataclass(frozen=True)
class Recipe:
    """SGD on `rows` images; `noise` is the share of wrong labels."""

    name: str
    rows: int = 800
    epochs: int = 30
    batch: int = 50
    rate: float = 0.02
    momentum: float = 0.9
    decay: float = 1e-4
    noise: float = 0.0


CONVERGED = Recipe("converged")
NOISY = Recipe("noisy", epochs=3, noise=0.3)

OnStep = Callable[["nn.Module", int], None]
"""Called with the model and the number of steps done, before the first step and after each."""


def data_file() -> Path | None:
    """The real images, where GLASSHOUSE_DATA points at them."""
    root = os.environ.get("GLASSHOUSE_DATA")
    path = Path(root) / "fashion-mnist" / "fashion_mnist_subset.npz" if root else None
    return path if path is not None and path.exists() else None


def pictures(part: str, start: int, count: int) -> Labelled:
    """Rows `start` to `start + count` of `pool` or `eval`: pixels [n, 784], normalised, and labels [n]."""
    import torch

    path = data_file()
    assert path is not None
    stored, at = np.load(path, allow_pickle=False), slice(start, start + count)
    pixels = stored[f"{part}_images"][at].reshape(count, -1).astype(np.float32) / 255
    return torch.from_numpy((pixels - 0.2861) / 0.353), torch.from_numpy(
        stored[f"{part}_labels"][at].astype(np.int64)
    )


def train_rows(recipe: Recipe) -> tuple[Labelled, np.ndarray]:
    """The recipe's training rows, and which of them [N] carry a wrong label (drawn once, seed 0)."""
    import torch

    x, y = pictures("pool", 0, recipe.rows)
    draw = rng(0, "label noise", recipe.rows)
    wrong = draw.random(recipe.rows) < recipe.noise
    shift = torch.from_numpy(np.where(wrong, draw.integers(1, 10, recipe.rows), 0))
    return (x, (y + shift) % 10), wrong


def queries(count: int = QUERIES) -> Labelled:
    """Held-out images and their true labels."""
    return pictures("eval", 0, count)


def train_mlp(
    x: torch.Tensor, y: torch.Tensor, seed: int, recipe: Recipe = CONVERGED, on_step: OnStep | None = None
) -> nn.Module:
    """An MLP trained by `recipe` on the given rows, in eval mode; `seed` decides weights and order."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    with seeded(seed, "mlp"):
        model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay
    )
    done = 0
    if on_step is not None:
        on_step(model, done)
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(rng(seed, "mlp", epoch).permutation(len(x)))
        for rows in order.split(recipe.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            done += 1
            if on_step is not None:
                on_step(model, done)
    return model.eval()


def margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Log-odds of the true label, log p - log(1 - p), [Q]."""
    import torch

    with torch.no_grad():
        z = model(x)
        own = z.gather(1, y[:, None]).squeeze(1)
        others = z.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return (own - others).double().numpy()


def shared_bank(lab: Lab, recipe: Recipe, *, subsets: int = 60, seeds: int = 2) -> RetrainBank:
    """`subsets` x `seeds` models of `recipe` on random halves, measured by the margins of `queries()`.

    Made once for all studies and kept in the cache; while it is made its parts lie in the run's folder, so
    that a killed study goes on. About 0.7 CPU seconds a converged model.
    """
    from glasshouse.attribution.evaluate import RetrainBank
    from glasshouse.runtime.codeversion import code_version

    def build(folder: Path) -> None:
        (x, y), _ = train_rows(recipe)
        qx, qy = queries()
        done = 0

        def measure(rows: list[int], seed: int) -> np.ndarray:
            nonlocal done
            done += 1
            if done % 20 == 0:
                lab.progress.say(
                    f"bank of the {recipe.name} recipe: {done} of {subsets * seeds} models trained"
                )
            return margins(train_mlp(x[rows], y[rows], seed, recipe), qx, qy)

        store = lab.run.folder(f"bank-{recipe.name}")
        RetrainBank.build(measure, recipe.rows, subsets=subsets, seeds=seeds, store=store).save(folder)

    args = {"recipe": asdict(recipe), "subsets": subsets, "seeds": seeds}
    return RetrainBank.load(lab.cache.fetch("retrain-bank", args, build, code=code_version(train_mlp)))
