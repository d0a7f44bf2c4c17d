"""What all annotators share: checks, de-duplication, coverage, position bias, synchronous facades.

A concrete annotator implements `_rate`, `_assign`, `_compare`, `_propose` on unique, checked input.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators import _loop
from glasshouse.annotators._checks import (
    check_axes,
    check_metadata,
    check_pairs,
    check_predicates,
    check_request,
    check_texts,
)
from glasshouse.annotators._errors import (
    BudgetExceeded,
    LowCoverageError,
    LowCoverageWarning,
    PositionBiasWarning,
)
from glasshouse.annotators._results import (
    MOST_BIAS,
    ComparisonTensor,
    LabelVector,
    Mark,
    Outcome,
    RatingMatrix,
    Validated,
)
from glasshouse.annotators._spending import CostPlan, Usage
from glasshouse.annotators._types import (
    Axis,
    Capability,
    Hypothesis,
    Kind,
    Metadata,
    Order,
    Pair,
    Predicate,
    ProposeRequest,
    Request,
)
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.text import shorten

T = TypeVar("T")
Records = list[Mapping[str, Any]]

WARN_UNREAD, MOST_UNREAD = 0.2, 0.5
LEAST_ROWS = 10
"""Shares of unread answers, and of a judge's bias, are looked at from this many rows on: one says nothing."""


@dataclass
class Cells:
    """An annotator's answers on unique input, before they are expanded.

    `value` is float32 [n, k] (ratings), int64 [n] (labels) or int8 [n, k, 2] (marks); `stopped` says that the
    budget ran out before all was asked.
    """

    value: NDArray[Any]
    confidence: NDArray[np.float32] | None = None
    outcome: NDArray[np.int8] | None = None
    truncated: NDArray[np.bool_] | None = None
    score: NDArray[np.float32] | None = None
    usage: Usage = field(default_factory=Usage)
    stopped: BudgetExceeded | None = None


class AnnotatorBase:
    """The public methods of `Annotator` over a private core."""

    kind: ClassVar[Kind]
    capabilities: frozenset[Capability]
    _reads_metadata: ClassVar[bool] = False
    _waits: bool = False

    def __init__(self) -> None:
        self.usage = Usage()
        self.validated_accuracy: Validated = "unvalidated"
        self._guard = threading.Lock()

    @property
    def id(self) -> str:
        """Stable name of the annotator and everything that changes its answers."""
        raise NotImplementedError

    # -- synchronous -----------------------------------------------------------------------------------------

    def propose(self, req: ProposeRequest) -> list[Hypothesis]:
        """Up to `req.n` hypotheses, the best first. Raises AccessError where it cannot propose."""
        return self._finish(self.apropose(req))

    def rate(
        self, predicates: Sequence[Predicate | str], texts: Sequence[str], *, metadata: Metadata | None = None
    ) -> RatingMatrix:
        """Each text against each predicate, [n_texts, n_predicates] in [0, 1]; NaN: could not be read.

        Raises InputError naming the bad item, LowCoverageError when over half of a column is unread,
        BudgetExceeded (with `.partial`) before the call that would exceed the budget.
        """
        return self._finish(self.arate(predicates, texts, metadata=metadata))

    def assign(
        self,
        predicates: Sequence[Predicate | str],
        texts: Sequence[str],
        allow_none: bool = False,
        *,
        metadata: Metadata | None = None,
    ) -> LabelVector:
        """The one predicate that fits each text best; with `allow_none` a text may get none."""
        return self._finish(self.aassign(predicates, texts, allow_none, metadata=metadata))

    def compare(
        self,
        axes: Sequence[Axis],
        pairs: Sequence[Pair],
        order: Order = "both",
        *,
        metadata: Metadata | None = None,
    ) -> ComparisonTensor:
        """Which text of each pair has more of each axis, in both orders, [n_pairs, n_axes, 2].

        Warns of a position bias above 0.2. Raises as `rate` does.
        """
        return self._finish(self.acompare(axes, pairs, order, metadata=metadata))

    def plan(self, req: Request) -> CostPlan:
        """What a request would cost: nothing, unless the annotator asks a model."""
        return CostPlan()

    # -- asynchronous ----------------------------------------------------------------------------------------

    async def apropose(self, req: ProposeRequest) -> list[Hypothesis]:
        """`propose`, awaited."""
        self._need("propose")
        scores = check_request(req)
        found, usage = await self._propose(req, scores)
        self._spent(usage)
        avoided = set(req.avoid)
        return [hypothesis for hypothesis in found if hypothesis.text not in avoided][: req.n]

    async def arate(
        self, predicates: Sequence[Predicate | str], texts: Sequence[str], *, metadata: Metadata | None = None
    ) -> RatingMatrix:
        """`rate`, awaited."""
        self._need("rate")
        asked, given = check_predicates(predicates), check_texts(texts)
        first, back, records = self._unique(given, metadata)
        cells = await self._rate(asked, [given[i] for i in first], records)
        missing = np.isnan(cells.value)
        outcome = cells.outcome
        if outcome is None:
            outcome = np.where(missing, Outcome.UNPARSED, Outcome.ANSWERED).astype(np.int8)
        result = RatingMatrix(
            value=cells.value[back],
            predicates=tuple(predicate.text for predicate in asked),
            confidence=None if cells.confidence is None else cells.confidence[back],
            outcome=outcome[back],
            truncated=_cut(cells, back),
            **self._origin(cells.usage),
        )
        self._close(result, cells.stopped, np.isnan(result.value), result.predicates)
        return result

    async def aassign(
        self,
        predicates: Sequence[Predicate | str],
        texts: Sequence[str],
        allow_none: bool = False,
        *,
        metadata: Metadata | None = None,
    ) -> LabelVector:
        """`assign`, awaited."""
        self._need("assign")
        asked, given = check_predicates(predicates), check_texts(texts)
        first, back, records = self._unique(given, metadata)
        cells = await self._assign(asked, [given[i] for i in first], allow_none, records)
        result = LabelVector(
            label=cells.value[back],
            predicates=tuple(predicate.text for predicate in asked),
            confidence=None if cells.confidence is None else cells.confidence[back],
            **self._origin(cells.usage),
        )
        self._close(result, cells.stopped, (result.label == LabelVector.UNPARSED)[:, None], ("labels",))
        return result

    async def acompare(
        self,
        axes: Sequence[Axis],
        pairs: Sequence[Pair],
        order: Order = "both",
        *,
        metadata: Metadata | None = None,
    ) -> ComparisonTensor:
        """`compare`, awaited."""
        self._need("compare")
        if order not in ("both", "given"):
            raise InputError(f"order is {order!r}", fix="give 'both' or 'given'")
        asked, given = check_axes(axes), check_pairs(pairs)
        first, back, records = self._unique(given, metadata)
        cells = await self._compare(asked, [given[i] for i in first], order, records)
        result = ComparisonTensor(
            mark=cells.value[back],
            axes=tuple(axis.name for axis in asked),
            truncated=_cut(cells, back),
            score=None if cells.score is None else cells.score[back],
            **self._origin(cells.usage),
        )
        asked_marks = result.mark[..., :1] if order == "given" else result.mark
        self._close(result, cells.stopped, np.asarray((asked_marks >= Mark.UNPARSED).any(2)), result.axes)
        if order == "both":
            self._warn_of_bias(result)
        return result

    # -- for concrete annotators -----------------------------------------------------------------------------

    async def _propose(
        self, req: ProposeRequest, scores: NDArray[np.float64] | None
    ) -> tuple[list[Hypothesis], Usage]:
        raise NotImplementedError

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        raise NotImplementedError

    async def _assign(
        self, predicates: list[Predicate], texts: list[str], allow_none: bool, records: Records
    ) -> Cells:
        """The predicate with the highest rating; one unread rating leaves the row unread: it may be best."""
        cells = await self._rate(predicates, texts, records)
        unread = np.isnan(cells.value).any(1)
        best = np.nan_to_num(cells.value, nan=-1.0).argmax(1)
        label = best.astype(np.int64)
        if allow_none:
            label[cells.value[np.arange(len(texts)), best] <= 0.5] = LabelVector.NONE
        label[unread] = LabelVector.UNPARSED
        return Cells(label, usage=cells.usage, stopped=cells.stopped, truncated=cells.truncated)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        raise NotImplementedError

    # -- shared ----------------------------------------------------------------------------------------------

    def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        return _loop.run(work) if self._waits else _loop.step(work)

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            can = ", ".join(sorted(self.capabilities))
            raise AccessError(
                f"the annotator {shorten(self.id)} cannot {capability}", fix=f"it can {can}; take another one"
            )

    def _unique(
        self, items: Sequence[Hashable], metadata: Metadata | None
    ) -> tuple[list[int], NDArray[np.int64], Records]:
        """Positions of the first of each distinct item, each item's place among those, and their records."""
        records = check_metadata(metadata, len(items))
        if self._reads_metadata and metadata is not None:  # equal texts may have different truths
            return list(range(len(items))), np.arange(len(items)), records
        place: dict[Hashable, int] = {}
        first: list[int] = []
        back = np.empty(len(items), dtype=np.int64)
        for index, item in enumerate(items):
            if item not in place:
                place[item] = len(first)
                first.append(index)
            back[index] = place[item]
        return first, back, [records[i] for i in first]

    def _origin(self, usage: Usage) -> dict[str, Any]:
        self._spent(usage)
        return {
            "usage": usage,
            "annotator_id": self.id,
            "kind": self.kind,
            "validated_accuracy": self.validated_accuracy,
        }

    def _spent(self, usage: Usage) -> None:
        with self._guard:
            self.usage = self.usage + usage

    def _close(
        self, result: Any, stopped: BudgetExceeded | None, unread: NDArray[np.bool_], columns: Sequence[str]
    ) -> None:
        """Raise for a spent budget or for columns that mostly could not be read; warn for poor ones."""
        if stopped is not None:
            stopped.partial = result
            raise stopped
        if len(unread) < LEAST_ROWS:
            return
        for name, share in zip(columns, unread.mean(0), strict=True):
            if share <= WARN_UNREAD:
                continue
            told = f"{share:.0%} of the answers for {shorten(name)!r} could not be read"
            if share > MOST_UNREAD:
                error = LowCoverageError(
                    told, where=self.id, fix="look at .partial, or take another annotator"
                )
                error.partial = result
                raise error
            warnings.warn(LowCoverageWarning(f"{self.id}: {told}"), stacklevel=4)

    def _warn_of_bias(self, result: ComparisonTensor) -> None:
        if len(result.mark) < LEAST_ROWS or result.score is not None:
            return
        for axis, bias in zip(result.axes, result.position_bias(), strict=True):
            if bias.defined and bias.value > MOST_BIAS:
                told = f"{self.id} prefers a place over a text on {shorten(axis)!r}: {bias}"
                warnings.warn(PositionBiasWarning(told), stacklevel=4)


def marks_from_difference(
    difference: NDArray[np.floating[Any]], order: Order, dead_zone: NDArray[np.floating[Any]] | float = 0.0
) -> NDArray[np.int8]:
    """Marks [n, k, 2] of a judge that sees how much more of the axis x has, [n, k]; NaN: not applicable."""
    winner = np.where(np.abs(difference) <= dead_zone, 0, np.sign(difference))
    mark = np.stack([winner, -winner], axis=2)
    mark = np.where(np.isnan(mark), Mark.NOT_APPLICABLE, mark).astype(np.int8)
    if order == "given":
        mark[..., 1] = Mark.NOT_ASKED
    return mark


def with_accuracy(result: T, accuracy: Validated) -> T:
    """The result with another statement of how its annotator was validated."""
    return replace(result, validated_accuracy=accuracy)  # type: ignore[type-var]


def _cut(cells: Cells, back: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.zeros(len(back), dtype=bool) if cells.truncated is None else cells.truncated[back]
