"""`EmbeddingSimilarity` and `BM25`: rows whose text looks like the query's, whatever the model learned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import as_mapper, at_least_one
from glasshouse.attribution.bm25 import bm25_scores
from glasshouse.attribution.comparing import Metric, Similarity, comparable
from glasshouse.attribution.reading import Texts, as_texts, embed_shard
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.store import Mapper, Store, gathered, read_tensors, write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

SHARD_TEXTS = 512


class EmbeddingSimilarity(Similarity):
    """Cosine (or dot product) of sentence vectors: what the texts say, whatever the model makes of them.

    Options: `encoder`, a folder that transformers opens as an encoder, None for all-MiniLM-L6-v2 of the extra
    `glasshouse[embed]`; `metric`; `batch_tokens` padded tokens a batch. Data are texts, Records, or TokenRows
    (these need the subject's tokenizer); the subject itself is not run and may be None.

    Learned: `features_` [N, d] float32, `texts_` (ids and texts), `encoder_` (its name and hash), `seconds_`.
    """

    OPTIONS = ("encoder", "metric", "batch_tokens")

    def __init__(
        self, encoder: Path | str | None = None, *, metric: Metric = "cosine", batch_tokens: int = 8192
    ) -> None:
        self.encoder, self.metric, self.batch_tokens = encoder, metric, batch_tokens

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> EmbeddingSimilarity:
        """Embed every row; with a `store` a killed fit goes on. Raises AnnotatorUnavailable (an AccessError)
        when there is no encoder: nothing falls back to another one.
        """
        self.bind(subject, train_data)
        self.seconds_ = {}
        with clocked(self.seconds_, "features"):
            kept = self._store(store, "fit", self.texts_.sha256)
            self.features_ = self._embed(self.texts_, as_mapper(executor), kept)
        return self

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of the encoder (22 million weights if it is the default) and bytes, from text lengths."""
        texts = self.texts_ if train is None else as_texts(train, self._tokenizer)
        weights, width = 2.2e7, 384.0
        tokens = sum(len(t) for t in texts.texts) / 4
        return {
            "covariance": 2 * weights * tokens, "eigen": 0.0, "lambda": 0.0,
            "scores": 2 * weights * tokens / len(texts) * queries + 2 * queries * len(texts) * width,
            "factor_bytes": 4 * len(texts) * width, "query_bytes": 4 * queries * width,
        }  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write the vectors, then `manifest.json`."""
        self._check_fitted()
        write_tensors(Path(folder) / "features.safetensors", {"features": self.features_}, {})
        files.write_json(Path(folder) / "manifest.json", self._manifest())
        return Path(folder)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None
    ) -> EmbeddingSimilarity:
        """What `save` wrote; StaleError for another encoder or other rows."""
        method = cls._reopened(Path(folder), subject, train_data)
        method.features_ = read_tensors(Path(folder) / "features.safetensors")[0]["features"]
        return method

    def _check_options(self) -> None:
        check_choice("metric", self.metric, Metric)
        at_least_one("batch_tokens", self.batch_tokens)

    def _bind(self, subject: Any, train_data: Any) -> None:
        from glasshouse.annotators.embedding import Encoder

        self._tokenizer = getattr(subject, "tokenizer", None)
        self.texts_ = as_texts(train_data, self._tokenizer)
        self.encoder_ = Encoder(self.encoder).name

    def _about(self) -> dict[str, Any]:
        return {
            "model_hash": None, "encoder": self.encoder_,
            "data_hash": self.texts_.sha256, "n_train": len(self.texts_),
        }  # fmt: skip

    def _embed(self, texts: Texts, mapper: Mapper, kept: Store | None) -> Tensor:
        fn = partial(embed_shard, self.encoder, texts.texts, self.batch_tokens)
        at = list(range(len(texts)))
        shards = [at[k : k + SHARD_TEXTS] for k in range(0, len(at), SHARD_TEXTS)]
        parts = gathered("vectors", fn, shards, mapper, kept)
        return comparable(torch.cat([part["vectors"] for part in parts]), texts.ids, self.metric)

    def _compare(
        self, queries: Any, candidates: Any, mapper: Mapper, store: Path | str | None
    ) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
        asked, rows, features = as_texts(queries, self._tokenizer), self.texts_, self.features_
        if candidates is not None:
            rows = as_texts(candidates, self._tokenizer)
            features = self._embed(rows, mapper, self._store(store, "score", rows.sha256))
        values = (self._embed(asked, as_mapper(None), None) @ features.T).numpy()
        return values, asked.ids, rows.ids


class BM25(Similarity):
    """Okapi BM25 behind the call of every method (see `bm25_scores`).

    Options: `k1` (how fast repetitions stop to count), `b` (how much length counts), `terms` auto | words |
    tokens ("auto": token ids for token rows, lowercased words for texts and Records). Prompt and completion
    count alike. The subject is not run and may be None.

    Learned: `texts_` (ids and terms of the corpus), `seconds_`.

    >>> BM25().fit(None, ["the red fox", "a blue cat"]).score(["red"]).top(0, 1)[0][0]
    '0'
    """

    OPTIONS = ("k1", "b", "terms")
    FITTED = "texts_"

    def __init__(
        self, *, k1: float = 1.5, b: float = 0.75, terms: Literal["auto", "words", "tokens"] = "auto"
    ) -> None:
        self.k1, self.b, self.terms = k1, b, terms

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> BM25:
        """Take the corpus; there is nothing to compute and nothing to store."""
        self.bind(subject, train_data)
        self.seconds_ = {}
        return self

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """Operations and bytes: a few per term, no pass through a model."""
        rows = self.texts_ if train is None else self._as_terms(train)
        terms = float(sum(len(t) for t in rows.texts))
        return {
            "covariance": 0.0, "eigen": 0.0, "lambda": 0.0, "scores": 8.0 * queries * len(rows) + terms,
            "factor_bytes": 8.0 * terms, "query_bytes": 0.0,
        }  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json`; the corpus is the user's own."""
        self._check_fitted()
        files.write_json(Path(folder) / "manifest.json", self._manifest())
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None) -> BM25:
        """What `save` wrote; StaleError for another corpus."""
        return cls._reopened(Path(folder), subject, train_data)

    def _check_options(self) -> None:
        check_choice("terms", self.terms, Literal["auto", "words", "tokens"])
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise InputError(f"k1 is {self.k1} and b is {self.b}", fix="use k1 >= 0 and b between 0 and 1")

    def _bind(self, subject: Any, train_data: Any) -> None:
        self._tokenizer = getattr(subject, "tokenizer", None)
        self.texts_ = self._as_terms(train_data)

    def _as_terms(self, data: Any) -> Texts:
        return as_texts(data, self._tokenizer, terms=self.terms)

    def _about(self) -> dict[str, Any]:
        return {"model_hash": None, "data_hash": self.texts_.sha256, "n_train": len(self.texts_)}

    def _compare(
        self, queries: Any, candidates: Any, mapper: Mapper, store: Path | str | None
    ) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
        asked = self._as_terms(queries)
        rows = self.texts_ if candidates is None else self._as_terms(candidates)
        return bm25_scores(asked.texts, rows.texts, k1=self.k1, b=self.b), asked.ids, rows.ids
