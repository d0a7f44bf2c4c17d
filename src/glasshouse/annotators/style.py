"""Measurable style: a fixed battery of axes, each a number anyone can recount."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._base import AnnotatorBase, Cells, Records, marks_from_difference
from glasshouse.annotators._spending import Usage
from glasshouse.annotators._types import Axis, Capability, Hypothesis, Kind, Order, Pair, ProposeRequest
from glasshouse.annotators.lexical import words
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import shorten

Floats = NDArray[np.float64]
VERSION = 1
# A run of marks is looked at once, from its start: a text of nothing but marks must not cost its square.
_END = re.compile(r"(?<![.!?])[.!?]+(?=\s|$)|\n{2,}")


class _Text:
    """One text, cut once for all measures."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = words(text)
        self.lines = [line for line in text.splitlines() if line.strip()]
        self.sentences = [s for s in _END.split(text) if s.strip()]

    def per_word(self, names: frozenset[str]) -> float:
        """Share of words among `names`."""
        return sum(word in names for word in self.words) / max(1, len(self.words))

    def per_line(self, pattern: re.Pattern[str]) -> float:
        """Share of lines that start so."""
        return sum(pattern.match(line) is not None for line in self.lines) / max(1, len(self.lines))

    def per_sentence(self, pattern: re.Pattern[str]) -> float:
        """Matches per sentence."""
        return len(pattern.findall(self.text)) / max(1, len(self.sentences))

    def per_character(self, pattern: re.Pattern[str]) -> float:
        """Share of characters that match."""
        return len(pattern.findall(self.text)) / max(1, len(self.text))


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_FIRST = _set("i me my mine myself i'm i've i'd i'll we us our ours ourselves we're we've we'd we'll")
_SECOND = _set("you your yours yourself yourselves you're you've you'd you'll")
_HEDGES = _set(
    "may might could perhaps maybe possibly probably likely seems seem appears appear somewhat fairly rather "
    "arguably roughly approximately generally usually often suggest suggests"
)
_SURE = _set(
    "always never certainly definitely clearly obviously undoubtedly absolutely must every completely"
)
_SORRY = _set("sorry apologize apologise apologies unfortunately afraid")
_THANKS = _set("please thanks thank welcome glad happy great appreciate")
_LINKS = _set(
    "however therefore thus moreover furthermore additionally consequently because although overall"
)
_BULLET = re.compile(r"\s*[-*•]\s+")
_NUMBERED = re.compile(r"\s*\d+[.)]\s+")
_HEADER = re.compile(r"\s*#{1,6}\s+\S|\s*\*\*[^*]+\*\*:?\s*$")
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")

Measure = Callable[[_Text], float]
_BATTERY: dict[str, tuple[str, str, Measure]] = {
    "length": ("longer", "shorter", lambda t: float(len(t.words))),
    "sentence length": (
        "longer sentences",
        "shorter sentences",
        lambda t: len(t.words) / max(1, len(t.sentences)),
    ),
    "word length": ("longer words", "shorter words", lambda t: sum(map(len, t.words)) / max(1, len(t.words))),
    "vocabulary": (
        "more varied words (type-token ratio of the first 100)",
        "more repeated words",
        lambda t: len(set(t.words[:100])) / max(1, len(t.words[:100])),
    ),
    "paragraphs": ("more paragraphs", "fewer paragraphs", lambda t: float(len(re.split(r"\n\s*\n", t.text)))),
    "exclamation marks": (
        "more exclamation marks",
        "fewer",
        lambda t: t.per_sentence(re.compile("!")),
    ),
    "question marks": ("more question marks", "fewer", lambda t: t.per_sentence(re.compile(r"\?"))),
    "commas": ("more commas a sentence", "fewer", lambda t: t.per_sentence(re.compile(","))),
    "colons and semicolons": (
        "more colons and semicolons",
        "fewer",
        lambda t: t.per_sentence(re.compile("[:;]")),
    ),
    "dashes": ("more dashes", "fewer", lambda t: t.per_sentence(re.compile("[–—]| - "))),
    "parentheses": ("more parentheses", "fewer", lambda t: t.per_sentence(re.compile(r"\("))),
    "quotation marks": ("more quotation marks", "fewer", lambda t: t.per_sentence(re.compile('["“”]'))),
    "bullets": ("more bulleted lines", "fewer", lambda t: t.per_line(_BULLET)),
    "numbered lists": ("more numbered lines", "fewer", lambda t: t.per_line(_NUMBERED)),
    "headers": ("more headings", "fewer", lambda t: t.per_line(_HEADER)),
    "bold": ("more bold words", "fewer", lambda t: t.per_sentence(_BOLD)),
    "code": (
        "more code",
        "less code",
        lambda t: t.text.count("```") / 2 + t.per_sentence(re.compile(r"`[^`\n]+`")),
    ),
    "emoji": ("more emoji", "fewer", lambda t: t.per_character(_EMOJI)),
    "digits": ("more digits", "fewer", lambda t: t.per_character(re.compile(r"\d"))),
    "capitals": ("more capital letters", "fewer", lambda t: t.per_character(re.compile(r"[A-Z]"))),
    "first person": ("speaks of itself more", "less", lambda t: t.per_word(_FIRST)),
    "second person": ("addresses the reader more", "less", lambda t: t.per_word(_SECOND)),
    "contractions": (
        "more contractions",
        "fewer",
        lambda t: sum("'" in w or "’" in w for w in t.words) / max(1, len(t.words)),
    ),
    "hedges": ("more hedging words", "fewer", lambda t: t.per_word(_HEDGES)),
    "certainty": ("more words of certainty", "fewer", lambda t: t.per_word(_SURE)),
    "apologies": ("apologises more", "less", lambda t: t.per_word(_SORRY)),
    "courtesy": ("more thanks and pleases", "fewer", lambda t: t.per_word(_THANKS)),
    "connectives": ("more connecting words", "fewer", lambda t: t.per_word(_LINKS)),
}

STYLE_AXES: tuple[Axis, ...] = tuple(Axis(name, high, low) for name, (high, low, _) in _BATTERY.items())
"""The battery, in the order of the columns of `StyleAnnotator.measure`."""


class StyleAnnotator(AnnotatorBase):
    """Compares texts on measurable axes (`STYLE_AXES`); proposes those that go with the scores.

    Two texts are equal on an axis when they differ by at most `dead_zone` times the larger one's measure.
    Raises InputError for an axis that is not in the battery.

    >>> StyleAnnotator().compare([STYLE_AXES[0]], [Pair("one two three", "one")]).fold().item()
    1.0
    """

    kind: ClassVar[Kind] = "style"
    capabilities: frozenset[Capability] = frozenset({"propose", "compare"})

    def __init__(self, *, dead_zone: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dead_zone < 1:
            raise InputError(f"dead_zone is {dead_zone}", fix="give a share in [0, 1)")
        self.dead_zone = dead_zone

    @property
    def id(self) -> str:
        """'style@version' and the dead zone."""
        return f"style@{VERSION},dead_zone={self.dead_zone:g}"

    def measure(self, texts: Sequence[str], axes: Sequence[Axis] = STYLE_AXES) -> Floats:
        """Each text on each axis, [n, k], in the axis' own unit (words, shares, counts a sentence)."""
        measures = [_measure(axis) for axis in axes]
        cut = [_Text(text) for text in texts]
        return np.array([[measure(text) for measure in measures] for text in cut], dtype=np.float64)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        x, y = self.measure([p.x for p in pairs], axes), self.measure([p.y for p in pairs], axes)
        zone = self.dead_zone * np.maximum(np.abs(x), np.abs(y))
        return Cells(marks_from_difference(x - y, order, zone))

    async def _propose(self, req: ProposeRequest, scores: Floats | None) -> tuple[list[Hypothesis], Usage]:
        if scores is None or req.style != "axis":
            raise InputError(
                "style is proposed as axes that go with scores", fix="give scores and style='axis'"
            )
        if isinstance(req.samples[0], Pair):
            pairs = [s for s in req.samples if isinstance(s, Pair)]
            values = self.measure([p.x for p in pairs]) - self.measure([p.y for p in pairs])
            values = np.sign(values)
        else:
            values = self.measure([s for s in req.samples if isinstance(s, str)])
        x, y = values - values.mean(0), scores - scores.mean()
        spread = np.sqrt((x**2).sum(0) * (y**2).sum())
        r = np.divide(y @ x, spread, out=np.zeros(len(STYLE_AXES)), where=spread > 1e-12)
        ranked = [i for i in np.argsort(-np.abs(r), kind="stable") if r[i] != 0]
        avoided = set(req.avoid)
        kept = [i for i in ranked if str(STYLE_AXES[i]) not in avoided][: req.n]
        return [Hypothesis(STYLE_AXES[i], float(r[i]), self.id) for i in kept], Usage()


def _measure(axis: Axis) -> Measure:
    if axis.name not in _BATTERY:
        raise InputError(
            f"{shorten(axis.name)!r} is no measurable axis", fix=f"choose from {', '.join(_BATTERY)}"
        )
    return _BATTERY[axis.name][2]
