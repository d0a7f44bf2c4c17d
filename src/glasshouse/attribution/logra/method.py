"""`LoGra`: log a small sketch of every training row's gradient once, then answer any number of queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import GradientMethod, as_mapper, at_least_one
from glasshouse.attribution.logra import persist, search
from glasshouse.attribution.logra.cost import cost, needed_bytes, refuse_full_disk
from glasshouse.attribution.logra.curvature import (
    Inverse,
    Kind,
    inverses,
    measured,
    solved,
    whitened,
)
from glasshouse.attribution.logra.layout import Layout, Unit, lay_out
from glasshouse.attribution.logra.log import SketchLog, check_shard, joined
from glasshouse.attribution.logra.number import BYTES, Dtype, Scaling, pack
from glasshouse.attribution.logra.projection import Init, Projections, drawn, principal, warn_capped
from glasshouse.attribution.logra.search import Asked, Mode, Rule
from glasshouse.attribution.logra.sketching import Recipe, log_shard, row_sketches, shard_name, write_shard
from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages import asking, fitting, guards
from glasshouse.attribution.stages.contract import Query, token_scores
from glasshouse.attribution.stages.curvature import DAMPING_SHARE, check_damping
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import QueryAgg, aggregate, check_choice
from glasshouse.attribution.stages.steps import Job, steps
from glasshouse.attribution.store import Mapper, Store, Tensors, gathered
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError

SHARD_BYTES = 1 << 26
"""Most stored bytes in one shard: what is read, or written, in one go."""

LOGGED = ("rank", "init", "dtype", "scaling", "unit", "share", "force_bf16")
"""The options that a log depends on; damping, curvature and mode may change after it."""


class LoGra(GradientMethod):
    """Influence through projected gradients kept on disk (Choe et al. 2024, arXiv:2405.13954).

    Options: `rank` of both projections (a smaller side of a module is kept whole, with a `RankWarning`);
    `init` random | kaiming | pca (the latter costs one more pass); `curvature` raw (the Fisher matrix of the
    sketches) | kfac | ekfac | None; `damping` "auto" (a tenth of each block's mean eigenvalue) or an absolute
    number; `damping_share` that tenth; `mode` "auto" (`score` dot, `search` cosine) | dot | cosine | l2;
    `dtype` float16 | bfloat16 | float32 of what is stored; `scaling` line (float16: one power of two a row)
    | none; `share` globs of modules whose sketches are added up in one; `unit` row | token (each token's
    `P_o g` and `P_i a` instead of their sum: 2r numbers a token and module); `modules`, `seed`,
    `batch_tokens`, `batch_rows`, `shards`, `force_bf16` as for `EKFAC`.

    Learned: `log_` (the sketches), `projections_`, `factors_` (curvature by block), `whitened_`, `tracked_`,
    `names_`, `train_`, `objective_`, `model_hash_`; `seconds_`, the CPU seconds of this process in each stage
    (covariance, log, curvature; queries, candidates and scores after each `score` or `search`).

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> LoGra(2).fit(nn.Linear(3, 2), (X, y)).score((X[:2], y[:2])).scores.shape
    (2, 8)
    """

    OPTIONS = (*LOGGED, "curvature", "damping", "damping_share", "mode")
    FITTED = "factors_"

    def __init__(
        self,
        rank: int = 64,
        *,
        init: Init = "random",
        curvature: Kind | None = "raw",
        damping: float | Literal["auto"] = "auto",
        damping_share: float = DAMPING_SHARE,
        mode: Mode | Literal["auto"] = "auto",
        dtype: Dtype = "float16",
        scaling: Scaling = "line",
        share: Sequence[str] | None = None,
        unit: Unit = "row",
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        batch_tokens: int = 2048,
        batch_rows: int = 512,
        shards: int | None = None,
        force_bf16: bool = False,
    ) -> None:
        self.rank, self.init, self.curvature, self.damping = rank, init, curvature, damping
        self.damping_share = damping_share
        self.mode, self.dtype, self.scaling, self.share, self.unit = mode, dtype, scaling, share, unit
        self.modules, self.seed, self.force_bf16 = modules, seed, force_bf16
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards

    # ── logging ──────────────────────────────────────────────────────────────

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Objective | Measurement | None = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> LoGra:
        """Log every row of `train_data` and measure the curvature of what was logged.

        With a `store` folder sketches go to disk shard by shard, and a killed fit goes on where it was; a
        shard that is missing or cut short is made again. Without one they stay in memory. `objective` is the
        training loss, a sum per row. Raises the errors named in the attribution pages, and InputError before
        the first pass where the disk cannot hold the log.
        """
        self._check_options()
        self._bind(subject, train_data, objective)
        warn_capped(self.tracked_, self.rank)
        job, mapper = self._job(self.train_, self.objective_), as_mapper(executor)
        if not self.force_bf16:
            guards.check_bf16(job)
        self.seconds_: dict[str, float] = {}
        kept = self._log_store(store, self.train_)
        self.projections_ = self._project(job, mapper, kept)
        self.log_, grams = self._logged(job, mapper, kept)
        with clocked(self.seconds_, "curvature"):
            done = self._store(store, f"curvature-{self.curvature or 'none'}", self.train_)
            self.factors_ = measured(self.log_, self.curvature, grams, mapper, done)
        self.whitened_ = False
        if kept is not None:
            self.log_.save(kept.folder)
        return self

    def whiten(self, *, store: Path | str | None = None) -> Self:
        """Replace every sketch v by `(F + damping)^-1/2 v`, so that scores are plain dot products.

        Any vector index then answers queries: index `log_` (by shard, or `log_.vectors()`), ask it with
        `query_vectors`. Damping is fixed from here on. With a `store` folder the new shards go there.
        """
        self._check_fitted()
        if self.whitened_:
            raise InputError("the log is whitened already", where=type(self).__name__)
        inverse, numbers = self._inverse(), range(len(self.log_.shards))
        folder = None if store is None else Path(store) / "whitened" / "sketches"
        shards: list[Tensor | Path] = []
        exponents = []
        for i in numbers:
            packed, scale = pack(search.whitened_shard(self.log_, inverse, i), self.dtype, self.scaling)
            if folder is not None:
                write_shard(folder, i, packed)
            shards.append(packed if folder is None else folder / shard_name(i))
            exponents.append(scale)
        old = self.log_
        ones = [torch.ones_like(part) for part in old.lines]
        layout = Layout(old.layout.blocks, "row")
        self.log_ = SketchLog(layout, old.dtype, shards, exponents, ones, old.ids, old.loss, old.tokens)
        if folder is not None:
            self.log_.save(folder.parent)
        self.whitened_ = True
        self._forget()
        return self

    # ── asking ───────────────────────────────────────────────────────────────

    def score(
        self,
        queries: Any,
        measurement: str | Measurement = "auto",
        *,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        mode: Mode | None = None,
        unit: Unit = "row",
        top_k: int | None = None,
        per_module: bool = False,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Scores `[Q, N]` of training rows (or of `candidates`, which are logged in memory first).

        `mode` (default: the option; "auto" is dot): dot is the predicted change; cosine divides by the root
        of the row's self-influence, so that rows of high loss do not come first everywhere; l2 takes half
        the row's self-influence off. `unit` "token" needs a log by tokens. `measurement`, `query_agg`,
        `unwanted` and `per_module` (here: by block) are those of `EKFAC.score`. Shards are streamed.
        """
        self._check_fitted()
        check_choice("unit", unit, Unit)
        mode = self._mode(mode, "dot")
        self._check_asked(mode, unit, per_module)
        asked, about = self._asked(queries, measurement, unwanted, query_agg)
        mapper = None if executor is None else as_mapper(executor)
        log = self.log_ if candidates is None else self._candidates(candidates, as_mapper(executor))
        with clocked(self.seconds_, "scores"):
            rule = self._rule(log, mode)
            about |= {"mode": mode, "unit": unit}
            kept = self._store(store, "score", self.train_, per_module=per_module, log=_log_id(log), **about)
            parts = search.dense(
                log, asked, rule, tokens=unit == "token", per_module=per_module, mapper=mapper, kept=kept
            )
        table = _table(parts, asked, search.row_names(log, unit == "token"), {**self._manifest(), **about})
        return table if top_k is None else table.keep_top(top_k)

    def search(
        self,
        queries: Any,
        k: int = 50,
        measurement: str | Measurement = "auto",
        *,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        mode: Mode | None = None,
    ) -> ScoreTable:
        """The `k` rows of highest score for each query, as a sparse table (`mode` "auto" is cosine).

        The log is streamed and only k numbers a query are kept, so that memory does not grow with the rows.
        """
        self._check_fitted()
        at_least_one("k", k)
        mode = self._mode(mode, "cosine")
        asked, about = self._asked(queries, measurement, unwanted, query_agg)
        with clocked(self.seconds_, "scores"):
            values, columns = search.best(self.log_, asked, self._rule(self.log_, mode), k)
        meta = {**self._manifest(), **about, "mode": mode, "unit": "row", "top_k": k}
        return ScoreTable(values, asked.ids, self.log_.ids, meta, columns)

    def query_vectors(
        self, queries: Any, measurement: str | Measurement = "auto", *, query_agg: QueryAgg = "each"
    ) -> NDArray[np.float32]:
        """What an index over the log is asked with, `[Q, width]`: `-vector . sketch / N` is the dot score."""
        self._check_fitted()
        return self._asked(queries, measurement, None, query_agg)[0].vectors.numpy()

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """`v^T (F + damping)^-1 v / N` of each training row's sketch v, `[N]` float32 (>= 0)."""
        self._check_fitted()
        values = self._self_influence(as_mapper(executor)) / len(self.train_)
        return asking.finite(values.numpy(), "self scores")

    def explain(self, q: int | str, n: int | str, *, candidates: Any = None) -> ScoreTable:
        """Token by block parts of one pair, mode dot: query q of the last `score` or `search` over row n."""
        self._check_fitted()
        if not hasattr(self, "queries_"):
            raise InputError("there are no queries yet", fix="call score() first")
        if self.whitened_:
            raise InputError("a whitened log explains no tokens", fix="explain before whiten()")
        rows = self._rows(candidates)
        at = asking.position(n, rows.ids, "row")
        asked = self.queries_.at(asking.position(q, self.queries_.ids, "query"))
        parts = self._token_parts(asked.vectors, rows, at)
        found = {"scores": sum(parts.values()), **{f"module/{name}": part for name, part in parts.items()}}
        about = {"unit": "token", "mode": "dot", "row": rows.ids[at]}
        names = [f"{rows.ids[at]}#{t}" for t in range(rows.sizes[at])]
        return _table([found], asked, names, {**self._manifest(), **about})

    def per_token(self, q: int | str, n: int | str, *, candidates: Any = None) -> NDArray[np.float32]:
        """The part of each token of row n in the score of query q of the last call, `[T]`."""
        return self.explain(q, n, candidates=candidates).scores[0]

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage and bytes of sketches, factors and queries, before anything runs."""
        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        shapes = [(m.out_features, m.in_features) for m in self.tracked_]
        blocks = self._planned(shapes)
        return cost(
            shapes, blocks, rows.sizes, queries, self.rank, self.init, self.curvature, self.dtype, self.unit
        )

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write the log, curvature and `manifest.json` into `folder`; each write is atomic.

        Of projections only the seed is kept, unless they were measured (`init="pca"`). Shards that lie on the
        same disk are linked, not copied.
        """
        self._check_fitted()
        self.log_.save(Path(folder))
        projections = self.projections_ if self.init == "pca" else None
        manifest = {**self._manifest(), "whitened": self.whitened_}
        return persist.save(Path(folder), self.log_.layout, self.factors_, projections, manifest)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Any, train_data: Any = None, *, objective: Any = None
    ) -> LoGra:
        """A saved log; StaleError when it belongs to another checkpoint or to other rows.

        Without `train_data` the log answers alone; only `explain` needs the rows.
        """
        manifest, factors, projections = persist.load(Path(folder))
        method = cls(**manifest["options"])
        log = SketchLog.open(folder)
        if train_data is None:
            train_data = persist.LoggedRows(log.ids, log.tokens.tolist(), manifest["data_hash"])
            objective = objective or persist.objective_of(manifest)
        method._bind(subject, train_data, objective)
        method._check_stored(manifest, folder)
        method.projections_ = projections or method._drawn()
        method.log_, method.factors_ = log, factors
        method.whitened_, method.seconds_ = bool(manifest["whitened"]), {}
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _check_options(self) -> None:
        super()._check_options()
        at_least_one("rank", self.rank)
        for name, value, allowed in (
            ("init", self.init, Init), ("dtype", self.dtype, Dtype), ("scaling", self.scaling, Scaling),
            ("unit", self.unit, Unit),
        ):  # fmt: skip
            check_choice(name, value, allowed)
        if self.curvature is not None:
            check_choice("curvature", self.curvature, Kind)
        if self.mode != "auto":
            check_choice("mode", self.mode, Mode)
        check_damping(self.damping)
        if not self.damping_share > 0:
            raise InputError(f"damping_share is {self.damping_share!r}", fix="use a positive share")

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "share": None if self.share is None else list(self.share)}

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        for name in ("queries_", "log_", "factors_", "projections_", "whitened_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        self._forget()
        super()._bind(subject, train_data, objective)

    def _forget(self) -> None:
        """Drop what was derived from curvature or log."""
        self._kept: dict[tuple[str, float | str, float], Any] = {}
        self.__dict__.pop("queries_", None)

    def _drawn(self) -> Projections:
        return drawn(self.tracked_, self.rank, self.init, self.seed)

    def _project(self, job: Job, mapper: Mapper, kept: Store | None) -> Projections:
        if self.init != "pca":
            return self._drawn()
        with clocked(self.seconds_, "covariance"):
            total = fitting.covariances(job, self._shards(self.train_), mapper, kept)
            return principal(fitting.bases(total, self.names_, "kfac", kept), self.rank)

    def _log_store(self, folder: Path | str | None, rows: Units) -> Store | None:
        """The folder of the log, bound to what a log depends on: not to damping, curvature or mode."""
        if folder is None:
            return None
        about = {**self._manifest(), "stage": "log", "rows": rows.sha256}
        kron = self.curvature in ("kfac", "ekfac")
        dropped = ("curvature", "damping", "damping_share", "mode")
        about["options"] = {k: v for k, v in self._options().items() if k not in dropped} | {
            "covariance": kron
        }
        return Store(Path(folder) / "log", about)

    def _logged(
        self, job: Job, mapper: Mapper, kept: Store | None, stage: str = "log"
    ) -> tuple[SketchLog, Tensors]:
        layout = lay_out(self.projections_, self.share or (), self.unit)
        shards = self._pieces(job.units, layout)
        folder = None if kept is None else kept.folder / "sketches"
        if kept is not None:
            missing = _drop_damaged(kept, len(shards))
            share = missing / len(shards)
            refuse_full_disk(kept.folder, share * needed_bytes(layout, job.units.sizes, self.dtype))
        kron = self.curvature in ("kfac", "ekfac")
        recipe = Recipe(
            self.projections_, layout, self.dtype, self.scaling, kron, None if folder is None else str(folder)
        )
        with clocked(self.seconds_, stage):
            parts = gathered("log", partial(log_shard, job, recipe), list(enumerate(shards)), mapper, kept)
        grams: Tensors = {}
        for part in parts:
            for key in (key for key in part if key[:2] in ("A/", "S/") or key.startswith("count/")):
                grams[key] = grams[key] + part[key] if key in grams else part[key]
        return joined(parts, layout, self.dtype, job.units.ids, folder), grams

    def _pieces(self, rows: Units, layout: Layout) -> list[list[int]]:
        """Contiguous shards, bounded by tokens (what a kill repeats) and by stored bytes."""
        if self.shards is None:
            size = needed_bytes(layout, rows.sizes, self.dtype)
            by_tokens = len(self._shards(rows))
            return fitting.split(rows, list(range(len(rows))), max(by_tokens, -(-size // SHARD_BYTES)), 0)
        return self._shards(rows)

    def _candidates(self, candidates: Any, mapper: Mapper) -> SketchLog:
        if self.whitened_:
            raise InputError(
                "a whitened log scores only its own rows", fix="score candidates before whiten()"
            )
        job = self._job(self._rows(candidates), self.objective_)
        return self._logged(job, mapper, None, "candidates")[0]

    def _asked(
        self, queries: Any, measurement: str | Measurement, unwanted: Any, query_agg: QueryAgg
    ) -> tuple[Asked, dict[str, Any]]:
        """Preconditioned query sketches, and what the table should say about them."""
        check_choice("query_agg", query_agg, QueryAgg)
        units = asking.asked_units(queries, unwanted, query_agg, self._tokenizer)
        f = self._measurement(measurement, units)
        layout = self.log_.layout
        with clocked(self.seconds_, "queries"):
            raw = row_sketches(self._job(units, f), self.projections_, layout, range(len(units)))
            search.checked(raw.numpy(), "query sketches")
            joint, ids = aggregate({"": raw[:, :, None]}, units.ids, query_agg)
            U = joint[""][:, :, 0]
            norms = tuple(U.double().square().sum(1).sqrt().tolist())
            turn = whitened if self.whitened_ else solved
            self.queries_ = Asked(ids, turn(self._inverse(), layout, U).contiguous(), norms)
        about = {
            "query_agg": query_agg, "measurement": asking.name_of(f), "queries": units.sha256,
            "query_norms": list(norms),
        }  # fmt: skip
        return self.queries_, about

    def _inverse(self) -> dict[str, Inverse]:
        key = "inverse", self.damping, self.damping_share
        if key not in self._kept:
            self._kept[key] = inverses(self.factors_, self.log_.layout, self.damping, self.damping_share)
        return self._kept[key]

    def _self_influence(self, mapper: Mapper) -> Tensor:
        key = "self", self.damping, self.damping_share
        if key not in self._kept:
            inverse = None if self.whitened_ else self._inverse()
            self._kept[key] = search.self_influences(self.log_, inverse, mapper, None)
        return self._kept[key]

    def _rule(self, log: SketchLog, mode: Mode) -> Rule:
        if mode == "dot":
            return Rule(len(self.train_), mode)
        mapper = as_mapper(None)
        own = (
            self._self_influence(mapper) if log is self.log_
            else search.self_influences(log, self._inverse(), mapper, None)
        )  # fmt: skip
        return Rule(len(self.train_), mode, own)

    def _mode(self, asked: Mode | None, usual: Mode) -> Mode:
        mode = asked or (usual if self.mode == "auto" else self.mode)
        check_choice("mode", mode, Mode)
        return mode

    def _check_asked(self, mode: Mode, unit: Unit, per_module: bool) -> None:
        if unit == "token" and (self.unit != "token" or self.whitened_):
            raise InputError(
                "the log holds one sketch a row",
                fix='fit with unit="token", or use explain() for single rows',
            )
        if mode == "l2" and (unit == "token" or per_module):
            raise InputError("an l2 score has no parts", fix='use mode="dot" or "cosine"')

    def _token_parts(self, vectors: Tensor, rows: Units, at: int) -> dict[str, Tensor]:
        """`[1, T]` by block: the tokens' parts of one row's dot score."""
        step = next(iter(steps(self._job(rows, self.objective_), [at])))
        T, found = rows.sizes[at], {}
        for block in self.log_.layout.blocks:
            V = vectors[:, block.columns].view(1, block.out, block.inn)
            total = torch.zeros(1, T)
            for name in block.members:
                half = self.projections_[name].halves(step.pairs[name])
                parts = token_scores(Query(V), half)[:, 0]
                if parts.shape[1] % T:
                    raise InputError(
                        "a module without the token axis has no token scores", where=f"module {name!r}"
                    )
                total += parts.unflatten(1, (-1, T)).sum(1)
            found[block.name] = total.mul_(-1 / len(self.train_))
        return found

    def _planned(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """(r_o, r_i) of every block, before any projection exists."""
        from glasshouse.attribution.logra.projection import Projection

        empty = {
            name: Projection(name, torch.empty(min(self.rank, o), 0), torch.empty(min(self.rank, i), 0))
            for name, (o, i) in zip(self.names_, shapes, strict=True)
        }
        return [(b.out, b.inn) for b in lay_out(empty, self.share or (), self.unit).blocks]


def _drop_damaged(kept: Store, shards: int) -> int:
    """Forget finished shards whose file is gone or cut short; returns how many have to be made."""
    missing = 0
    for i in range(shards):
        found = kept.read(f"log-{i:05d}")
        if found is not None:
            try:
                check_shard(kept.folder / "sketches" / shard_name(i), int(found[0]["bytes"]))
                continue
            except Exception:
                (kept.folder / f"log-{i:05d}.safetensors").unlink()
        missing += 1
    return missing


def _log_id(log: SketchLog) -> str:
    from glasshouse.runtime.files import sha256_json

    return sha256_json([list(log.ids), log.layout.to_json()])


def _table(parts: list[Tensors], asked: Asked, names: Sequence[str], meta: dict[str, Any]) -> ScoreTable:
    joined_ = {key: torch.cat([part[key] for part in parts], 1).numpy() for key in parts[0]}
    scores = search.checked(joined_.pop("scores"), "scores")
    modules = {key.removeprefix("module/"): part for key, part in joined_.items()}
    return ScoreTable(scores, asked.ids, tuple(names), meta, per_module=modules)


assert set(get_args(Dtype)) == set(BYTES)
