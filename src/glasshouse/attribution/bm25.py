"""Okapi BM25: the lexical baseline, and the filter that chooses candidates before influence is computed.

A filter by shared words never surfaces cross-lingual or abstract influence: always score a random pool of
rows beside the filtered one, and say which pool each top row came from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


def bm25_scores(
    queries: Sequence[Any], corpus: Sequence[Any], *, k1: float = 1.5, b: float = 0.75
) -> NDArray[np.float64]:
    """BM25 of every document for every query, `[Q, N]`, higher = more shared rare terms.

    Texts are split into lowercased words, sequences of token ids are used as they are. A query is a *set* of
    terms; document frequencies come from `corpus`. With N documents, df containing the term, and tf
    occurrences in a document of relative length l:
    `ln(1 + (N - df + .5) / (df + .5)) * tf (k1 + 1) / (tf + k1 (1 - b + b l))`.
    Raises InputError for an empty corpus.
    """
    documents = [Counter(_terms(text)) for text in corpus]
    if not documents:
        raise InputError("BM25 needs at least one document")
    lengths = np.array([sum(d.values()) for d in documents], dtype=np.float64)
    relative = lengths / max(lengths.mean(), 1e-12)
    index: dict[Hashable, list[tuple[int, int]]] = {}
    for n, document in enumerate(documents):
        for term, count in document.items():
            index.setdefault(term, []).append((n, count))
    scores = np.zeros((len(queries), len(documents)))
    for q, query in enumerate(queries):
        # Sorted, so that float addition has one order whatever the hash seed.
        for term in sorted(set(_terms(query)) & index.keys(), key=repr):
            hits = index[term]
            idf = math.log(1 + (len(documents) - len(hits) + 0.5) / (len(hits) + 0.5))
            at, tf = np.array(hits).T
            scores[q, at] += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * relative[at]))
    return scores


def bm25_filter(
    queries: Sequence[Any], corpus: Sequence[Any], *, keep: int = 10_000, seed: int = 0
) -> list[list[int]]:
    """For each query the indices of the `keep` best documents, best first; ties by a seeded draw."""
    return [
        ranked(row, seed=seed, stream=str(q))[:keep] for q, row in enumerate(bm25_scores(queries, corpus))
    ]


def ranked(scores: Sequence[float] | NDArray[Any], *, seed: int = 0, stream: str = "") -> list[int]:
    """Indices by falling score; equal scores in a random order that depends only on `seed` and `stream`."""
    values = np.asarray(scores, dtype=np.float64)
    draw = rng(seed, "ties", stream).random(len(values))
    return [int(i) for i in np.lexsort((draw, -values))]


def _terms(text: Any) -> list[Hashable]:
    if isinstance(text, str):
        return [word.strip(".,;:!?\"'()[]") or word for word in text.lower().split()]
    return [int(token) for token in text]
