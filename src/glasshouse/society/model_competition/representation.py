"""`Representation`: features and labels of your own users, from a file or from a model you can open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition._users import Floats, Users
from glasshouse.society.model_competition.encoders import Pooling, encode
from glasshouse.society.model_competition.settings import read_features


@dataclass(frozen=True)
class Representation:
    """Features `X` [n, d] (no constant feature yet) and labels `y` [n] in 0 .. K-1, checked."""

    X: Floats
    y: NDArray[np.int64]

    @classmethod
    def of(cls, X: Any, y: Any) -> Representation:
        """Any arrays. Raises InputError for lengths that differ, NaN rows (numbered), labels not 0 .. K-1."""
        Users.of(X, y)
        return cls(np.asarray(X, dtype=np.float64), np.asarray(y).astype(np.int64))

    @classmethod
    def from_npz(cls, path: Path | str) -> Representation:
        """The arrays X and y of an .npz file; nothing is unpickled."""
        return cls.of(*read_features(path))

    @classmethod
    def from_subject(
        cls,
        subject: Any,
        dataset: Sequence[tuple[Any, int]],
        site: str = "final_norm_in",
        pooling: Pooling = "last",
    ) -> Representation:
        """Activations of a model at `site` on (text, label) pairs, pooled over tokens; see `encode`."""
        pairs = list(dataset)
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise InputError("the dataset is not (text, label) pairs", fix="give at least two such pairs")
        texts, labels = zip(*pairs, strict=True)
        return cls.of(encode(subject, texts, sites=[site], pooling=pooling)[site], labels)

    def split(self, share: float = 0.5, *, seed: int = 0) -> tuple[Representation, Representation]:
        """Users to fit on and users held out, drawn at random; `share` of them are fitted on."""
        from glasshouse.runtime.seeds import rng

        cut = round(share * len(self.y))
        if not 1 < cut < len(self.y) - 1:
            raise InputError(f"share is {share} of {len(self.y)} users", fix="leave users on both sides")
        order = rng(seed, "split").permutation(len(self.y))
        return tuple(Representation.of(self.X[i], self.y[i]) for i in (order[:cut], order[cut:]))  # type: ignore[return-value]
