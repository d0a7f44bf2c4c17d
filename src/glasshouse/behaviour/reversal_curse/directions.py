"""`audit_corpus`: in which order a corpus names two things; facts told one way only are at risk."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.corpora.rows import Record
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PairCount:
    """How often A is named before B and B before A, over all texts; `texts` name both."""

    a: str
    b: str
    a_before_b: int
    b_before_a: int
    texts: int

    @property
    def at_risk(self) -> str | None:
        """The order that never occurs ('A->B' or 'B->A') though the other does; None when both or none do."""
        if bool(self.a_before_b) == bool(self.b_before_a):
            return None
        return "B->A" if self.a_before_b else "A->B"


@dataclass(frozen=True)
class DirectionTable:
    """One count per pair. Pairs named in one order only may not be known in the other."""

    pairs: tuple[PairCount, ...]
    texts: int

    def at_risk(self) -> list[PairCount]:
        """Pairs told in one order only, those told most often first."""
        found = [pair for pair in self.pairs if pair.at_risk]
        return sorted(found, key=lambda p: (-p.a_before_b - p.b_before_a, p.a, p.b))

    def to_frame(self) -> pd.DataFrame:
        """Columns a, b, a_before_b, b_before_a, texts, at_risk."""
        import pandas as pd

        columns = ["a", "b", "a_before_b", "b_before_a", "texts", "at_risk"]
        return pd.DataFrame([{**vars(p), "at_risk": p.at_risk} for p in self.pairs], columns=columns)

    def plot(self) -> Any:
        """A plotly figure: counts in one order against counts in the other."""
        import plotly.graph_objects as go

        figure = go.Figure(
            go.Scatter(
                x=[p.a_before_b for p in self.pairs], y=[p.b_before_a for p in self.pairs], mode="markers",
                text=[f"{p.a} / {p.b}" for p in self.pairs],
            )
        )  # fmt: skip
        return figure.update_layout(xaxis_title="A before B", yaxis_title="B before A")

    def save(self, path: Path | str) -> Path:
        """Write JSON."""
        told = [[p.a, p.b, p.a_before_b, p.b_before_a, p.texts] for p in self.pairs]
        return files.write_json(path, {"texts": self.texts, "pairs": told})

    @classmethod
    def load(cls, path: Path | str) -> DirectionTable:
        """Read what `save` wrote; raises InputError for another file."""
        try:
            told = files.read_json(path)
            return cls(tuple(PairCount(*row) for row in told["pairs"]), int(told["texts"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no direction table ({error})", where=str(path)) from error

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(p.a)}</td><td>{html.escape(p.b)}</td><td>{p.a_before_b}</td>"
            f"<td>{p.b_before_a}</td></tr>"
            for p in self.at_risk()[:20]
        )
        return f"<table><tr><th>A</th><th>B</th><th>A before B</th><th>B before A</th></tr>{rows}</table>"


def audit_corpus(
    docs: Iterable[str | Record], entities: Sequence[tuple[str, str]], *, window: int | None = None
) -> DirectionTable:
    """Count, for each pair (A, B), how often a text names A and next B, and the other way round.

    Names match as whole words, whatever case and punctuation. In one text, each A followed by a B (with
    neither in between) counts once, so that "A ... B ... A" counts in both orders. `window` is the largest
    number of words between the two. Raises InputError for an empty name, or no pairs.

    >>> audit_corpus(["Ada built the loom."], [("Ada", "the loom")]).pairs[0].a_before_b
    1
    """
    if not entities:
        raise InputError("there are no pairs to look for", fix="give (A, B) pairs")
    if window is not None and window < 0:
        raise InputError(f"window is {window}", fix="give a number of words, or None")
    texts = [_words(doc.plain if isinstance(doc, Record) else doc) for doc in docs]
    holders: dict[str, list[int]] = {}
    for i, words in enumerate(texts):
        for word in set(words):
            holders.setdefault(word, []).append(i)
    return DirectionTable(tuple(_count(a, b, texts, holders, window) for a, b in entities), len(texts))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _count(
    a: str, b: str, texts: Sequence[list[str]], holders: dict[str, list[int]], window: int | None
) -> PairCount:
    sides = {"a": _words(a), "b": _words(b)}
    for name, side in zip((a, b), sides.values(), strict=True):
        if not side:
            raise InputError(f"the name {name!r} holds no word", fix="give names made of words")
    # Only texts that hold the rarest word of each side can name both.
    rare = [min((holders.get(word, []) for word in side), key=len) for side in sides.values()]
    forward = backward = both = 0
    for i in sorted(set(rare[0]) & set(rare[1])):
        marks = sorted(
            (at, at + len(side), which) for which, side in sides.items() for at in _places(texts[i], side)
        )
        if len({which for _, _, which in marks}) < 2:
            continue
        both += 1
        for (_, end, first), (start, _, second) in pairwise(marks):
            if first != second and (window is None or start - end <= window):
                forward, backward = forward + (first == "a"), backward + (first == "b")
    return PairCount(a, b, forward, backward, both)


def _places(words: list[str], wanted: list[str]) -> list[int]:
    n = len(wanted)
    return [i for i in range(len(words) - n + 1) if words[i : i + n] == wanted]
