"""`TracIn`: gradient products along the training path (Pruthi, Liu, Kale and Sundararajan 2020, 2002.08484).

TracInCP, equation 1 of the paper's section 3.2: `sum_c eta_c grad f(theta_c) . (-grad L_n(theta_c))` over C
saved checkpoints, eta_c the learning rate. No curvature is fitted; each checkpoint costs one pass over the
rows. Published codes drop the sign and the 1/N that make a score the predicted change of f; here they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import GradientMethod, as_mapper
from glasshouse.attribution.checkpoints import Checkpoint, loaded, rate_sums
from glasshouse.attribution.manifests import read_manifest
from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages import asking, guards, scoring
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import Plan, Prepared, QueryAgg, Unit, check_choice
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Tensors, gathered, read_tensors, write_tensors
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError

Layers = Literal["all", "last"]
Normed = Literal["none", "grad"]


class TracIn(GradientMethod):
    """Gradient products summed over checkpoints with their learning rates (arXiv:2002.08484).

    Options: `checkpoints` in the order of their steps (`read_run(folder)` reads those of a Trainer);
    `weights` "rate_sum" (the sum of the learning rates of the steps a checkpoint stands for: scores are then
    predicted changes of f under plain SGD; momentum b makes the true ones 1/(1 - b) times larger), "rate"
    (the paper's: the rate at the checkpoint), or one number per checkpoint; `layers` all | last (the last
    tracked module, in the order of definition, as the paper does for large models); `modules`, `seed`,
    batches and shards as in `EKFAC`.

    Learned: `weights_` (one per checkpoint), `hashes_` (content of each), and what every method binds;
    `seconds_` has the CPU seconds of "scores" after each `score`.

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> model = nn.Linear(3, 2)
    >>> path = [Checkpoint(nn.Linear(3, 2), 0, 0.1, lr_sum=0.5), Checkpoint(model, 10, 0.1)]
    >>> TracIn(path).fit(model, (X, y)).score((X[:2], y[:2])).scores.shape
    (2, 8)
    """

    OPTIONS = ("weights", "layers", "force_bf16")
    FITTED = "weights_"

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint] = (),
        *,
        weights: Literal["rate_sum", "rate"] | Sequence[float] = "rate_sum",
        layers: Layers = "all",
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        batch_tokens: int = 2048,
        batch_rows: int = 512,
        shards: int | None = None,
        force_bf16: bool = False,
    ) -> None:
        self.checkpoints, self.weights, self.layers = checkpoints, weights, layers
        self.modules, self.seed, self.force_bf16 = modules, seed, force_bf16
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Objective | Measurement | None = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> TracIn:
        """Check that every checkpoint fits `subject`, and weigh them; nothing else is learned.

        `executor` and `store` are taken for the common call; the passes happen in `score`. Raises InputError
        for checkpoints out of order, of another architecture, or with weights that are all zero.
        """
        self.bind(subject, train_data, objective=objective)
        weights = self._weights()
        if not self.force_bf16:
            guards.check_bf16(self._job(self.train_, self.objective_))
        for checkpoint in self.checkpoints:
            with loaded(self.model_, checkpoint):
                pass
        self.weights_, self.hashes_ = weights, tuple(c.hash for c in self.checkpoints)
        self.seconds_: dict[str, float] = {}
        return self

    def score(
        self,
        queries: Any,
        measurement: str | Measurement = "auto",
        *,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        row_norm: Normed = "none",
        unit: Unit = "row",
        top_k: int | None = None,
        per_module: bool = False,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Scores `[Q, N]` of training rows (or of `candidates`) for each query; options as in `EKFAC.score`.

        `row_norm` "grad" divides by the row's gradient norm at each checkpoint before summing over them
        (as LESS does, Xia et al. 2024, arXiv:2402.04333).
        """
        self._check_fitted()
        check_choice("query_agg", query_agg, QueryAgg)
        check_choice("row_norm", row_norm, Normed)
        check_choice("unit", unit, Unit)
        asked = asking.asked_units(queries, unwanted, query_agg, self._tokenizer)
        rows, f = self._rows(candidates), self._measurement(measurement, asked)
        plan = Plan("auto", row_norm, unit, per_module)
        about = {"query_agg": query_agg, "row_norm": row_norm, "unit": unit, "measurement": asking.name_of(f)}
        self.asked_ = (asked, f, query_agg)
        kept = self._store(store, "score", rows, queries=asked.sha256, per_module=per_module, **about)
        parts: list[Tensors] | None = None
        with clocked(self.seconds_, "scores"):
            for name, weight, job, prepared in self._passes(rows, plan):
                fn = partial(scoring.score_shard, job, prepared, self._identity(), plan)
                found = gathered(name, fn, self._shards(rows), as_mapper(executor), kept)
                parts = _added(parts, found, weight)
                ids = prepared.ids
        assert parts is not None
        table = self._table(parts, rows, ids, plan, about)
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """`sum_c eta_c |grad L_n(theta_c)|^2 / N` of each training row, `[N]` float32 (>= 0)."""
        self._check_fitted()
        plan, total = Plan("auto"), torch.zeros(len(self.train_))
        for weight, job in self._jobs(self.train_, self.objective_):
            fn = partial(scoring.self_shard, job, self._identity(), plan)
            parts = gathered("self", fn, self._shards(self.train_), as_mapper(executor), None)
            total += weight * torch.cat([part["self"] for part in parts])
        return asking.finite((total / len(self.train_)).numpy(), "self scores")

    def explain(self, q: int | str, n: int | str, *, candidates: Any = None) -> ScoreTable:
        """Token by module parts of row n in query q of the last `score` call: one query, `per_module` set."""
        self._check_fitted()
        if not hasattr(self, "asked_"):
            raise InputError("there are no queries yet", fix="call score() first")
        rows = self._rows(candidates)
        at, plan = asking.position(n, rows.ids, "row"), Plan("auto", unit="token", per_module=True)
        parts: list[Tensors] | None = None
        for _, weight, job, prepared in self._passes(rows, plan):
            one = prepared.at(asking.position(q, prepared.ids, "query"))
            found = [scoring.score_shard(job, one, self._identity(), plan, [at])]
            parts, ids = _added(parts, found, weight), one.ids
        assert parts is not None
        about = {"unit": "token", "row": rows.ids[at]}
        return self._table(parts, asking.OneRow(rows, at), ids, plan, about)

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage and bytes, before anything runs. Needs `bind` or `fit`."""
        from glasshouse.attribution.ekfac.cost import cost

        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        shapes = [(m.out_features, m.in_features) for m in self.tracked_]
        one = cost(shapes, rows.sizes, queries, strategy="identity")
        weights = sum(p.numel() * p.element_size() for p in self.model_.parameters())
        C = len(self.checkpoints)
        return one | {"scores": C * one["scores"], "checkpoint_bytes": float(C * weights)}

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json`, and the weights of checkpoints that lie only in memory."""
        self._check_fitted()
        for k, checkpoint in enumerate(self.checkpoints):
            if checkpoint.path is None and checkpoint.weights is not None:
                place = Path(folder) / "checkpoints" / f"{k:03d}.safetensors"
                state = {name: value.clone() for name, value in checkpoint.state().items()}  # tied ones apart
                write_tensors(place, state, {"step": str(checkpoint.step)})
        files.write_json(Path(folder) / "manifest.json", {**self._manifest(), "weights": list(self.weights_)})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None) -> TracIn:
        """What `save` wrote; StaleError when subject, rows or a checkpoint have changed since."""
        manifest = read_manifest(Path(folder))
        options = dict(manifest["options"])
        options["checkpoints"] = [
            _restored(Path(folder), k, about) for k, about in enumerate(options["checkpoints"])
        ]
        method = cls(**options).bind(subject, train_data, objective=objective)
        method._check_stored(manifest, folder)
        method.weights_, method.seconds_ = tuple(manifest["weights"]), {}
        method.hashes_ = tuple(c.hash for c in method.checkpoints)
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _check_options(self) -> None:
        super()._check_options()
        check_choice("layers", self.layers, Layers)
        self._weights()

    def _weights(self) -> tuple[float, ...]:
        sums = rate_sums(self.checkpoints)  # checks their order, too
        if isinstance(self.weights, str):
            check_choice("weights", self.weights, Literal["rate_sum", "rate"])
            found = sums if self.weights == "rate_sum" else [c.lr for c in self.checkpoints]
        else:
            found = [float(w) for w in self.weights]
        if len(found) != len(self.checkpoints) or not np.isfinite(found).all() or not any(found):
            raise InputError(
                f"{len(self.checkpoints)} checkpoints have the weights {found}",
                fix="give each a finite weight, not all of them zero",
            )
        return tuple(found)

    def _options(self) -> dict[str, Any]:
        weights = self.weights if isinstance(self.weights, str) else list(self.weights)
        return super()._options() | {
            "weights": weights, "checkpoints": [c.to_json() for c in self.checkpoints],
        }  # fmt: skip

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        self.__dict__.pop("asked_", None)
        super()._bind(subject, train_data, objective)
        if self.layers == "last":
            self.tracked_, self.names_ = self.tracked_[-1:], self.names_[-1:]

    def _identity(self) -> dict[str, Factor]:
        return {name: Factor(name) for name in self.names_}

    def _jobs(self, rows: Units, loss: Any) -> Iterator[tuple[float, Job]]:
        """Weight and job of every checkpoint that has a weight."""
        for checkpoint, weight in zip(self.checkpoints, self.weights_, strict=True):
            if weight:
                with loaded(self.model_, checkpoint) as working:
                    yield weight, replace(self._job(rows, loss), model=working)

    def _passes(self, rows: Units, plan: Plan) -> Iterator[tuple[str, float, Job, Prepared]]:
        """Per checkpoint: name of its parts, weight, job over `rows`, and the queries' gradients there."""
        asked, f, how = self.asked_
        for k, (weight, job) in enumerate(self._jobs(rows, self.objective_)):
            ask = replace(job, units=asked, loss=f)
            prepared = scoring.prepare(ask, self._identity(), plan, how, None, "full", sum(rows.sizes))
            yield f"scores-{k:03d}", weight, job, prepared

    def _table(
        self, parts: list[Tensors], rows: Any, ids: tuple[str, ...], plan: Plan, about: dict[str, Any]
    ) -> ScoreTable:
        meta, tokens = {**self._manifest(), **about}, plan.unit == "token"
        return asking.table(parts, rows, ids, n=len(self.train_), tokens=tokens, meta=meta)


def _restored(folder: Path, k: int, about: dict[str, Any]) -> Checkpoint:
    weights: Any = about["path"]
    if about["weights"] == "subject":
        weights = None
    elif weights is None:
        place = folder / "checkpoints" / f"{k:03d}.safetensors"
        if not place.exists():
            raise InputError("a checkpoint is gone", where=str(place), fix="save again")
        weights = read_tensors(place)[0]
    checkpoint = Checkpoint(weights, about["step"], about["lr"], about["stage"], about["lr_sum"])
    if checkpoint.hash != about["weights"]:
        raise StaleError(
            "its weights have changed since", where=f"checkpoint {checkpoint.name}", fix="fit again"
        )
    return checkpoint


def _added(total: list[Tensors] | None, found: list[Tensors], weight: float) -> list[Tensors]:
    """`total + weight * found`, shard by shard; a row's norm divides before the sum."""
    parts = [_weighted(part, weight) for part in found]
    if total is None:
        return parts
    return [{k: a[k] + b[k] for k in a} for a, b in zip(total, parts, strict=True)]


def _weighted(part: Tensors, weight: float) -> Tensors:
    norms: Tensor = part.get("norms", torch.ones(()))
    return {k: v * (weight / norms.clamp_min(1e-30)) for k, v in part.items() if k != "norms"}
