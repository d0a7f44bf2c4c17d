"""Rates with intervals out of a frame of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.evaluation.frames import score_columns
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rate:
    """The mean of one score in one group: `labels` name the group, `unparsed` samples had no usable score."""

    labels: dict[str, Any]
    score: str
    estimate: Estimate
    unparsed: int


def rates(
    frame: pd.DataFrame, *, by: Sequence[str] = ("task", "model", "arm"), level: float = 0.95
) -> list[Rate]:
    """The mean of every score in every group of `by`, over samples that count and have a score.

    Shares get the Wilson interval, other numbers Student's t; with several epochs the samples are resampled
    whole, because epochs of one sample are not independent. A share is a score that is 0 or 1 in every group
    of the frame and not among `attrs["quantities"]`: a rank of 0 throughout is no share. Raises InputError
    for an unknown column.
    """
    unknown = [name for name in by if name not in frame.columns]
    if unknown:
        raise InputError(
            f"the frame has no column {unknown[0]!r}", fix=f"choose from {', '.join(map(str, frame.columns))}"
        )
    counted = frame[frame["counted"]]
    shares = set(score_columns(frame)) - set(frame.attrs.get("quantities", ()))
    shares = {column for column in shares if _only_0_and_1(counted[column].dropna())}
    found = []
    for key, group in counted.groupby(list(by), dropna=False, sort=True):
        labels = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        for column in score_columns(frame):
            values = group[column].dropna()
            if len(values):
                ids = group.loc[values.index, "id"]
                estimate = mean_of(values.to_numpy(float), list(ids), share=column in shares, level=level)
                found.append(Rate(labels, column.removeprefix("score_"), estimate, len(group) - len(values)))
    return found


def mean_of(values: Any, ids: Sequence[Any], *, share: bool | None = None, level: float = 0.95) -> Estimate:
    """Mean of values [N] whose samples are named by `ids`, with the interval that fits them.

    `share`: whether they are the 0 and 1 of a share; None where the values must say it.
    """
    from glasshouse.statistics import bootstrap, t_interval, wilson

    if len(set(ids)) < len(ids):
        return bootstrap(values, clusters=list(ids), level=level)
    if _only_0_and_1(values) if share is None else share:
        return wilson(int(values.sum()), len(values), level)
    return t_interval(values, level)


def _only_0_and_1(values: Any) -> bool:
    return set(values.tolist()) <= {0.0, 1.0}
