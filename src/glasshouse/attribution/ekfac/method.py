"""`EKFAC`: fit curvature once, then ask which training rows moved a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glasshouse.attribution.ekfac import guards, persist, scoring
from glasshouse.attribution.ekfac.curvature import Factor, check_damping, eigenbasis
from glasshouse.attribution.ekfac.passes import Job, covariance_shard, lambda_shard, mirrored
from glasshouse.attribution.ekfac.scoring import Plan, Prepared, QueryAgg, RowNorm, Unit, check_choice
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
from glasshouse.attribution.store import Here, Mapper, Store, gathered, summed
from glasshouse.attribution.units import TokenUnits, Units, as_units
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.runtime.seeds import rng

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
    ) -> None:
        self.strategy, self.label_mode, self.damping = strategy, label_mode, damping
        self.factor_examples, self.query_rank, self.svd = factor_examples, query_rank, svd
        self.modules, self.seed = modules, seed
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards
        self.force_bf16 = force_bf16

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
        chosen = self._factor_rows()
        job = self._job(self.train_, self.objective_, sampled=self.label_mode == "sampled")
        guards.check_sampling(job)
        if not self.force_bf16:
            guards.check_bf16(job)
        self.factors_ = {name: Factor(name) for name in self.names_}
        if self.strategy in ("kfac", "ekfac"):
            self._fit_basis(self._covariances(job, chosen, mapper, kept), kept)
        if self.strategy in ("diagonal", "ekfac"):
            self._fit_lambda(job, chosen, mapper, kept)
        return self

    def _covariances(
        self, job: Job, chosen: list[int], mapper: Mapper, kept: Store | None
    ) -> dict[str, Tensor]:
        shards = self._split(job.units, chosen)
        total = summed("covariance", partial(covariance_shard, job), shards, mapper, kept)
        _refuse_nan(total, job, chosen)
        return total

    def _fit_basis(self, total: dict[str, Tensor], kept: Store | None) -> None:
        """Eigenvectors of A and S; K-FAC is then complete. Kept on disk, since their signs are arbitrary."""
        for name in self.names_:
            found = kept.read(f"basis-{name}") if kept is not None else None
            if found is not None:
                parts = found[0]
            else:
                count = float(total[f"count/{name}"])
                la, Qa = eigenbasis(mirrored(total[f"A/{name}"]) / count, f"module {name!r}, inputs")
                ls, Qs = eigenbasis(mirrored(total[f"S/{name}"]) / count, f"module {name!r}, gradients")
                parts = {"la": la, "ls": ls, "Qa": Qa, "Qs": Qs}
                if kept is not None:
                    kept.write(f"basis-{name}", parts)
            values = {"la": parts["la"], "ls": parts["ls"]}
            Lambda = torch.outer(parts["ls"], parts["la"]) if self.strategy == "kfac" else None
            self.factors_[name] = Factor(name, Lambda, parts["Qa"], parts["Qs"], values)

    def _fit_lambda(self, job: Job, chosen: list[int], mapper: Mapper, kept: Store | None) -> None:
        bare = {n: Factor(n, None, f.Qa, f.Qs) for n, f in self.factors_.items()}
        shards = self._split(job.units, chosen)
        total = summed("lambda", partial(lambda_shard, job, bare), shards, mapper, kept)
        _refuse_nan(total, job, chosen)
        for name, factor in self.factors_.items():
            Lambda = total[f"Lambda/{name}"] / len(chosen)
            self.factors_[name] = Factor(name, Lambda, factor.Qa, factor.Qs, factor.extra)

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
        asked = self._queries(queries, unwanted, query_agg)
        rows = self.train_ if candidates is None else as_units(candidates, tokenizer=self._tokenizer)
        f = self._measurement(measurement, asked)
        plan = Plan(self.damping, row_norm, unit, per_module)
        self.queries_ = scoring.prepare(
            self._job(asked, f), self.factors_, plan, query_agg, self.query_rank, self.svd, sum(rows.sizes)
        )
        about = {"query_agg": query_agg, "row_norm": row_norm, "unit": unit, "measurement": _name(f)}
        kept = self._store(store, "score", rows, queries=asked.sha256, per_module=per_module, **about)
        job = self._job(rows, self.objective_)
        fn = partial(scoring.score_shard, job, self.queries_, self.factors_, plan)
        parts = gathered("scores", fn, self._split(rows, list(range(len(rows)))), _mapper(executor), kept)
        table = self._table(parts, rows, plan, {**about, "query_norms": list(self.queries_.norms)})
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, executor: str | Mapper | None = None) -> np.ndarray:
        """`grad L^T (G + lambda)^-1 grad L / N` of each training row, `[N]` float32 (>= 0)."""
        self._check_fitted()
        job = self._job(self.train_, self.objective_)
        fn = partial(scoring.self_shard, job, self.factors_, Plan(self.damping))
        shards = self._split(self.train_, list(range(len(self.train_))))
        parts = gathered("self", fn, shards, _mapper(executor), None)
        values = torch.cat([part["self"] for part in parts]) / len(self.train_)
        return _finite(values.numpy(), "self scores")

    def per_token(self, q: int | str, n: int | str, *, candidates: Any = None) -> np.ndarray:
        """The part of each token of row n in the score of query q of the last `score` call, `[T]`."""
        return self.explain(q, n, candidates=candidates).scores[0]

    def explain(self, q: int | str, n: int | str, *, candidates: Any = None) -> ScoreTable:
        """Token by module parts of one pair: one query over the tokens of row n, `per_module` set."""
        self._check_fitted()
        if not hasattr(self, "queries_"):
            raise InputError("there are no queries yet", fix="call score() first")
        rows = self.train_ if candidates is None else as_units(candidates, tokenizer=self._tokenizer)
        queries = self.queries_.at(_position(q, self.queries_.ids, "query"))
        plan = Plan(self.damping, unit="token", per_module=True)
        at = _position(n, rows.ids, "row")
        part = scoring.score_shard(self._job(rows, self.objective_), queries, self.factors_, plan, [at])
        return self._table([part], _Only(rows, at), plan, {"unit": "token", "row": rows.ids[at]}, queries)

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
        method.factors_ = factors
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

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
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

    def _factor_rows(self) -> list[int]:
        n = len(self.train_)
        if n <= self.factor_examples:
            return list(range(n))
        drawn = rng(self.seed, "factor rows").choice(n, self.factor_examples, replace=False)
        return sorted(int(i) for i in drawn)

    def _split(self, units: Units, indices: list[int]) -> list[list[int]]:
        """Contiguous pieces of about equal token count."""
        lengths = units.sizes  # a property: asked once, not once a row
        sizes = [lengths[i] for i in indices] if self.shards is None else []
        pieces = self.shards or max(1, -(-sum(sizes) // SHARD_TOKENS))
        size = -(-len(indices) // min(pieces, len(indices)))
        return [indices[k : k + size] for k in range(0, len(indices), size)]

    def _queries(self, queries: Any, unwanted: Any, query_agg: QueryAgg) -> Units:
        asked = as_units(queries, tokenizer=self._tokenizer)
        if (unwanted is not None) != (query_agg == "contrast"):
            raise InputError('unwanted= and query_agg="contrast" belong together', fix="give both or neither")
        return asked if unwanted is None else _stacked(asked, as_units(unwanted, tokenizer=self._tokenizer))

    def _measurement(self, measurement: str | Measurement, asked: Units) -> Measurement:
        if measurement == "auto":
            batch = asked.batch([0])
            floats = not isinstance(asked, TokenUnits) and batch.targets.is_floating_point()  # type: ignore[union-attr]
            measurement = (
                "completion_logprob" if hasattr(batch, "labels") else "output" if floats else "margin"
            )
        f = measure(measurement)
        if f is measurement:
            self._check_reduction(f, asked, "the measurement")
        return f

    def _manifest(self) -> dict[str, Any]:
        return {
            "options": self._options(),
            "model_hash": self.model_hash_,
            "data_hash": self.train_.sha256,
            "objective": _name(self.objective_),
            "modules": list(self.names_),
            "n_train": len(self.train_),
        }

    def _store(self, folder: Path | str | None, stage: str, rows: Units, **more: Any) -> Store | None:
        if folder is None:
            return None
        about = {"stage": stage, "rows": rows.sha256, **persist.versions(), **self._manifest(), **more}
        return Store(Path(folder) / stage, about)

    def _table(
        self, parts: list[dict[str, Tensor]], rows: Any, plan: Plan, about: dict[str, Any],
        queries: Prepared | None = None,
    ) -> ScoreTable:  # fmt: skip
        n = len(self.train_)
        norms = torch.cat([p["norms"] for p in parts]) if "norms" in parts[0] else torch.ones(())
        joined = {
            key: (torch.cat([p[key] for p in parts], 1) / n / norms.clamp_min(1e-30)).numpy()
            for key in parts[0]
            if key != "norms"
        }
        scores = _finite(joined.pop("scores"), "scores")
        modules = {key.removeprefix("module/"): part for key, part in joined.items()}
        meta = {**self._manifest(), **about}
        names = _token_names(rows) if plan.unit == "token" else rows.ids
        ids = (queries or self.queries_).ids
        return ScoreTable(scores, ids, tuple(names), meta, per_module=modules)


class _Only:
    """One row of some units, for naming its tokens."""

    def __init__(self, rows: Units, at: int) -> None:
        self.ids, self.sizes = (rows.ids[at],), [rows.sizes[at]]


def _token_names(rows: Any) -> list[str]:
    return [f"{name}#{t}" for name, size in zip(rows.ids, rows.sizes, strict=True) for t in range(size)]


def _position(key: int | str, names: Sequence[str], what: str) -> int:
    if isinstance(key, int):
        return key
    if key not in names:
        raise InputError(f"no {what} is called {key!r}")
    return names.index(key)


def _name(f: Any) -> str:
    return str(getattr(f, "name", None) or getattr(f, "__name__", type(f).__name__))


def _stacked(wanted: Units, unwanted: Units) -> Units:
    if len(wanted) != len(unwanted):
        raise InputError(f"{len(wanted)} wanted but {len(unwanted)} unwanted completions", fix="give pairs")
    if not isinstance(wanted, TokenUnits) or not isinstance(unwanted, TokenUnits):
        raise InputError("contrast is for token rows", fix="use logprob_difference for classes")
    from glasshouse.corpora.rows import TokenRow

    rows = [TokenRow(r.ids, r.labels, i) for r, i in zip(wanted.rows, wanted.ids, strict=True)]
    rows += [TokenRow(r.ids, r.labels, f"not {i}") for r, i in zip(unwanted.rows, wanted.ids, strict=True)]
    return TokenUnits(rows, side=wanted.side, pad_id=wanted.pad_id)


def _mapper(executor: str | Mapper | None) -> Mapper:
    if executor is None:
        return Here()
    if isinstance(executor, str):
        from glasshouse.runtime.executors import get_executor

        return get_executor(executor)
    return executor


def _refuse_nan(total: dict[str, Tensor], job: Job, indices: list[int]) -> None:
    """Sums that are not finite send us back over the rows to name the culprit."""
    for name, value in total.items():
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(torch.triu(value)).all()):
            del name
            guards.locate_nan(job, indices)


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        from glasshouse.runtime.errors import NumericalError

        raise NumericalError(f"{what} hold NaN or infinity", fix="raise the damping")
    return values
