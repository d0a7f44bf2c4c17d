"""What the similarity baselines have in common: the call, the table, the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import as_mapper, versions
from glasshouse.attribution.manifests import read_manifest
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.store import Mapper, Store
from glasshouse.runtime.errors import InputError, NumericalError, StaleError

Metric = Literal["cosine", "dot"]
Agg = Literal["each", "mean"]

CONVENTION = "similarity: higher = more alike; no predicted change of a measurement, no scale"


class Similarity:
    """What the three have in common: the call, the table, the files."""

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    FITTED: ClassVar[str] = "features_"

    def bind(self, subject: Any, train_data: Any, *, objective: Any = None) -> Self:
        """Check subject and data and stop there."""
        self._check_options()
        self._bind(subject, train_data)
        return self

    def score(
        self,
        queries: Any,
        measurement: Any = "auto",
        *,
        query_agg: Agg = "each",
        top_k: int | None = None,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Similarities `[Q, N]` of training rows (or of `candidates`) and queries, float32.

        `measurement` is taken so that methods can be exchanged, and ignored: a similarity knows of none.
        `query_agg` "mean" averages over queries.
        """
        self._check_fitted()
        check_choice("query_agg", query_agg, Agg)
        with clocked(self.seconds_, "scores"):
            values, query_ids, row_ids = self._compare(queries, candidates, as_mapper(executor), store)
        if not np.isfinite(values).all():
            raise NumericalError("similarities hold NaN or infinity", fix="use another site or metric")
        if query_agg == "mean":
            values, query_ids = values.mean(0, keepdims=True), ("mean",)
        meta = {**self._manifest(), "convention": CONVENTION, "query_agg": query_agg, "unit": "row"}
        table = ScoreTable(values.astype(np.float32), query_ids, row_ids, meta)
        return table if top_k is None else table.keep_top(top_k)

    # ── for subclasses ───────────────────────────────────────────────────────

    def _check_options(self) -> None:
        raise NotImplementedError

    def _bind(self, subject: Any, train_data: Any) -> None:
        raise NotImplementedError

    def _compare(
        self, queries: Any, candidates: Any, mapper: Mapper, store: Path | str | None
    ) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
        raise NotImplementedError

    def _about(self) -> dict[str, Any]:
        """Hashes of what was fitted: `model_hash`, `data_hash`, `n_train`."""
        raise NotImplementedError

    def _manifest(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.OPTIONS}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        made = {"method": type(self).__name__, "versions": versions(type(self).__module__)}
        return {"options": plain, **made, **self._about()}

    def _check_fitted(self) -> None:
        if not hasattr(self, self.FITTED):
            raise InputError("it is not fitted", where=type(self).__name__, fix="call fit() first")

    def _store(self, folder: Path | str | None, stage: str, rows: str) -> Store | None:
        if folder is None:
            return None
        return Store(Path(folder) / stage, {"stage": stage, "rows": rows, **self._manifest()})

    @classmethod
    def _reopened(cls, folder: Path, subject: Any, train_data: Any) -> Self:
        """Options and binding of what was saved; StaleError for another model or other rows."""
        manifest = read_manifest(folder)
        method = cls(**manifest["options"]).bind(subject, train_data)
        now = method._about()
        for name in ("model_hash", "encoder", "data_hash"):
            if manifest.get(name) != now.get(name):
                what = name.split("_")[0]
                raise StaleError(f"its {what} is another one", where=str(folder), fix="fit again")
        method.seconds_ = {}
        return method

    seconds_: dict[str, float]


def comparable(features: Tensor, ids: Sequence[str], metric: Metric) -> Tensor:
    """Finite features, of unit length for the cosine; NumericalError naming the first bad row."""
    bad = (~torch.isfinite(features).all(1)).nonzero().flatten().tolist()
    if bad:
        raise NumericalError("its vector holds NaN or infinity", where=f"row {ids[bad[0]]!r}",
                             fix="remove the row, or repair the checkpoint")  # fmt: skip
    if metric == "dot":
        return features
    norms = features.norm(dim=1, keepdim=True)
    zero = (norms.flatten() == 0).nonzero().flatten().tolist()
    if zero:
        raise NumericalError("its vector is zero and has no direction", where=f"row {ids[zero[0]]!r}",
                             fix='use metric="dot", or another site')  # fmt: skip
    return features / norms
