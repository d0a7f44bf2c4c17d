"""What annotators answer: ratings, labels, comparisons. NaN and codes say what could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators import _persist
from glasshouse.annotators._spending import Usage
from glasshouse.annotators._types import Kind
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

Validated = Estimate | Literal["unvalidated"]
"""Accuracy on labelled items as `calibrate` measured it, or that nobody did."""

MOST_BIAS = 0.2
"""Above this share of inconsistent pairs a judge has a position bias."""


class Outcome(IntEnum):
    """How one cell came about."""

    ANSWERED = 0
    UNPARSED = 1
    REFUSED = 2
    NOT_ASKED = 3


class Mark(IntEnum):
    """One answer of `compare`, before the two orders are folded."""

    FIRST = 1
    SECOND = -1
    EQUAL = 0
    NOT_APPLICABLE = 2
    UNSURE = 3
    UNPARSED = 4
    REFUSED = 5
    NOT_ASKED = 6


class Verdict(IntEnum):
    """What two orders together say of one pair and axis."""

    X = 1
    Y = -1
    EQUAL = 0
    NOT_APPLICABLE = 2
    UNSURE = 3
    UNPARSED = 4
    INCONSISTENT = 7
    """The place decided: the first one won in both orders, or the second one did."""
    HALF = 8
    """One order named a winner, the other a tie."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What every result says about its origin."""

    usage: Usage = field(default_factory=Usage)
    annotator_id: str = ""
    kind: Kind = "oracle"
    validated_accuracy: Validated = "unvalidated"

    @property
    def header(self) -> str:
        """One line for reports: who judged, what stands behind it, whether it was checked."""
        offline = self.kind in ("lexical", "style", "embedding")
        who = f"offline default ({self.kind})" if offline else f"{self.kind}: {self.annotator_id}"
        return f"{who}, accuracy {self.validated_accuracy}"

    def save(self, folder: Path | str) -> Path:
        """Write `result.json` and `result.safetensors` into `folder`."""
        return _persist.save(self, folder)

    @classmethod
    def load(cls, folder: Path | str) -> Any:
        """Read what `save` wrote. Raises InputError for another kind of result or a damaged file."""
        return _persist.load(cls, folder)


@dataclass(frozen=True, kw_only=True)
class RatingMatrix(_Result):
    """Ratings of n texts against k predicates.

    `value` float32 [n, k] in [0, 1], NaN where nothing could be read; `confidence` float32 [n, k] or None;
    `outcome` int8 [n, k] of `Outcome`; `truncated` bool [n]: the text was cut before it was shown.
    """

    value: NDArray[np.float32]
    predicates: tuple[str, ...] = ()
    confidence: NDArray[np.float32] | None = None
    outcome: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    truncated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        value = np.asarray(self.value, dtype=np.float32)
        if value.ndim != 2:
            raise InputError(f"ratings of shape {value.shape}", fix="give [n_texts, n_predicates]")
        known = value[~np.isnan(value)]
        if known.size and (known.min() < 0 or known.max() > 1):
            raise InputError(f"ratings from {known.min():g} to {known.max():g}", fix="keep them in [0, 1]")
        object.__setattr__(self, "value", value)
        if not self.outcome.size:
            outcome = np.where(np.isnan(value), Outcome.UNPARSED, Outcome.ANSWERED).astype(np.int8)
            object.__setattr__(self, "outcome", outcome)
        if not self.truncated.size:
            object.__setattr__(self, "truncated", np.zeros(len(value), dtype=bool))

    @property
    def coverage(self) -> NDArray[np.float64]:
        """Share of each predicate's cells that could be read, [k]."""
        return 1 - np.isnan(self.value).mean(0) if len(self.value) else np.full(self.value.shape[1], np.nan)

    def binarize(
        self, threshold: float = 0.5, nan: Literal["error", "drop"] | Literal[0] = "error"
    ) -> NDArray[np.int8]:
        """1 where the value exceeds `threshold`, else 0: int8 [n, k].

        `nan` says what to do with cells that could not be read: refuse, drop their whole rows (then fewer
        rows come back; `readable` says which), or count them as 0 on your own responsibility.
        """
        missing = np.isnan(self.value)
        if nan not in ("error", "drop", 0):
            raise InputError(f"nan is {nan!r}", fix="give 'error', 'drop' or 0")
        if nan == "error" and missing.any():
            row, column = (int(i) for i in np.argwhere(missing)[0])
            raise InputError(
                f"{int(missing.sum())} of {missing.size} ratings are NaN, the first at text {row}, "
                f"predicate {column}",
                fix="say what becomes of them: binarize(nan='drop') or binarize(nan=0)",
            )
        kept = self.value[self.readable] if nan == "drop" else self.value
        with np.errstate(invalid="ignore"):
            return (kept > threshold).astype(np.int8)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Texts whose every rating could be read, [n]."""
        return np.asarray(~np.isnan(self.value).any(1))

    def to_frame(self) -> pd.DataFrame:
        """One row per text and predicate."""
        import pandas as pd

        n, k = self.value.shape
        return pd.DataFrame(
            {
                "text": np.repeat(np.arange(n), k),
                "predicate": list(self.predicates) * n,
                "value": self.value.ravel(),
                "outcome": [Outcome(int(code)).name.lower() for code in self.outcome.ravel()],
                "truncated": np.repeat(self.truncated, k),
            }
        )

    def plot(self) -> Any:
        """The matrix as a plotly heat map; unread cells stay empty."""
        import plotly.graph_objects as go

        heat = go.Heatmap(z=self.value, x=list(self.predicates), zmin=0, zmax=1, colorscale="Teal")
        return go.Figure(heat, layout={"title": self.header, "yaxis": {"title": "text"}})


@dataclass(frozen=True, kw_only=True)
class LabelVector(_Result):
    """One predicate per text: `label` int64 [n], an index into `predicates`, NONE or UNPARSED.

    `confidence` float32 [n] is NaN where the annotator has none.
    """

    NONE = -1
    UNPARSED = -2

    label: NDArray[np.int64]
    predicates: tuple[str, ...] = ()
    confidence: NDArray[np.float32] | None = None

    @property
    def coverage(self) -> float:
        """Share of texts whose answer could be read; NaN for no text."""
        return float((self.label != self.UNPARSED).mean()) if len(self.label) else float("nan")

    def one_hot(self) -> NDArray[np.float32]:
        """[n, k] of 0 and 1; the row of an unread answer is NaN, that of `none` all 0."""
        out = (self.label[:, None] == np.arange(len(self.predicates))).astype(np.float32)
        out[self.label == self.UNPARSED] = np.nan
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row per text; without a predicate `read` tells "none" from an answer nobody could read."""
        import pandas as pd

        names = [self.predicates[i] if i >= 0 else None for i in self.label]
        return pd.DataFrame({"label": self.label, "predicate": names, "read": self.label != self.UNPARSED})

    def plot(self) -> Any:
        """How many texts got each predicate."""
        import plotly.graph_objects as go

        names = [*self.predicates, "none", "unparsed"]
        counts = [
            int((self.label == i).sum()) for i in [*range(len(self.predicates)), self.NONE, self.UNPARSED]
        ]
        return go.Figure(go.Bar(x=names, y=counts), layout={"title": self.header})


@dataclass(frozen=True, kw_only=True)
class ComparisonTensor(_Result):
    """Answers for n pairs on k axes in two orders.

    `mark` int8 [n, k, 2] of `Mark`: [..., 0] with x first, [..., 1] with y first (NOT_ASKED where only the
    given order was). `score` float32 [n, k] is the mean of its members' folded scores where a panel judged.
    """

    mark: NDArray[np.int8]
    axes: tuple[str, ...] = ()
    truncated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    score: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        mark = np.asarray(self.mark, dtype=np.int8)
        if mark.ndim != 3 or mark.shape[2] != 2:
            raise InputError(f"comparisons of shape {mark.shape}", fix="give [n_pairs, n_axes, 2]")
        object.__setattr__(self, "mark", mark)
        if not self.truncated.size:
            object.__setattr__(self, "truncated", np.zeros(len(mark), dtype=bool))

    def fold(self) -> NDArray[np.float32]:
        """+1 where x won in both orders, -1 where y did, 0 for ties and contradictions, NaN where unread.

        score = s1 if s1 == -s2 and s1 != 0 else 0. Raises InputError when only one order was asked;
        `one_order()` then says what there is. A panel's fold is the mean over its members.
        """
        self._need_both()
        if self.score is not None:
            return self.score
        s1, s2 = self._signs(0), self._signs(1)
        score = np.where((s1 == -s2) & (s1 != 0), s1, np.float32(0))
        return np.where(np.isnan(s1) | np.isnan(s2), np.float32(np.nan), score).astype(np.float32)

    def one_order(self) -> NDArray[np.float32]:
        """+1, 0, -1 for x from the given order alone, NaN where unread: not corrected for position bias."""
        return self._signs(0)

    def verdicts(self) -> NDArray[np.int8]:
        """`Verdict` of each pair and axis, [n, k]: which kind of tie, and what was inconsistent."""
        self._need_both()
        a, b = self.mark[..., 0], self.mark[..., 1]
        s1, s2 = self._signs(0), self._signs(1)
        out = np.full(a.shape, Verdict.EQUAL, dtype=np.int8)
        out[(a == Mark.UNSURE) | (b == Mark.UNSURE)] = Verdict.UNSURE
        out[(a == Mark.NOT_APPLICABLE) | (b == Mark.NOT_APPLICABLE)] = Verdict.NOT_APPLICABLE
        out[(np.abs(s1) + np.abs(s2)) == 1] = Verdict.HALF
        decided = (s1 != 0) & (s2 != 0)
        out[decided & (s1 == s2)] = Verdict.INCONSISTENT
        out[decided & (s1 == -s2) & (s1 > 0)] = Verdict.X
        out[decided & (s1 == -s2) & (s1 < 0)] = Verdict.Y
        out[np.isnan(s1) | np.isnan(s2)] = Verdict.UNPARSED
        return out

    def position_bias(self, level: float = 0.95) -> tuple[Estimate, ...]:
        """P(the same place wins in both orders) per axis, Wilson interval, over pairs read in both orders."""
        from glasshouse.statistics import wilson

        verdict = self.verdicts()
        return tuple(
            wilson(
                int((column == Verdict.INCONSISTENT).sum()), int((column != Verdict.UNPARSED).sum()), level
            )
            for column in verdict.T
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per pair and axis: both marks, and what they say together."""
        import pandas as pd

        n, k = self.mark.shape[:2]
        names = [[Mark(int(m)).name.lower() for m in self.mark[..., i].ravel()] for i in (0, 1)]
        frame = pd.DataFrame({"pair": np.repeat(np.arange(n), k), "axis": list(self.axes) * n})
        frame["x_first"], frame["y_first"] = names
        if self._both:
            frame["verdict"] = [Verdict(int(v)).name.lower() for v in self.verdicts().ravel()]
            frame["score"] = self.fold().ravel()
        return frame

    def plot(self) -> Any:
        """Shares of the verdicts per axis."""
        import plotly.graph_objects as go

        verdict = self.verdicts()
        bars = [
            go.Bar(name=kind.name.lower(), x=list(self.axes), y=(verdict == kind).mean(0)) for kind in Verdict
        ]
        return go.Figure(bars, layout={"title": self.header, "barmode": "stack"})

    @property
    def _both(self) -> bool:
        return not bool(
            (self.mark[..., 1] == Mark.NOT_ASKED).any() and (self.mark[..., 0] != Mark.NOT_ASKED).any()
        )

    def _need_both(self) -> None:
        one = (self.mark[..., 1] == Mark.NOT_ASKED) & (self.mark[..., 0] != Mark.NOT_ASKED)
        if one.any():
            raise InputError(
                "only one order was asked, so a preference for a place cannot be told from one for a text",
                fix="compare with order='both', or take one_order()",
            )

    def _signs(self, order: int) -> NDArray[np.float32]:
        """Who won in one order: +1 the first, -1 the second, 0 any tie, NaN unread."""
        mark = self.mark[..., order]
        sign = np.where(np.abs(mark) == 1, mark, 0).astype(np.float32)
        sign[mark >= Mark.UNPARSED] = np.nan
        return sign
