"""`RepresentationSimilarity`: rows whose hidden states look like the query's.

It follows no gradient and predicts no change: a score is a similarity, and its sign and scale mean nothing
else. Rows that look like the query often, but not always, made the model answer it; what influence methods
add is measured against this.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import as_mapper, at_least_one
from glasshouse.attribution.comparing import Metric, Similarity, comparable
from glasshouse.attribution.reading import hidden_shard, reading_site
from glasshouse.attribution.stages import fitting, guards
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.store import Mapper, Store, gathered, read_tensors, write_tensors
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

Pooling = Literal["last", "mean"]
Labels = Literal["ignore", "sign"]

SHARD_TOKENS = 1 << 16


class RepresentationSimilarity(Similarity):
    """Cosine (or dot product) of hidden states of rows and queries.

    Options: `site`, a site of the subject for token rows ("auto": the output of the final norm), for other
    modules the name of a module whose *input* is read ("auto": the last Linear layer); `pooling` last | mean
    over the tokens of a row (padding never counts); `metric` cosine | dot; `labels` ignore | sign (classes
    only: similarities of rows with another label than the query's are turned negative); `batch_tokens`,
    `batch_rows`, `shards` bound a batch and a pass and change nothing else.

    Learned: `features_` [N, d], `train_`, `model_hash_`, `site_`, `seconds_`.

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> RepresentationSimilarity().fit(model, (X, y)).score((X[:2], y[:2])).top(0, 1)[0][0]
    '0'
    """

    OPTIONS = ("site", "pooling", "metric", "labels", "batch_tokens", "batch_rows", "shards")

    def __init__(
        self,
        site: str = "auto",
        *,
        pooling: Pooling = "last",
        metric: Metric = "cosine",
        labels: Labels = "ignore",
        batch_tokens: int = 8192,
        batch_rows: int = 512,
        shards: int | None = None,
    ) -> None:
        self.site, self.pooling, self.metric, self.labels = site, pooling, metric, labels
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> RepresentationSimilarity:
        """Read the hidden state of every row, one forward pass; with a `store` a killed fit goes on.

        Raises InputError for an unknown site, NumericalError naming a row whose state is not finite (or, for
        the cosine, zero).
        """
        self.bind(subject, train_data)
        self.seconds_ = {}
        with clocked(self.seconds_, "features"):
            kept = self._store(store, "fit", self.train_.sha256)
            self.features_ = self._read(self.train_, as_mapper(executor), kept)
        return self

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of the forward passes and bytes of the features, before anything runs."""
        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        P = float(sum(p.numel() for p in self.model_.parameters()))
        T, N = float(sum(rows.sizes)), len(rows)
        width = float(getattr(getattr(self.model_, "config", None), "hidden_size", 0) or _widest(self.model_))
        return {
            "covariance": 2 * P * T, "eigen": 0.0, "lambda": 0.0,
            "scores": 2 * P * T / N * queries + 2 * queries * N * width,
            "factor_bytes": 4 * N * width, "query_bytes": 4 * queries * width,
        }  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write the features, then `manifest.json`."""
        self._check_fitted()
        write_tensors(Path(folder) / "features.safetensors", {"features": self.features_}, {})
        files.write_json(Path(folder) / "manifest.json", self._manifest())
        return Path(folder)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None
    ) -> RepresentationSimilarity:
        """What `save` wrote; StaleError for another model or other rows."""
        method = cls._reopened(Path(folder), subject, train_data)
        method.features_ = read_tensors(Path(folder) / "features.safetensors")[0]["features"]
        return method

    def _check_options(self) -> None:
        for name, allowed in (("pooling", Pooling), ("metric", Metric), ("labels", Labels)):
            check_choice(name, getattr(self, name), allowed)
        for name in ("batch_tokens", "batch_rows", "shards"):
            at_least_one(name, getattr(self, name))

    def _bind(self, subject: Any, train_data: Any) -> None:
        self.model_, self._tokenizer = guards.unwrap(subject)
        self.train_ = as_units(train_data, tokenizer=self._tokenizer)
        self.model_hash_ = guards.model_hash(subject)
        self.site_ = reading_site(self.model_, self.train_, self.site)
        if self.labels == "sign":
            _classes(self.train_)

    def _about(self) -> dict[str, Any]:
        return {
            "model_hash": self.model_hash_, "data_hash": self.train_.sha256, "n_train": len(self.train_),
            "modules": [self.site_],
        }  # fmt: skip

    def _read(self, rows: Units, mapper: Mapper, kept: Store | None) -> Tensor:
        limits = self.batch_tokens, self.batch_rows
        fn = partial(hidden_shard, self.model_, rows, self.site_, self.pooling, limits)
        shards = fitting.split(rows, list(range(len(rows))), self.shards, SHARD_TOKENS)
        parts = gathered("hidden", fn, shards, mapper, kept)
        return comparable(torch.cat([part["hidden"] for part in parts]), rows.ids, self.metric)

    def _compare(
        self, queries: Any, candidates: Any, mapper: Mapper, store: Path | str | None
    ) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
        asked = as_units(queries, tokenizer=self._tokenizer)
        rows, features = self.train_, self.features_
        if candidates is not None:
            rows = as_units(candidates, tokenizer=self._tokenizer)
            features = self._read(rows, mapper, self._store(store, "score", rows.sha256))
        values = (self._read(asked, as_mapper(None), None) @ features.T).numpy()
        if self.labels == "sign":
            same = _classes(asked)[:, None] == _classes(rows)[None]
            values = values * (2.0 * same.numpy() - 1)
        return values, tuple(asked.ids), tuple(rows.ids)


def _classes(units: Units) -> Tensor:
    """Labels [N] of rows of classes. Raises InputError for others."""
    targets = getattr(units, "targets", None)
    if targets is None or targets.ndim != 1 or targets.is_floating_point():
        raise InputError('labels="sign" needs one class label a row', fix='use labels="ignore"')
    return targets.cpu()


def _widest(model: Any) -> int:
    return max((p.shape[-1] for p in model.parameters() if p.ndim > 1), default=1)
