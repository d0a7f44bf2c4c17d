"""Several annotators as one: mean ratings, mean folded scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from glasshouse.annotators._base import AnnotatorBase, Cells, Records
from glasshouse.annotators._results import ComparisonTensor, LabelVector, Mark, Outcome, RatingMatrix
from glasshouse.annotators._spending import CostPlan, Usage
from glasshouse.annotators._types import Annotator, Axis, Capability, Kind, Order, Pair, Predicate, Request
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError


class PanelAnnotator(AnnotatorBase):
    """The mean of its members: of their ratings, of their folded scores, the most frequent label.

    A member that could not read a cell does not vote there; a cell that fewer than half could read is NaN.
    `rate_each` and `compare_each` give the members' own results, for agreement statistics.
    """

    kind: ClassVar[Kind] = "composite"
    _reads_metadata = True

    def __init__(self, members: Sequence[Annotator]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"a panel of {len(members)}", fix="give at least two annotators")
        self.members = tuple(members)
        shared = frozenset.intersection(*(member.capabilities for member in members))
        self.capabilities: frozenset[Capability] = shared - {"propose"}
        self._waits = any(getattr(member, "_waits", True) for member in members)

    @property
    def id(self) -> str:
        """'panel@hash of its members'."""
        return f"panel@{files.sha256_json([member.id for member in self.members])[:12]}"

    def plan(self, req: Request) -> CostPlan:
        """What all members together would cost."""
        plans = [member.plan(req) for member in self.members]
        prices = [plan.usd for plan in plans]
        return CostPlan(
            calls=sum(p.calls for p in plans),
            cached=sum(p.cached for p in plans),
            most_calls=sum(p.most_calls for p in plans),
            tokens_in=sum(p.tokens_in for p in plans),
            tokens_out=sum(p.tokens_out for p in plans),
            usd=None if None in prices else sum(p for p in prices if p is not None),
        )

    def rate_each(self, predicates: Sequence[Predicate | str], texts: Sequence[str]) -> list[RatingMatrix]:
        """Each member's ratings."""
        return [member.rate(predicates, texts) for member in self.members]

    def compare_each(self, axes: Sequence[Axis], pairs: Sequence[Pair]) -> list[ComparisonTensor]:
        """Each member's comparisons, in both orders."""
        return [member.compare(axes, pairs) for member in self.members]

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        each = [await member.arate(predicates, texts, metadata=records) for member in self.members]
        value, _ = _mean(np.stack([result.value for result in each]))
        votes = np.stack([np.where(np.isnan(r.value), np.nan, r.value > 0.5) for r in each])
        yes, _ = _mean(votes)
        outcome = np.where(np.isnan(value), Outcome.UNPARSED, Outcome.ANSWERED).astype(np.int8)
        truncated = np.asarray(np.stack([result.truncated for result in each]).any(0))
        return Cells(value, np.maximum(yes, 1 - yes), outcome, truncated, usage=_sum(each))

    async def _assign(
        self, predicates: list[Predicate], texts: list[str], allow_none: bool, records: Records
    ) -> Cells:
        each = [
            await member.aassign(predicates, texts, allow_none, metadata=records) for member in self.members
        ]
        labels = np.stack([result.label for result in each])
        kinds = np.arange(-1, len(predicates))
        votes = (labels[:, :, None] == kinds).sum(0)  # (n, k + 1)
        label = kinds[votes.argmax(1)].astype(np.int64)
        tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
        unread = votes.sum(1) * 2 < len(each)
        label[tied | unread] = LabelVector.UNPARSED
        share = (votes.max(1) / len(each)).astype(np.float32)
        return Cells(label, share, usage=_sum(each))

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        each = [await member.acompare(axes, pairs, order, metadata=records) for member in self.members]
        folds = [result.fold() if order == "both" else result.one_order() for result in each]
        score, _ = _mean(np.stack(folds))
        winner = np.where(np.isnan(score), Mark.UNPARSED, np.sign(score))
        other = np.where(np.isnan(score), Mark.UNPARSED, -np.sign(score))
        mark = np.stack([winner, other if order == "both" else np.full_like(winner, Mark.NOT_ASKED)], axis=2)
        truncated = np.asarray(np.stack([result.truncated for result in each]).any(0))
        return Cells(mark.astype(np.int8), None, None, truncated, score, _sum(each))


def _mean(stacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over members of what could be read, NaN where fewer than half could; and how many could."""
    read = (~np.isnan(stacked)).sum(0)
    total = np.nansum(stacked, axis=0)
    enough = (read * 2 >= len(stacked)) & (read > 0)
    return np.where(enough, total / np.maximum(read, 1), np.nan).astype(np.float32), read


def _sum(each: Sequence[RatingMatrix | LabelVector | ComparisonTensor]) -> Usage:
    return sum((result.usage for result in each), Usage())
