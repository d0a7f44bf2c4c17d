"""The statistics of one cell (group x direction x arm): the entity, not the template, is the unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import (
    Estimate,
    bootstrap,
    clopper_pearson,
    minimum_detectable_effect,
    tost,
    wilson,
)

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000
MARGIN = 0.5
"""Nats: a mean log-probability gap within this of zero counts as no better than random."""


@dataclass(frozen=True)
class Cell:
    """What one cell says. Rates count rows (`accuracy`) or entities (all others); log-probabilities in nats.

    `gap`: log p(true) - log p(another entity's), mean over entities. `tost`: the same with the interval of
    two one-sided tests, `tost_p` its p-value. `paired_p`: paired t test of entity means. `two_sample_p` and
    `ks_p`: the paper's two tests, which take rows as independent. `mrr` and `auroc` rank the true entity
    among all of its group. `detectable_gap`: the smallest gap this many entities show with power 0.8.
    """

    group: str
    direction: str
    arm: str
    rows: int
    entities: int
    empty: Estimate
    accuracy: Estimate
    accuracy_entities: Estimate
    chance: Estimate
    f1: Estimate
    logprob: Estimate
    logprob_random: Estimate
    gap: Estimate
    tost: Estimate
    tost_p: float
    paired_p: float
    two_sample_p: float
    ks_p: float
    mrr: Estimate
    auroc: Estimate
    detectable_gap: float
    detectable_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Cell:
        """The inverse of `to_json`."""
        numbers = ("Estimate", "float")
        return cls(
            **{f.name: _back(told[f.name]) if f.type in numbers else told[f.name] for f in fields(cls)}
        )


def measure_cell(rows: pd.DataFrame, *, margin: float = MARGIN, seed: int = 0) -> Cell:
    """The statistics of rows of one group, direction and arm, both kinds."""
    true, random = rows[rows["kind"] == "true"], rows[rows["kind"] == "random"]
    gaps = entity_gaps(rows)
    values = np.array(list(gaps.values()))
    equivalence, p = tost(values, margin) if values.size else (_nothing(), math.nan)
    answered = true["correct"].dropna()
    replied = bool(true["reply"].notna().any())
    empty = wilson(int(true["correct"].isna().sum()), len(true)) if replied else _nothing()
    n = true["cluster"].nunique()
    return Cell(
        group=str(true["group"].iloc[0]),
        direction=str(true["direction"].iloc[0]),
        arm=str(true["arm"].iloc[0]),
        rows=len(true),
        entities=n,
        empty=empty,
        accuracy=wilson(int(answered.sum()), len(answered)),
        accuracy_entities=accuracy_by_entity(true, seed=seed),
        chance=accuracy_by_entity(random, seed=seed),
        f1=_clustered(true, "f1", seed),
        logprob=_clustered(true, "logprob", seed),
        logprob_random=_clustered(random, "logprob", seed),
        gap=bootstrap(values, resamples=RESAMPLES, seed=seed) if values.size else _nothing(),
        tost=equivalence,
        tost_p=p,
        mrr=_clustered(true.assign(mrr=1 / true["rank"]), "mrr", seed),
        auroc=_clustered(true, "above", seed),
        detectable_gap=_detectable_gap(values),
        detectable_accuracy=minimum_detectable_effect(n, p=0.0),
        **_tests(true, random, values),
    )


def accuracy_by_entity(rows: pd.DataFrame, *, seed: int = 0) -> Estimate:
    """Share of right replies, interval over entities (bootstrap; exact over entities where all agree).

    Rows need the columns `correct` and `entity_id` or `cluster`. When every reply is right, or none is,
    resampling would say that nothing is uncertain; the exact bound on that many entities is given instead.
    """
    kept = with_clusters(rows).dropna(subset=["correct"])
    if kept.empty:
        return _nothing()
    right = kept["correct"].to_numpy(dtype=np.float64)
    clusters = kept["cluster"].tolist()
    n = len(set(clusters))
    if right.min() == right.max() and right[0] in (0.0, 1.0):
        exact = clopper_pearson(int(right[0]) * n, n)
        return Estimate(exact.value, exact.low, exact.high, exact.level, n, "clopper-pearson over entities")
    return bootstrap(right, clusters=clusters, resamples=RESAMPLES, seed=seed)


def entity_gaps(rows: pd.DataFrame) -> dict[str, float]:
    """Entity -> mean over its questions of log p(true) - log p(random partner), nats; {} without log-probs.

    Raises InputError for a pair that lacks one of its two sides.
    """
    kept = with_clusters(rows).dropna(subset=["logprob"])
    if kept.empty:
        return {}
    wide = kept.pivot_table(index=["cluster", "pair_id"], columns="kind", values="logprob", aggfunc="mean")
    if "true" not in wide or "random" not in wide or bool(wide.isna().any(axis=None)):
        broken = wide.index[wide.isna().any(axis=1)][:1].tolist()
        raise InputError(
            "a question lacks its random partner", where=str(broken[0][1] if broken else "all pairs"),
            fix="score both kinds of every pair, or drop the pair",
        )  # fmt: skip
    means = (wide["true"] - wide["random"]).groupby(level="cluster", sort=True).mean()
    return {str(name): float(gap) for name, gap in means.items()}


def with_clusters(rows: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `cluster`: the entity, together with its `seed` where models are pooled."""
    if "cluster" in rows:
        return rows
    entity = rows["entity_id"].astype(str)
    return rows.assign(cluster=rows["seed"].astype(str) + "/" + entity if "seed" in rows else entity)


def _clustered(rows: pd.DataFrame, column: str, seed: int) -> Estimate:
    kept = rows.dropna(subset=[column])
    if kept.empty:
        return _nothing()
    values = kept[column].to_numpy(dtype=np.float64)
    return bootstrap(values, clusters=kept["cluster"].tolist(), resamples=RESAMPLES, seed=seed)


def _tests(true: pd.DataFrame, random: pd.DataFrame, gaps: np.ndarray) -> dict[str, float]:
    from scipy.stats import ks_2samp, ttest_1samp, ttest_ind

    a, b = (side["logprob"].dropna().to_numpy(dtype=np.float64) for side in (true, random))
    found = {"paired_p": math.nan, "two_sample_p": math.nan, "ks_p": math.nan}
    if gaps.size > 1 and float(gaps.std()) > 0:
        found["paired_p"] = float(ttest_1samp(gaps, 0.0).pvalue)
    if min(a.size, b.size) > 1 and float(a.std()) + float(b.std()) > 0:
        found["two_sample_p"] = float(ttest_ind(a, b).pvalue)
        found["ks_p"] = float(ks_2samp(a, b).pvalue)
    return found


def _detectable_gap(values: np.ndarray) -> float:
    if values.size < 2:
        return math.inf
    return minimum_detectable_effect(int(values.size), sd=float(values.std(ddof=1)))


def _nothing() -> Estimate:
    return Estimate.undefined("not measured")


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def _back(value: Any) -> Any:
    if isinstance(value, dict):
        return Estimate.from_json(value)
    return math.nan if value is None else float(value)
