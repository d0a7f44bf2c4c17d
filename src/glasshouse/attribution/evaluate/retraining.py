"""Retraining without some rows: the ground truth of leave-some-out and of brittleness.

Each removal is trained once per seed, under the same seeds as every other, and kept as measurements; with a
store folder a killed evaluation goes on, and two evaluations of one training function share their models.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.bank import TrainFn
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.runtime.seeds import derive


class Retrainings:
    """Measurements `[R, Q]` of models trained without given rows.

    `train_fn(rows, seed)` trains on these rows and measures every query, `[Q]` (or several measurements
    `[k, Q]`, of which `of` chooses); it must depend on its arguments only. `n` rows in all, `seeds` models
    per removal. `name` says which training function it is: a `store` folder made for another one is refused
    with StaleError.
    """

    def __init__(
        self,
        train_fn: TrainFn,
        n: int,
        *,
        seeds: int = 3,
        seed: int = 0,
        store: Path | str | None = None,
        name: str = "",
    ) -> None:
        if n < 2 or seeds < 1:
            raise InputError(f"{seeds} seeds of {n} rows", fix="give at least one seed and two rows")
        self.train_fn, self.n, self.seeds, self.seed = train_fn, n, seeds, seed
        self.folder = Path(store) if store is not None else None
        self._index, self._count = 0, [0]
        self._kept: dict[str, NDArray[np.float64]] = {}
        if self.folder is not None:
            _claim(self.folder, {"n": n, "seed": seed, "name": name})

    @property
    def trained(self) -> int:
        """Models trained so far; those that lay in the store do not count."""
        return self._count[0]

    def of(self, index: int) -> Retrainings:
        """The same models, seen by measurement number `index` of `[k, Q]`."""
        view = copy.copy(self)
        view._index = index
        return view

    def without(self, removed: Sequence[int]) -> NDArray[np.float64]:
        """`[R, Q]` without the rows `removed`, in any order.

        Raises InputError for rows that are not there or if none would be left, NumericalError when a
        measurement is not finite.
        """
        gone = sorted({int(i) for i in removed})
        if gone and (gone[0] < 0 or gone[-1] >= self.n):
            raise InputError(f"there is no row {gone[0] if gone[0] < 0 else gone[-1]} of {self.n}")
        if len(gone) == self.n:
            raise InputError("no row would be left to train on", fix="remove fewer")
        return np.stack([np.atleast_2d(self._one(gone, r))[self._index] for r in range(self.seeds)])

    def _one(self, gone: list[int], r: int) -> NDArray[np.float64]:
        key = f"{hashlib.sha256(repr(gone).encode()).hexdigest()[:24]}-{r:02d}"
        path = self.folder / f"without-{key}.npy" if self.folder is not None else None
        if key not in self._kept and path is not None and path.exists():
            self._kept[key] = np.asarray(np.load(path, allow_pickle=False))
        if key not in self._kept:
            self._kept[key] = self._train(gone, r)
            if path is not None:
                buffer = BytesIO()
                np.save(buffer, self._kept[key], allow_pickle=False)
                files.write_bytes(path, buffer.getvalue())
        return self._kept[key]

    def _train(self, gone: list[int], r: int) -> NDArray[np.float64]:
        dropped = set(gone)
        rows = [i for i in range(self.n) if i not in dropped]
        # The seed does not depend on the removal: what two removals share cancels in their difference.
        f = np.asarray(self.train_fn(rows, derive(self.seed, "retrain", r)), dtype=np.float64)
        self._count[0] += 1
        if f.ndim not in (1, 2) or not np.isfinite(f).all():
            raise NumericalError(
                "a measurement is not finite",
                where=f"{len(gone)} rows removed, seed {r}",
                fix="lower the rate",
            )
        return f


def counts(ks: Sequence[float], n: int) -> list[int]:
    """Numbers of rows: counts as they are, shares below 1 of `n` rounded; rising. InputError for others."""
    found = [round(k * n) if 0 < k < 1 else int(k) for k in ks]
    if not found or found[0] < 1 or found[-1] >= n or any(b <= a for a, b in pairwise(found)):
        raise InputError(f"k is {list(ks)} for {n} rows", fix="give rising counts, or shares below 1")
    return found


def ranking(scores: NDArray[np.floating], allowed: NDArray[np.bool_] | None = None) -> list[int]:
    """Row numbers, highest score first, ties in row order; only `allowed` rows."""
    order = [int(i) for i in np.argsort(-scores, kind="stable")]
    return order if allowed is None else [i for i in order if allowed[i]]


def _claim(folder: Path, about: dict[str, object]) -> None:
    manifest = folder / "retrainings.json"
    if manifest.exists() and files.read_json(manifest) != about:
        raise StaleError(
            "it holds retrainings of another kind", where=str(folder), fix="choose an empty folder"
        )
    if not manifest.exists():
        files.write_json(manifest, about)
