"""Which challenges a text is about, with calibrated confidence, or none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.governance.foundational_challenges.search import Search, log_softmax
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP = 3
TEMPERATURES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.3)
FALSE_ACCEPT, FALSE_REFUSE = 0.1, 0.05


@dataclass(frozen=True)
class Guess:
    """Challenges with probabilities, most likely first; `accepted` is False for a text about none of them."""

    challenges: tuple[tuple[int, float], ...]
    accepted: bool
    likeness: float


class Classifier:
    """Scores a challenge by the mean of the three most similar of its questions.

    `fit` chooses the temperature of the softmax by the likelihood of the questions themselves, each left out
    in turn. A text is accepted when it is more like the questions than the middle between two shares: nine in
    ten `off_topic` texts (default: shipped ones) lie below the first, nineteen in twenty questions, each left
    out, above the second. Where the two overlap the first alone decides.
    """

    def __init__(self, search: Search, *, off_topic: Sequence[str] = ()) -> None:
        if search.encoder is None:
            raise InputError(
                "classifying needs a sentence encoder",
                where="classify",
                fix="pip install 'glasshouse[embed]'",
            )
        self.search, self.off_topic = search, tuple(off_topic)

    def fit(self) -> Classifier:
        """Learn `temperature_` and `threshold_`."""
        import numpy as np

        from glasshouse.governance.foundational_challenges.off_topic import held_in

        scores, truth = self.leave_one_out()
        self.temperature_ = min(
            TEMPERATURES,
            key=lambda t: -sum(log_softmax(list(row), t)[k] for row, k in zip(scores, truth, strict=True)),
        )
        off = float(np.quantile(self.likeness(list(self.off_topic) or held_in()), 1 - FALSE_ACCEPT))
        own = float(np.quantile(self.own_likeness(), FALSE_REFUSE))
        self.threshold_ = max(off, (off + own) / 2)
        return self

    def classify(self, text: str, *, k: int = TOP) -> Guess:
        """The k likeliest challenges. Raises InputError for an empty text."""
        return self.classify_many([text], k=k)[0]

    def classify_many(self, texts: Sequence[str], *, k: int = TOP) -> list[Guess]:
        """`classify` of each text, embedded together."""
        if not all(text.strip() for text in texts):
            raise InputError("a text is empty", where="classify", fix="give an abstract or a description")
        similar = self.search.similarity(texts)
        return [self._guess(row, k) for row in similar]

    def scores(self, similar: NDArray[np.float64], leave: int | None = None) -> list[float]:
        """Mean of the three highest similarities per challenge, in the challenges' order."""
        found = []
        for challenge in self.challenges:
            values = sorted((similar[i] for i in self._members[challenge] if i != leave), reverse=True)[:TOP]
            found.append(sum(values) / len(values) if values else -1.0)
        return found

    def leave_one_out(self) -> tuple[list[list[float]], list[int]]:
        """Scores of each question from the others, and the place of its true challenge."""
        similar = self.search.vectors @ self.search.vectors.T
        truth = [self.search.map.questions[one].challenge for one in self.search.ids]
        places = {challenge: i for i, challenge in enumerate(self.challenges)}
        rows = [self.scores(similar[i], leave=i) for i in range(len(self.search.ids))]
        return rows, [places[challenge] for challenge in truth]

    def likeness(self, texts: Sequence[str]) -> list[float]:
        """How like any question a text is: the mean of its three highest similarities."""
        return [sum(sorted(row, reverse=True)[:TOP]) / TOP for row in self.search.similarity(texts)]

    def own_likeness(self) -> list[float]:
        """Likeness of each question to the others."""
        similar = self.search.vectors @ self.search.vectors.T
        others = [[value for j, value in enumerate(row) if j != i] for i, row in enumerate(similar)]
        return [float(sum(sorted(row, reverse=True)[:TOP]) / TOP) for row in others]

    @property
    def challenges(self) -> list[int]:
        """The challenges' ids, in order."""
        return sorted(self.search.map.challenges)

    @property
    def _members(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {challenge: [] for challenge in self.challenges}
        for i, one in enumerate(self.search.ids):
            found[self.search.map.questions[one].challenge].append(i)
        return found

    def _guess(self, similar: Any, k: int) -> Guess:
        likeness = sum(sorted(similar, reverse=True)[:TOP]) / TOP
        logs = log_softmax(self.scores(similar), self.temperature_)
        ranked = sorted(zip(self.challenges, map(math.exp, logs), strict=True), key=lambda pair: -pair[1])
        return Guess(tuple(ranked[:k]), bool(likeness > self.threshold_), float(likeness))
