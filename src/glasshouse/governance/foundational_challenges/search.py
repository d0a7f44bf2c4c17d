"""Finding questions by words (BM25) and by meaning (a sentence encoder), with the parts of each score.

BM25 alone is complete without torch. With an encoder installed both scores are put on one scale (z over the
questions) and added with equal weights. The vectors of the shipped questions are shipped, with the encoder's
hash; with another encoder, or other questions, they are computed again.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glasshouse.governance.foundational_challenges.challenge_map import DATA, ChallengeMap
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K1, B = 1.2, 0.75
VECTORS = DATA / "question-vectors.npy"
_ENDINGS = (
    "ations",
    "ation",
    "ings",
    "ing",
    "ness",
    "ments",
    "ment",
    "ies",
    "ied",
    "ers",
    "es",
    "ed",
    "er",
    "ly",
    "s",
)
STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "might",
        "more",
        "must",
        "not",
        "of",
        "on",
        "or",
        "our",
        "should",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "these",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def words(text: str) -> list[str]:
    """Lower-case words of a text without the commonest ones, lightly stemmed."""
    return [stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP]


def stem(word: str) -> str:
    """A word without a common ending, if at least four letters stay."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


class Bm25:
    """BM25 over texts as one sparse product (Robertson, Zaragoza 2009), k1 = 1.2, b = 0.75."""

    def __init__(self, texts: Sequence[str]) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix

        counts = [Counter(words(text)) for text in texts]
        self.vocabulary = {word: i for i, word in enumerate(sorted({w for c in counts for w in c}))}
        lengths = np.array([sum(c.values()) for c in counts], dtype=float)
        mean = lengths.mean() if len(lengths) else 1.0
        cells = [(i, self.vocabulary[w], n) for i, c in enumerate(counts) for w, n in c.items()]
        rows, columns, tf = (np.array(part) for part in zip(*cells, strict=True)) if cells else ((), (), ())
        df = np.bincount(columns, minlength=len(self.vocabulary)) if cells else np.zeros(0)
        idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        if cells:
            value = idf[columns] * tf * (K1 + 1) / (tf + K1 * (1 - B + B * lengths[rows] / mean))
            self.matrix = csr_matrix((value, (columns, rows)), shape=(len(self.vocabulary), len(texts)))
        else:
            self.matrix = csr_matrix((len(self.vocabulary), len(texts)))
        self.idf = idf

    def scores(self, query: str) -> NDArray[np.float64]:
        """The score of every text, [N]; a query is a set of words."""
        import numpy as np

        found = sorted({self.vocabulary[w] for w in words(query) if w in self.vocabulary})
        return np.asarray(self.matrix[found].sum(axis=0)).ravel()


@dataclass(frozen=True)
class Hit:
    """One question that was found; `score` = 0.5 `lexical` + 0.5 `semantic` (None without an encoder)."""

    id: str
    challenge: int
    question: str
    score: float
    lexical: float
    semantic: float | None
    methods: tuple[str, ...]


class Search:
    """Search over a map's questions; `encoder` "auto" takes the packaged one where it is installed."""

    def __init__(self, found: ChallengeMap, *, encoder: Any = "auto") -> None:
        self.map = found
        self.ids = list(found.questions)
        self.texts = [found.text_of(one) for one in self.ids]
        self.encoder = _packaged() if encoder == "auto" else encoder

    @cached_property
    def bm25(self) -> Bm25:
        """The index of words."""
        return Bm25(self.texts)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Unit vectors of the questions [N, d]: the shipped ones where they belong to this encoder."""
        import numpy as np

        if self.encoder is None:
            raise InputError(
                "no sentence encoder is installed", where="search", fix="pip install 'glasshouse[embed]'"
            )
        key = vectors_key(self.encoder, self.texts)
        about = VECTORS.with_suffix(".json")
        if about.is_file() and files.read_json(about)["key"] == key:
            stored: NDArray[np.float32] = np.load(VECTORS, allow_pickle=False).astype(np.float32)
            return stored
        return np.asarray(self.encoder.embed(self.texts))

    def search(self, text: str, *, k: int = 5, challenge: int | None = None) -> list[Hit]:
        """The k best questions, best first. Raises InputError for an empty query."""
        import numpy as np

        if not text.strip():
            raise InputError("the query is empty", where="search", fix="say what to look for")
        lexical, semantic = self.parts(text)
        total = lexical if semantic is None else 0.5 * lexical + 0.5 * semantic
        order = [int(i) for i in np.argsort(-total, kind="stable")]
        kept = [
            i for i in order if challenge is None or self.map.questions[self.ids[i]].challenge == challenge
        ]
        return [self._hit(i, total, lexical, semantic) for i in kept[:k]]

    def parts(self, text: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """z-scores of every question by words, and by meaning (None without an encoder)."""
        lexical = _z(self.bm25.scores(text))
        return lexical, None if self.encoder is None else _z(self.similarity([text])[0])

    def similarity(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Cosine of each text with each question, [n, N]."""
        import numpy as np

        return np.asarray(self.encoder.embed(list(texts)) @ self.vectors.T, dtype=float)

    def _hit(self, i: int, total: Any, lexical: Any, semantic: Any) -> Hit:
        one = self.map.questions[self.ids[i]]
        meaning = None if semantic is None else float(semantic[i])
        methods = tuple(method.tag for method, _ in self.map.methods_for(one.id))
        return Hit(one.id, one.challenge, one.question, float(total[i]), float(lexical[i]), meaning, methods)


def vectors_key(encoder: Any, texts: Sequence[str]) -> str:
    """What shipped vectors belong to: this encoder and these texts."""
    return files.sha256_json([encoder.name, list(texts)])


def _z(scores: Any) -> NDArray[np.float64]:
    import numpy as np

    spread = float(scores.std())
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))


def _packaged() -> Any:
    from glasshouse.runtime.errors import GlasshouseError

    try:
        from glasshouse.annotators.embedding import Encoder

        return Encoder()
    except GlasshouseError:
        return None


def rarest(text: str, index: Bm25, k: int = 3) -> str:
    """The k rarest words of a text, in its order: what someone would type into a search box."""
    known = [
        w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in STOP and stem(w) in index.vocabulary
    ]
    ranked = sorted(dict.fromkeys(known), key=lambda w: -index.idf[index.vocabulary[stem(w)]])[:k]
    return " ".join(w for w in dict.fromkeys(known) if w in ranked) if ranked else text


def log_softmax(values: Sequence[float], temperature: float) -> list[float]:
    """Log of the softmax at a temperature."""
    scaled = [v / temperature for v in values]
    top = max(scaled)
    total = top + math.log(sum(math.exp(v - top) for v in scaled))
    return [v - total for v in scaled]
