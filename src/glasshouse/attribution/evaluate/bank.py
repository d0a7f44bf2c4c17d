"""A bank of models retrained on random subsets, kept as measurements rather than models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.runtime.seeds import derive, rng

TrainFn = Callable[[list[int], int], "NDArray[np.floating]"]
"""`train_fn(rows, seed) -> f [Q]`: train on these rows and measure every query."""


@dataclass(frozen=True)
class RetrainBank:
    """`masks` [m, N] bool (rows kept) and `values` [m, R, Q]: measurements of R seeds a subset."""

    masks: NDArray[np.bool_]
    values: NDArray[np.float64]

    @classmethod
    def build(
        cls,
        train_fn: TrainFn,
        n: int,
        *,
        subsets: int = 100,
        alpha: float = 0.5,
        seeds: int = 5,
        seed: int = 0,
        store: Path | str | None = None,
    ) -> RetrainBank:
        """Retrain `subsets * seeds` times on `round(alpha n)` rows; with a `store` folder, resumable.

        `train_fn(rows, seed)` must depend on its arguments only; keep its epochs fixed (half the rows then
        take half the steps). Raises InputError for subsets that are empty or everything, NumericalError
        naming subset and seed when a measurement is not finite, StaleError for another bank's folder.
        """
        size = round(alpha * n)
        if not 0 < size < n or subsets < 2 or seeds < 1:
            raise InputError(
                f"{subsets} subsets of {size} of {n} rows with {seeds} seeds", fix="use 0 < alpha < 1"
            )
        masks = np.zeros((subsets, n), dtype=bool)
        for j in range(subsets):
            masks[j, rng(seed, "subset", j).choice(n, size, replace=False)] = True
        folder = _open(store, {"n": n, "subsets": subsets, "alpha": alpha, "seeds": seeds, "seed": seed})
        values = []
        for j in range(subsets):
            rows = np.flatnonzero(masks[j]).tolist()
            values.append([_one(train_fn, rows, seed, j, r, folder) for r in range(seeds)])
        return cls(masks, np.array(values))

    def save(self, folder: Path | str) -> Path:
        """Write `masks.npy` and `values.npy` into `folder`, each atomically; returns the folder."""
        for name, array in (("masks", self.masks), ("values", self.values)):
            _write(Path(folder) / f"{name}.npy", array)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> RetrainBank:
        """What `save` wrote. Raises InputError where there is none."""
        try:
            parts = [
                np.load(Path(folder) / f"{name}.npy", allow_pickle=False) for name in ("masks", "values")
            ]
        except (OSError, ValueError) as error:
            raise InputError(f"it holds no bank ({error})", where=str(folder)) from error
        return cls(*parts)

    @property
    def means(self) -> NDArray[np.float64]:
        """Measurements averaged over seeds, `[m, Q]`."""
        return self.values.mean(1)


def _open(store: Path | str | None, about: dict[str, float]) -> Path | None:
    if store is None:
        return None
    manifest = Path(store) / "bank.json"
    if manifest.exists() and files.read_json(manifest) != about:
        raise StaleError("it holds another bank", where=str(store), fix="choose an empty folder")
    if not manifest.exists():
        files.write_json(manifest, about)
    return Path(store)


def _one(
    train_fn: TrainFn, rows: list[int], seed: int, j: int, r: int, folder: Path | None
) -> NDArray[np.float64]:
    path = folder / f"f-{j:04d}-{r:02d}.npy" if folder is not None else None
    if path is not None and path.exists():
        return np.asarray(np.load(path, allow_pickle=False))
    f = np.asarray(train_fn(rows, derive(seed, "train", j, r)), dtype=np.float64)
    if f.ndim != 1 or not np.isfinite(f).all():
        raise NumericalError(
            "a measurement is not finite", where=f"subset {j}, seed {r}", fix="lower the rate"
        )
    if path is not None:
        _write(path, f)
    return f


def _write(path: Path, array: NDArray[Any]) -> None:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    files.write_bytes(path, buffer.getvalue())
