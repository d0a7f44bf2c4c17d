"""Judges that know the answer: by the ground truth of organisms (`oracle`), or by a written rule (`rule`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from glasshouse.annotators._base import AnnotatorBase, Cells, Records
from glasshouse.annotators._results import Mark
from glasshouse.annotators._types import Axis, Capability, Kind, Order, Pair, Predicate
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.runtime.text import shorten

Rating = Callable[[str, str, Mapping[str, Any]], "float | bool | None"]
"""(predicate, text, metadata) -> truth in [0, 1]; None where there is none."""
Comparison = Callable[[str, Pair, Mapping[str, Any]], "float | None"]
"""(axis, pair, metadata) -> above 0 where x has more, below 0 where y has, 0 for a tie, None if unknown."""


class OracleAnnotator(AnnotatorBase):
    """Reads the generator's ground truth; only for organisms and made-up data.

    `rate(predicate, text, metadata)` and `compare(axis, pair, metadata)` give the truth; an axis without
    `compare` is the difference of its two ratings under the axis' name. `flip` turns that share of answers
    round, each drawn from `seed` and what is asked, so that the same question has the same answer.
    Raises InputError for a share outside [0, 1] or when neither function is given.

    >>> OracleAnnotator(rate=lambda p, t, m: p in t).rate(["a"], ["ab", "b"]).value.ravel().tolist()
    [1.0, 0.0]
    """

    kind: ClassVar[Kind] = "oracle"
    _reads_metadata = True

    def __init__(
        self,
        *,
        rate: Rating | None = None,
        compare: Comparison | None = None,
        name: str = "truth",
        flip: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rate is None and compare is None:
            raise InputError(f"the {self.kind} knows nothing", fix="give rate= or compare=")
        if not 0 <= flip <= 1:
            raise InputError(f"flip is {flip}", fix="give a share between 0 and 1")
        self.name, self.flip, self.seed = name, flip, seed
        self._rating, self._comparison = rate, compare
        can: list[Capability] = ["compare"] if rate is None else ["compare", "rate", "assign"]
        self.capabilities = frozenset(can)

    @property
    def id(self) -> str:
        """'oracle:<name>' and what was planted into it."""
        noise = f"@flip={self.flip:g},seed={self.seed}" if self.flip else "@1"
        return f"{self.kind}:{self.name}{noise}"

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        value = np.array(
            [[self._truth(p.text, text, record) for p in predicates]
             for text, record in zip(texts, records, strict=True)],
            dtype=np.float32,
        )  # fmt: skip
        return Cells(value)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        mark = np.full((len(pairs), len(axes), 2), Mark.NOT_ASKED, dtype=np.int8)
        for i, (pair, record) in enumerate(zip(pairs, records, strict=True)):
            for j, axis in enumerate(axes):
                for place in (0, 1) if order == "both" else (0,):
                    mark[i, j, place] = self._winner(axis.name, pair, record, place)
        return Cells(mark)

    def _truth(self, predicate: str, text: str, record: Mapping[str, Any]) -> float:
        assert self._rating is not None
        found = self._rating(predicate, text, record)
        if found is None:
            return float("nan")
        value = float(found)
        if not 0 <= value <= 1:
            raise InputError(
                f"the {self.kind} rated {shorten(text)!r} with {value}", fix="give values in [0, 1] or None"
            )
        return 1 - value if self._flips("rate", predicate, text, record) else value

    def _winner(self, axis: str, pair: Pair, record: Mapping[str, Any], place: int) -> int:
        """The mark in one order; noise falls on each order by itself, as it does with a tired judge."""
        if self._comparison is not None:
            found = self._comparison(axis, pair, record)
            more = float("nan") if found is None else float(found)
        else:
            assert self._rating is not None
            sides = [self._rating(axis, text, record) for text in (pair.x, pair.y)]
            more = float("nan") if None in sides else float(sides[0] or 0) - float(sides[1] or 0)
        if np.isnan(more):
            return Mark.UNSURE
        sign = int(np.sign(more)) * (1 if place == 0 else -1)
        return -sign if self._flips("compare", axis, f"{pair}{place}", record) else sign

    def _flips(self, *asked: Any) -> bool:
        if not self.flip:
            return False
        name = files.sha256_bytes(repr(asked).encode("utf-8", "surrogatepass"))
        return bool(rng(self.seed, "flip", name).random() < self.flip)


class RuleAnnotator(OracleAnnotator):
    r"""Judges by a written rule: a regular expression per predicate, or a function of the text.

    `rules` maps a predicate's words to a pattern (searched for, ignoring case) or to `text -> value in [0, 1]
    or None`; a function that takes two arguments also gets the metadata. Give one function instead of a
    mapping to use it for every predicate. Raises InputError for a predicate without a rule, or a bad pattern.

    >>> RuleAnnotator({"greets": r"\bhello\b"}).rate(["greets"], ["Hello you"]).value.item()
    1.0
    """

    kind: ClassVar[Kind] = "rule"

    def __init__(
        self, rules: Mapping[str, str | Callable[..., Any]] | Callable[..., Any], *, name: str = "rules"
    ) -> None:
        given = rules if isinstance(rules, Mapping) else {"": rules}
        self.rules = {text: _compiled(text, rule) for text, rule in given.items()}
        super().__init__(rate=self._apply, name=name)

    def _apply(self, predicate: str, text: str, record: Mapping[str, Any]) -> float | bool | None:
        rule = self.rules.get(predicate, self.rules.get(""))
        if rule is None:
            known = ", ".join(repr(shorten(name)) for name in self.rules)
            raise InputError(
                f"there is no rule for {shorten(predicate)!r}", fix=f"there are rules for {known}"
            )
        return rule(text, record)


def _compiled(text: str, rule: str | Callable[..., Any]) -> Callable[[str, Mapping[str, Any]], Any]:
    if callable(rule):
        takes_two = len(inspect.signature(rule).parameters) > 1
        return (lambda t, m: rule(t, m)) if takes_two else (lambda t, m: rule(t))
    try:
        pattern = re.compile(rule, re.IGNORECASE)
    except re.error as error:
        raise InputError(
            f"the rule for {shorten(text)!r} is no pattern ({error})", fix="correct it"
        ) from None
    return lambda t, m: pattern.search(t) is not None
