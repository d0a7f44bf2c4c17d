"""How good an annotator is on items whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._checks import check_predicates, check_texts
from glasshouse.annotators._types import Annotator, Axis, Pair, Predicate
from glasshouse.annotators.agreement import cohen_kappa
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

LEAST_LABELLED = 50


@dataclass(frozen=True)
class Labelled:
    """Texts with the truth of each predicate: `truth` [n, k] (or [n] for one predicate) of 0 and 1."""

    predicates: Sequence[Predicate | str]
    texts: Sequence[str]
    truth: Any
    metadata: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs with the true winner on each axis: `truth` [n, k] (or [n]) of +1 (x), -1 (y), 0 (tie)."""

    axes: Sequence[Axis]
    pairs: Sequence[Pair]
    truth: Any
    metadata: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Calibration:
    """How an annotator did on labelled items. What it could not read counts in `unread` and nowhere else.

    `sensitivity` and `specificity` are undefined for comparisons; `n` counts judged cells.
    """

    accuracy: Estimate
    kappa: Estimate
    sensitivity: Estimate
    specificity: Estimate
    unread: Estimate
    n: int


def calibrate(annotator: Annotator, labelled: Labelled | LabelledPairs) -> Calibration:
    """Judge labelled items and write the accuracy into the annotator's later results.

    The accuracy (Wilson over readable cells) is written into `annotator.validated_accuracy`. Raises
    InputError below 50 labelled items, or for a truth of another shape.
    """
    if isinstance(labelled, Labelled):
        said, truth = _rated(annotator, labelled)
    else:
        said, truth = _compared(annotator, labelled)
    found = _measured(said.ravel(), truth.ravel(), binary=isinstance(labelled, Labelled))
    annotator.validated_accuracy = found.accuracy  # type: ignore[attr-defined]
    return found


def _rated(annotator: Annotator, labelled: Labelled) -> tuple[NDArray[Any], NDArray[Any]]:
    asked, texts = check_predicates(labelled.predicates), check_texts(labelled.texts)
    truth = _truth(labelled.truth, len(texts), len(asked), (0, 1))
    ratings = annotator.rate(asked, texts, metadata=labelled.metadata).value
    return np.where(np.isnan(ratings), np.nan, ratings > 0.5), truth


def _compared(annotator: Annotator, labelled: LabelledPairs) -> tuple[NDArray[Any], NDArray[Any]]:
    truth = _truth(labelled.truth, len(labelled.pairs), len(labelled.axes), (-1, 0, 1))
    return annotator.compare(labelled.axes, labelled.pairs, metadata=labelled.metadata).fold(), truth


def _truth(given: Any, n: int, k: int, allowed: tuple[int, ...]) -> NDArray[np.float64]:
    truth = np.asarray(given, dtype=np.float64)
    truth = truth[:, None] if truth.ndim == 1 else truth
    if truth.shape != (n, k):
        raise InputError(f"truth of shape {truth.shape}", fix=f"give [{n}, {k}]")
    if n < LEAST_LABELLED:
        raise InputError(
            f"{n} labelled items", fix=f"label at least {LEAST_LABELLED}: fewer validate nothing"
        )
    bad = np.argwhere(~np.isin(truth, allowed))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise InputError(f"truth [{row}, {column}] is {truth[row, column]}", fix=f"give one of {allowed}")
    return truth


def _measured(said: NDArray[Any], truth: NDArray[Any], *, binary: bool) -> Calibration:
    from glasshouse.statistics import wilson

    read = ~np.isnan(said)
    a, b = said[read], truth[read]
    nothing = Estimate.undefined("nothing could be read", 0)
    none = Estimate.undefined("comparisons have no yes and no", len(a))

    def share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Estimate:
        return wilson(int((hits & of).sum()), int(of.sum()))

    return Calibration(
        accuracy=wilson(int((a == b).sum()), len(a)),
        kappa=cohen_kappa(a, b) if len(a) else nothing,
        sensitivity=share(a == 1, b == 1) if binary else none,
        specificity=share(a == 0, b == 0) if binary else none,
        unread=wilson(int((~read).sum()), len(said)),
        n=len(a),
    )
