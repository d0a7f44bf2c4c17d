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

from glasshouse.attribution.ekfac import asking, fitting, guards, persist, scoring
from glasshouse.attribution.ekfac.curvature import Factor, check_damping
from glasshouse.attribution.ekfac.fitting import clocked
from glasshouse.attribution.ekfac.pairs import PairCache, budget_bytes
from glasshouse.attribution.ekfac.scoring import Plan, Prepared, QueryAgg, RowNorm, Unit, check_choice
from glasshouse.attribution.ekfac.steps import Job
from glasshouse.attribution.objectives import (
    BUILT_IN,
    Measurement,
    Objective,
    TokenLoss,
    check_sums,
    default_objective,
    measure,
)
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.store import Here, Mapper, Store, gathered
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError, StaleError

Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
LabelMode = Literal["sampled", "empirical"]
SHARD_TOKENS = 1 << 16
"""Tokens of training data in one shard: what a killed pass may have to repeat."""


class EKFAC:
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
        mapper, kept = _mapper(executor), self._store(store, "fit", self.train_)
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
        shards = fitting.split(self.train_, chosen, self.shards, SHARD_TOKENS)
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
        rows = self.train_ if candidates is None else as_units(candidates, tokenizer=self._tokenizer)
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
            parts = gathered("scores", fn, self._shards(rows), _mapper(executor), kept)
        table = self._table(parts, rows, plan, {**about, "query_norms": list(self.queries_.norms)})
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """`grad L^T (G + lambda)^-1 grad L / N` of each training row, `[N]` float32 (>= 0)."""
        self._check_fitted()
        fn = partial(scoring.self_shard, self._row_job(self.train_), self.factors_, Plan(self.damping))
        parts = gathered("self", fn, self._shards(self.train_), _mapper(executor), None)
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
        rows = self.train_ if candidates is None else as_units(candidates, tokenizer=self._tokenizer)
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

    def bind(self, subject: Any, train_data: Any, *, objective: Any = None) -> EKFAC:
        """Check subject and data and stop there, for `cost`."""
        self._check_options()
        self._bind(subject, train_data, objective)
        return self

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
        for name, live in (("model_hash", method.model_hash_), ("data_hash", method.train_.sha256)):
            if manifest[name] != live:
                raise StaleError(
                    f"the factors were fitted with another {name.split('_')[0]} "
                    f"({manifest[name][:12]}, now {live[:12]})", where=str(folder), fix="fit again",
                )  # fmt: skip
        method.factors_, method.seconds_ = factors, {}
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _options(self) -> dict[str, Any]:
        names = (
            "strategy", "label_mode", "damping", "factor_examples", "query_rank", "svd", "seed",
            "batch_tokens", "batch_rows", "shards", "force_bf16",
        )  # fmt: skip
        modules = self.modules if isinstance(self.modules, str) else list(self.modules)
        return {"modules": modules} | {name: getattr(self, name) for name in names}

    def _check_options(self) -> None:
        check_choice("strategy", self.strategy, Strategy)
        check_choice("label_mode", self.label_mode, LabelMode)
        check_choice("svd", self.svd, Literal["randomized", "full"])
        check_damping(self.damping)
        for name in ("factor_examples", "batch_tokens", "batch_rows", "query_rank", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", fix="use at least 1")
        cache = self.pair_cache
        if cache != "auto" and (isinstance(cache, str) or cache < 0):
            raise InputError(f"pair_cache is {cache!r}", fix='use "auto", or bytes (0 for none)')

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        self.__dict__.pop("queries_", None)  # of an earlier fit: preconditioned with other factors
        self.model_, self._tokenizer = guards.unwrap(subject)
        self._subject = subject
        guards.check_dtype(self.model_)
        self.tracked_ = guards.select_modules(self.model_, self.modules)
        self.names_ = tuple(m.name for m in self.tracked_)
        self.train_ = as_units(train_data, tokenizer=self._tokenizer)
        self.model_hash_ = guards.model_hash(subject)
        self.objective_ = objective or default_objective(self.train_.batch([0]))
        if isinstance(self.objective_, TokenLoss) and guards.tracks_head(self.model_, self.names_):
            self.objective_ = replace(self.objective_, all_positions=True)
        self._check_reduction(self.objective_, self.train_, "the training loss")

    def _check_reduction(self, f: Any, units: Units, what: str) -> None:
        if not isinstance(f, BUILT_IN):
            device = next(self.model_.parameters()).device
            batch = units.batch(range(min(2, len(units)))).to(device)
            check_sums(f, self.model_, batch, what)

    def _check_fitted(self) -> None:
        if not hasattr(self, "factors_"):
            raise InputError("it is not fitted", where=type(self).__name__, fix="call fit() first")

    def _job(self, units: Units, loss: Any, *, sampled: bool = False) -> Job:
        limits = self.batch_tokens, self.batch_rows
        return Job(self.model_, self.names_, units, loss, sampled, self.seed, *limits)

    def _row_job(self, rows: Units) -> Job:
        """The training loss over `rows`, taking pairs from the cache where the fit left them."""
        return replace(self._job(rows, self.objective_), cache=self._cache)

    def _shards(self, rows: Units) -> list[list[int]]:
        return fitting.split(rows, list(range(len(rows))), self.shards, SHARD_TOKENS)

    def _measurement(self, measurement: str | Measurement, asked: Units) -> Measurement:
        if measurement == "auto":
            measurement = asking.usual_measurement(asked)
        f = measure(measurement)
        if f is measurement:
            self._check_reduction(f, asked, "the measurement")
        return f

    def _manifest(self) -> dict[str, Any]:
        return {
            "options": self._options(),
            "model_hash": self.model_hash_,
            "data_hash": self.train_.sha256,
            "objective": asking.name_of(self.objective_),
            "modules": list(self.names_),
            "n_train": len(self.train_),
        }

    def _store(self, folder: Path | str | None, stage: str, rows: Units, **more: Any) -> Store | None:
        if folder is None:
            return None
        about = {"stage": stage, "rows": rows.sha256, **persist.versions(), **self._manifest(), **more}
        return Store(Path(folder) / stage, about)

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


def _mapper(executor: str | Mapper | None) -> Mapper:
    if executor is None:
        return Here()
    if isinstance(executor, str):
        from glasshouse.runtime.executors import get_executor

        return get_executor(executor)
    return executor
