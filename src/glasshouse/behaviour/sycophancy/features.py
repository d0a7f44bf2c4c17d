"""Features of a pair of replies: which one has more of it, +1 the first, -1 the second, 0 neither."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.annotators import Annotator, Axis

UNPARSED_LIMIT = 0.1
"""Above this share of pairs that could not be annotated, nothing is returned."""

HEDGES = r"\b(perhaps|maybe|possibly|might|could be|i think|i believe|it seems|probably|not sure|unclear)\b"
AGREES = (
    r"\b(you(?:'| a)re (?:absolutely |quite |completely )?right|i agree|good point|great point|exactly"
    r"|as you say|of course)\b"
)
SORRY = r"\b(sorry|apolog\w+|my mistake|i was wrong|i stand corrected)\b"
LISTS = r"^\s*(?:[-*•]|\d+[.)])\s"
PRAISES = r"\b(great|excellent|wonderful|fantastic|brilliant|love(?:ly)?|impressive)\b"


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to `prompt`; `view` is the opinion the user states in it ("" where there is none)."""

    a: str
    b: str
    prompt: str = ""
    view: str = ""

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise InputError(
                "both replies are the same text", where=f"pair {self.a[:40]!r}", fix="drop the pair"
            )


Measure = Callable[[str, PreferencePair], float]
"""How much of a feature one reply of a pair has."""


def _count(pattern: str) -> Measure:
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    return lambda text, pair: float(len(compiled.findall(text)))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _overlap(text: str, pair: PreferencePair) -> float:
    """Share of the words of the user's view that the reply repeats."""
    view = set(_words(pair.view))
    return len(view & set(_words(text))) / len(view) if view else 0.0


PROGRAMMATIC: Mapping[str, Measure] = {
    "longer": lambda text, pair: float(len(_words(text))),
    "hedges": _count(HEDGES),
    "agrees with the user": _count(AGREES),
    "apologises": _count(SORRY),
    "praises": _count(PRAISES),
    "asks back": _count(r"\?"),
    "uses lists": _count(LISTS),
    "repeats the user's view": _overlap,
}
"""Features that need no judge. Counts are per reply, and a longer one has more of each: fit them together."""


class FeatureAnnotator:
    """Which reply of a pair has more of each feature.

    `features` maps a name to a measure of one reply, or to an `Axis` that `judge` compares (both orders,
    folded: a contradiction is 0, an unread answer NaN). With a judge no sign is thrown away silently:
    `share_unparsed_` says how many pairs have an unread feature.
    """

    def __init__(
        self, features: Mapping[str, Measure | Axis] = PROGRAMMATIC, *, judge: Annotator | None = None
    ) -> None:
        self.features = features
        self.judge = judge

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.features)

    def annotate(self, pairs: Sequence[PreferencePair]) -> NDArray[np.float32]:
        """float32 [n, K] of +1 (a has more), -1 (b has more), 0; a row with an unread cell is all NaN.

        Raises InputError for no pairs, a feature that needs a judge without one, or more than 10 % of rows
        unread.
        """
        if not pairs:
            raise InputError("there are no pairs", fix="give at least one")
        out = np.empty((len(pairs), len(self.features)), np.float32)
        for column, (name, feature) in enumerate(self.features.items()):
            if callable(feature):
                out[:, column] = [_sign(feature, pair) for pair in pairs]
            else:
                out[:, column] = self._judged(name, feature, pairs)
        unread = np.isnan(out).any(1)
        self.share_unparsed_ = float(unread.mean())
        if self.share_unparsed_ > UNPARSED_LIMIT:
            raise InputError(
                f"{int(unread.sum())} of {len(pairs)} pairs were not annotated (limit {UNPARSED_LIMIT:.0%})",
                fix="look at the judge's answers, or use another judge",
            )
        out[unread] = np.nan
        return out

    def _judged(self, name: str, axis: Any, pairs: Sequence[PreferencePair]) -> NDArray[np.float32]:
        from glasshouse.annotators import Pair

        if self.judge is None:
            raise InputError(f"feature {name!r} needs a judge", fix="give judge=, an annotator that compares")
        shown = [Pair(pair.a, pair.b, pair.prompt) for pair in pairs]
        return self.judge.compare([axis], shown).fold()[:, 0]


def _sign(measure: Measure, pair: PreferencePair) -> float:
    return float(np.sign(measure(pair.a, pair) - measure(pair.b, pair)))
