"""Words as predicates: what is said is exactly what is counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._base import AnnotatorBase, Cells, Records, marks_from_difference
from glasshouse.annotators._spending import Usage
from glasshouse.annotators._types import (
    Axis,
    Capability,
    Hypothesis,
    Kind,
    Order,
    Pair,
    Payload,
    Predicate,
    ProposeRequest,
    TermSet,
)
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import shorten

Floats = NDArray[np.float64]
VERSION = 1
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SAID = re.compile(r"(?:mentions (?:more|any) of: )(?P<terms>.+)", re.DOTALL)


class LexicalAnnotator(AnnotatorBase):
    """A text holds when the weighted count of a predicate's terms exceeds its threshold: no model, no cost.

    `terms` per proposed predicate, each in at least `least_documents` samples, one or two words, stop words
    removed. Proposals are greedy: each set explains what the sets before it left of the scores. A predicate
    without a term set must read "mentions any of: ...".

    >>> LexicalAnnotator().rate(["mentions any of: red, deep blue"], ["A deep blue sea"]).value.item()
    1.0
    """

    kind: ClassVar[Kind] = "lexical"
    capabilities: frozenset[Capability] = frozenset({"propose", "rate", "assign", "compare"})

    def __init__(self, *, terms: int = 10, least_documents: int = 5) -> None:
        super().__init__()
        if terms < 1 or least_documents < 1:
            raise InputError(
                f"terms is {terms}, least_documents {least_documents}", fix="give at least 1 each"
            )
        self.terms, self.least_documents = terms, least_documents

    @property
    def id(self) -> str:
        """'lexical@version': ratings depend on nothing else."""
        return f"lexical@{VERSION}"

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        sets = [term_set(p.text, p.payload) for p in predicates]
        thresholds = np.array([s.threshold for s in sets])
        return Cells((weighted_counts(texts, sets) > thresholds).astype(np.float32))

    async def _assign(
        self, predicates: list[Predicate], texts: list[str], allow_none: bool, records: Records
    ) -> Cells:
        """The predicate with the largest weighted count; a text that mentions none goes to the first."""
        weight = weighted_counts(texts, [term_set(p.text, p.payload) for p in predicates])
        label = weight.argmax(1).astype(np.int64)
        if allow_none:
            label[weight.max(1) <= 0] = -1
        return Cells(label)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        sets = [term_set(axis.high, axis.payload) for axis in axes]
        both = weighted_counts([p.x for p in pairs] + [p.y for p in pairs], sets)
        return Cells(marks_from_difference(both[: len(pairs)] - both[len(pairs) :], order))

    async def _propose(self, req: ProposeRequest, scores: Floats | None) -> tuple[list[Hypothesis], Usage]:
        if scores is None:
            raise InputError("words are ranked by their correlation with scores", fix="give scores")
        names, present = document_terms(req.samples, self.least_documents)
        avoided = {term for text in req.avoid for term in _said_terms(text)}
        free = np.array([name not in avoided for name in names], dtype=bool)
        found = []
        for _ in range(req.n):
            r = _correlations(present, scores)
            best = [i for i in np.argsort(-r, kind="stable") if free[i] and r[i] > 0][: self.terms]
            if not best:
                break
            free[best] = False
            chosen = TermSet(tuple(names[i] for i in best), tuple(float(r[i]) for i in best))
            found.append(_hypothesis(chosen, float(r[best[0]]), req, self.id))
            scores = _residual(scores, present[:, best] @ r[best])
        return found, Usage()


def words(text: str) -> list[str]:
    """Lower-case words; letters and digits, with apostrophes inside."""
    return _WORD.findall(text.lower())


def weighted_counts(texts: Sequence[str], sets: Sequence[TermSet]) -> Floats:
    """Weighted number of mentions of each set's terms in each text, [n, k]; terms have one or two words."""
    of_word: dict[str, list[tuple[int, float]]] = {}
    of_two: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for column, chosen in enumerate(sets):
        for term, weight in zip(chosen.terms, chosen.weights, strict=True):
            parts = words(term)
            if len(parts) == 1:
                of_word.setdefault(parts[0], []).append((column, weight))
            elif len(parts) == 2:
                of_two.setdefault(parts[0], {}).setdefault(parts[1], []).append((column, weight))
            else:
                raise InputError(f"the term {shorten(term)!r} has {len(parts)} words", fix="give one or two")
    out = np.zeros((len(texts), len(sets)))
    known = set(of_word) | set(of_two)
    for row, text in enumerate(texts):
        said = words(text)
        for place, word in enumerate(said):
            if word not in known:
                continue
            for column, weight in of_word.get(word, ()):
                out[row, column] += weight
            if word in of_two and place + 1 < len(said):
                for column, weight in of_two[word].get(said[place + 1], ()):
                    out[row, column] += weight
    return out


def term_set(text: str, payload: Payload | None) -> TermSet:
    """The terms of a predicate: its payload, or the list in its words."""
    if isinstance(payload, TermSet):
        return payload
    terms = _said_terms(text)
    if not terms:
        raise InputError(
            f"{shorten(text)!r} has no terms to count",
            fix='give a TermSet as payload, or write "mentions any of: ..."; plain words need an LM judge',
        )
    return TermSet(tuple(terms))


def document_terms(samples: Iterable[str] | Iterable[Pair], least: int) -> tuple[list[str], Any]:
    """Terms in at least `least` samples and whether each sample mentions them: sparse [n, terms] of 0 and 1.

    For pairs an entry is what x mentions minus what y does.
    """
    from scipy.sparse import coo_matrix
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    rows = [
        (_terms(s.x, ENGLISH_STOP_WORDS), _terms(s.y, ENGLISH_STOP_WORDS))
        if isinstance(s, Pair)
        else (_terms(s, ENGLISH_STOP_WORDS), frozenset())
        for s in samples
    ]
    counted = Counter(term for x, y in rows for term in x | y)
    names = sorted(term for term, count in counted.items() if count >= least)
    place = {name: i for i, name in enumerate(names)}
    entries = [
        (sign, row, place[term])
        for row, sides in enumerate(rows)
        for sign, said in zip((1.0, -1.0), sides, strict=True)
        for term in said
        if term in place
    ]
    values, row_of, column_of = zip(*entries, strict=True) if entries else ((), (), ())
    shape = (len(rows), len(names))
    return names, coo_matrix((values, (row_of, column_of)), shape=shape, dtype=np.float64).tocsc()


def _terms(text: str, stop: frozenset[str]) -> frozenset[str]:
    said = words(text)
    single = {word for word in said if word not in stop and len(word) > 1}
    double = {f"{a} {b}" for a, b in pairwise(said) if a in single and b in single}
    return frozenset(single | double)


def _said_terms(text: str) -> list[str]:
    match = _SAID.search(text)
    return [term.strip().lower() for term in match["terms"].split(",") if term.strip()] if match else []


def _correlations(present: Any, scores: Floats) -> Floats:
    """Pearson correlation of each sparse column with the scores; 0 where either is constant."""
    y = scores - scores.mean()
    mean = np.asarray(present.mean(0)).ravel()
    square = np.asarray(present.multiply(present).sum(0)).ravel() - len(scores) * mean**2
    spread = np.sqrt(np.maximum(square, 0) * float(y @ y))
    return np.divide(present.T @ y, spread, out=np.zeros(len(mean)), where=spread > 1e-12)


def _residual(scores: Floats, explained: Floats) -> Floats:
    """What a line through `explained` leaves of the scores."""
    centred = explained - explained.mean()
    size = float(centred @ centred)
    return scores if size == 0 else scores - centred * (float(centred @ scores) / size)


def _hypothesis(chosen: TermSet, score: float, req: ProposeRequest, annotator: str) -> Hypothesis:
    listed = ", ".join(chosen.terms)
    about: Any
    if req.style == "axis":
        about = Axis(f"mentions {chosen.terms[0]}", f"mentions more of: {listed}", "mentions none", chosen)
    else:
        about = Predicate(f"mentions any of: {listed}", chosen)
    return Hypothesis(about, score, annotator)
