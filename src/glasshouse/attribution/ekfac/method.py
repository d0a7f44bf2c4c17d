"""`EKFAC`: fit curvature once, then ask which training rows moved a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import GradientMethod, as_mapper, at_least_one
from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages import asking, fitting, guards, persist, scoring
from glasshouse.attribution.stages.curvature import Factor, check_damping
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.pairs import PairCache, budget_bytes
from glasshouse.attribution.stages.scoring import Plan, Prepared, QueryAgg, RowNorm, Unit, check_choice
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Store, gathered
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError

Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
LabelMode = Literal["sampled", "empirical"]


class EKFAC(GradientMethod):
    """Influence of training rows on measurements (arXiv:2308.03296).

    Options: `strategy` identity | diagonal | kfac | ekfac (curvature); `label_mode` sampled (true Fisher) |
    empirical; `damping` "auto" (a tenth of each module's mean eigenvalue) or an absolute number;
    `factor_examples` rows used for curvature, drawn by `seed`; `query_rank` keeps queries at that rank by
    `svd` randomized | full; `modules` "auto", names, globs or "re:..."; `batch_tokens`, `batch_rows` bound a
    batch and change results only by rounding; `shards` pieces of a pass (default: by size).
    K-FAC's eigenvalues are per token, EK-FAC's per row (so its scores on long rows are larger; ranks are not
    affected with damping "auto").

    `pair_cache`: bytes for the pairs (a, g) of training batches, which the passes of a fit share instead of
    going through the model again; "auto" is 4 GiB, or a quarter of the free memory where that is less, and 0
    turns it off. It changes time and memory, never a number. With label_mode "sampled" it is emptied when
    `fit` ends; with "empirical" `score` uses the same pairs, and they stay until `release`, the next `fit`
    or the end of the object. Other processes of an executor and resumed shards do without it.

    Learned: `factors_`, `tracked_`, `names_`, `train_`, `objective_`, `model_hash_`; `seconds_`, the CPU
    seconds of this process in each stage (covariance, eigen, lambda, and scores after each `score`).

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> EKFAC().fit(nn.Linear(3, 2), (X, y)).score((X[:2], y[:2])).scores.shape
    (2, 8)
    """

    OPTIONS = (
        "strategy", "label_mode", "damping", "factor_examples", "query_rank", "svd", "force_bf16",
    )  # fmt: skip

    def __init__(
        self,
        strategy: Strategy = "ekfac",
        *,
        label_mode: LabelMode = "sampled",
        damping: float | Literal["auto"] = "auto",
        factor_examples: int = 100_000,
        query_rank: int | None = None,
        svd: Literal["randomized", "full"] = "randomized",
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        batch_tokens: int = 2048,
        batch_rows: int = 512,
        shards: int | None = None,
        force_bf16: bool = False,
        pair_cache: int | Literal["auto"] = "auto",
    ) -> None:
        self.strategy, self.label_mode, self.damping = strategy, label_mode, damping
        self.factor_examples, self.query_rank, self.svd = factor_examples, query_rank, svd
        self.modules, self.seed = modules, seed
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards
        self.force_bf16, self.pair_cache = force_bf16, pair_cache
        self._cache = PairCache()

    # ── fitting ──────────────────────────────────────────────────────────────

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Objective | Measurement | None = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> EKFAC:
        """Estimate the curvature on `train_data`; with a `store` folder a killed fit goes on where it was.

        `objective` is the training loss, a sum per row (default: cross-entropy, or half the squared error for
        float targets). Raises the errors named in the attribution pages: InputError, ReductionError,
        UntrackedModuleError, NumericalError, StaleError.
        """
        self._check_options()
        self._bind(subject, train_data, objective)
        mapper, kept = as_mapper(executor), self._store(store, "fit", self.train_)
        job = self._job(self.train_, self.objective_, sampled=self.label_mode == "sampled")
        guards.check_sampling(job)
        if not self.force_bf16:
            guards.check_bf16(job)
        self._cache = PairCache(budget_bytes(self.pair_cache, next(self.model_.parameters()).device))
        try:
            self._fit(replace(job, cache=self._cache), mapper, kept)
        finally:
            if self.label_mode == "sampled":  # scores need other labels
                self.release()
        return self

    def _fit(self, job: Job, mapper: Mapper, kept: Store | None) -> None:
        chosen = fitting.factor_rows(len(self.train_), self.factor_examples, self.seed)
        shards = self._shards(self.train_, chosen)
        factors = {name: Factor(name) for name in self.names_}
        seconds: dict[str, float] = {}
        again = not job.sampled  # the score pass will want these pairs
        if self.strategy in ("kfac", "ekfac"):
            with clocked(seconds, "covariance"):
                keep = again or self.strategy == "ekfac"
                total = fitting.covariances(replace(job, keep=keep), shards, mapper, kept)
            with clocked(seconds, "eigen"):
                factors = fitting.bases(total, self.names_, self.strategy, kept)
        if self.strategy in ("diagonal", "ekfac"):
            with clocked(seconds, "lambda"):
                factors = fitting.corrected(replace(job, keep=again), factors, shards, mapper, kept)
        self.factors_, self.seconds_ = factors, seconds

    def release(self) -> None:
        """Let go of the pairs kept in memory (see `pair_cache`)."""
        self._cache.clear()

    # ── asking ───────────────────────────────────────────────────────────────

    def score(
        self,
        queries: Any,
        measurement: str | Measurement = "auto",
        *,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        row_norm: RowNorm = "none",
        unit: Unit = "row",
        top_k: int | None = None,
        per_module: bool = False,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Scores `[Q, N]` of training rows (or of `candidates`) for each query.

        `measurement` "auto" is the completion's log-probability for token rows, the margin for classes, the
        output for regression. `query_agg` combines queries: mean; unit_mean (each gradient to length one
        first); contrast (query minus the same row of `unwanted`, to length one, then the mean). `row_norm`
        divides by the row's gradient norm ("grad") or the root of its self-influence ("self"). `unit` "token"
        scores every token's part, columns named `row#token`.
        """
        self._check_fitted()
        for name, value, allowed in (
            ("query_agg", query_agg, QueryAgg),
            ("row_norm", row_norm, RowNorm),
            ("unit", unit, Unit),
        ):
            check_choice(name, value, allowed)
        asked = asking.asked_units(queries, unwanted, query_agg, self._tokenizer)
        rows = self._rows(candidates)
        f = self._measurement(measurement, asked)
        plan = Plan(self.damping, row_norm, unit, per_module)
        about = {"query_agg": query_agg, "row_norm": row_norm, "unit": unit, "measurement": asking.name_of(f)}
        with clocked(self.seconds_, "scores"):
            self.queries_ = scoring.prepare(
                self._job(asked, f),
                self.factors_,
                plan,
                query_agg,
                self.query_rank,
                self.svd,
                sum(rows.sizes),
            )
            kept = self._store(store, "score", rows, queries=asked.sha256, per_module=per_module, **about)
            fn = partial(scoring.score_shard, self._row_job(rows), self.queries_, self.factors_, plan)
            parts = gathered("scores", fn, self._shards(rows), as_mapper(executor), kept)
        table = self._table(parts, rows, plan, {**about, "query_norms": list(self.queries_.norms)})
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """`grad L^T (G + lambda)^-1 grad L / N` of each training row, `[N]` float32 (>= 0)."""
        self._check_fitted()
        fn = partial(scoring.self_shard, self._row_job(self.train_), self.factors_, Plan(self.damping))
        parts = gathered("self", fn, self._shards(self.train_), as_mapper(executor), None)
        values = torch.cat([part["self"] for part in parts]) / len(self.train_)
        return asking.finite(values.numpy(), "self scores")

    def per_token(self, q: int | str, n: int | str, *, candidates: Any = None) -> NDArray[np.float32]:
        """The part of each token of row n in the score of query q of the last `score` call, `[T]`."""
        return self.explain(q, n, candidates=candidates).scores[0]

    def explain(self, q: int | str, n: int | str, *, candidates: Any = None) -> ScoreTable:
        """Token by module parts of one pair: one query over the tokens of row n, `per_module` set."""
        self._check_fitted()
        if not hasattr(self, "queries_"):
            raise InputError("there are no queries yet", fix="call score() first")
        rows = self._rows(candidates)
        queries = self.queries_.at(asking.position(q, self.queries_.ids, "query"))
        plan = Plan(self.damping, unit="token", per_module=True)
        at = asking.position(n, rows.ids, "row")
        part = scoring.score_shard(self._row_job(rows), queries, self.factors_, plan, [at])
        about = {"unit": "token", "row": rows.ids[at]}
        return self._table([part], asking.OneRow(rows, at), plan, about, queries)

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage, bytes of factors and queries, before anything runs. Needs `bind` or `fit`."""
        from glasshouse.attribution.ekfac.cost import cost

        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        shapes = [(m.out_features, m.in_features) for m in self.tracked_]
        return cost(shapes, rows.sizes, queries, rank=self.query_rank, strategy=self.strategy)

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json` and one safetensors file per module; each write is atomic."""
        self._check_fitted()
        return persist.save(Path(folder), self.factors_, self._manifest())

    @classmethod
    def load(cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None) -> EKFAC:
        """Factors from disk; StaleError when they were fitted on another checkpoint or on other rows."""
        manifest, factors = persist.load(Path(folder))
        method = cls(**manifest["options"])
        method._bind(subject, train_data, objective)
        method._check_stored(manifest, folder)
        method.factors_, method.seconds_ = factors, {}
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _check_options(self) -> None:
        super()._check_options()
        check_choice("strategy", self.strategy, Strategy)
        check_choice("label_mode", self.label_mode, LabelMode)
        check_choice("svd", self.svd, Literal["randomized", "full"])
        check_damping(self.damping)
        at_least_one("factor_examples", self.factor_examples)
        at_least_one("query_rank", self.query_rank)
        cache = self.pair_cache
        if cache != "auto" and (isinstance(cache, str) or cache < 0):
            raise InputError(f"pair_cache is {cache!r}", fix='use "auto", or bytes (0 for none)')

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        self.__dict__.pop("queries_", None)  # of an earlier fit: preconditioned with other factors
        super()._bind(subject, train_data, objective)

    def _row_job(self, rows: Units) -> Job:
        """The training loss over `rows`, taking pairs from the cache where the fit left them."""
        return replace(self._job(rows, self.objective_), cache=self._cache)

    def _table(
        self,
        parts: list[dict[str, Tensor]],
        rows: Units | asking.OneRow,
        plan: Plan,
        about: dict[str, Any],
        queries: Prepared | None = None,
    ) -> ScoreTable:
        ids = (queries or self.queries_).ids
        meta, tokens = {**self._manifest(), **about}, plan.unit == "token"
        return asking.table(parts, rows, ids, n=len(self.train_), tokens=tokens, meta=meta)
