"""`SOURCE`: which rows, in which stage of training, made the final model do this?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.base import GradientMethod, as_mapper, at_least_one
from glasshouse.attribution.checkpoints import Checkpoint, TrainingRun
from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.source import asking as passes
from glasshouse.attribution.source import curvature, disk, report
from glasshouse.attribution.source.asking import Pass
from glasshouse.attribution.source.curvature import SegmentFit, Working
from glasshouse.attribution.source.notes import training_notes, unstable
from glasshouse.attribution.source.pooling import pooled
from glasshouse.attribution.source.segments import Rates, Segment, cut, of_stage, stages_of
from glasshouse.attribution.source.spectral import FactoredSpectrum, HybridSpectrum, Spectrum
from glasshouse.attribution.stages import asking, fitting, guards
from glasshouse.attribution.stages.curvature import check_damping
from glasshouse.attribution.stages.scoring import Plan, QueryAgg, Unit, check_choice
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive

if TYPE_CHECKING:
    import pandas as pd

Optimizer = Literal["sgd", "adam"]
AdamForm = Literal["hybrid", "factored"]
LabelMode = Literal["sampled", "empirical"]
Normed = Literal["none", "grad"]

__all__ = ["SOURCE", "Checkpoint", "StabilityWarning"]


class StabilityWarning(UserWarning):
    """A segment lies beyond the edge of stability, where steps diverge and their exponential decays."""


class SOURCE(GradientMethod):
    """Influence through the whole of training, by segmented unrolling (Bae et al. 2024, arXiv:2405.12186).

    Options: `checkpoints` of the run in order, or a `TrainingRun` (`read_run`); `segments` their number, or
    the last step of each; `lr_log` learning rates (per step, by step, or a Trainer's `log_history`), else
    those that checkpoints know, else `c`, the summed rates of each segment with momentum in them;
    `momentum` and `weight_decay` of training, one number or one per stage; `optimizer` sgd | adam, the latter
    in `adam_form` hybrid (the paper's; its inverse has the `damping` of EK-FAC) | factored (in the metric
    of a rank-one P, without damping); `assume_sgd` goes on without, or in spite of, an Adam state;
    `loss_scale` what the training loop's loss was times ours ("auto": 1 for tensors, for tokens one over the
    mean number of labelled tokens a row, since loops average over tokens); `max_grad_norm` at which steps
    were clipped, to be noted; `label_mode`, `factor_examples`, `query_rank`, `svd`, `modules`, `seed`,
    batches, `shards` and `force_bf16` as in `EKFAC`.

    Learned: `segments_`, `spectra_` (per segment, by module), `stages_` (rows by stage), `scales_` (by
    stage), `notes_` (what weakens the approximation on this run), and what every method binds; `seconds_`,
    CPU seconds of this process in covariance, eigen, lambda and scores.

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> model = nn.Linear(3, 2)
    >>> run = [Checkpoint(nn.Linear(3, 2), 10, 0.1), Checkpoint(model, 20, 0.1)]
    >>> SOURCE(run, segments=2).fit(model, (X, y)).score((X[:2], y[:2])).scores.shape
    (2, 8)
    """

    OPTIONS = (
        "momentum", "weight_decay", "optimizer", "adam_form", "damping", "assume_sgd", "loss_scale",
        "max_grad_norm", "label_mode", "factor_examples", "query_rank", "svd", "force_bf16",
    )  # fmt: skip
    FITTED = "spectra_"

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint] | TrainingRun = (),
        *,
        segments: int | Sequence[int] = 1,
        lr_log: Rates | None = None,
        c: Sequence[float] | None = None,
        momentum: float | Mapping[str, float] = 0.0,
        weight_decay: float | Mapping[str, float] = 0.0,
        optimizer: Optimizer = "sgd",
        adam_form: AdamForm = "hybrid",
        damping: float | Literal["auto"] = "auto",
        assume_sgd: bool = False,
        loss_scale: float | Literal["auto"] = "auto",
        max_grad_norm: float | None = None,
        label_mode: LabelMode = "sampled",
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
        self.checkpoints, self.segments, self.lr_log, self.c = checkpoints, segments, lr_log, c
        self.momentum, self.weight_decay = momentum, weight_decay
        self.optimizer, self.adam_form, self.damping = optimizer, adam_form, damping
        self.assume_sgd, self.loss_scale, self.max_grad_norm = assume_sgd, loss_scale, max_grad_norm
        self.label_mode, self.factor_examples = label_mode, factor_examples
        self.query_rank, self.svd, self.modules, self.seed = query_rank, svd, modules, seed
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
    ) -> SOURCE:
        """Fit each segment's curvature on its stage's rows; with a `store` folder, resumable.

        `subject` is the model at the end of training, where queries are asked; `train_data` the rows, or
        `{stage: rows}`. `objective` is a sum per row. Raises InputError for checkpoints, segments, rates or
        optimiser states that do not fit together, and whatever `EKFAC.fit` raises; warns with
        StabilityWarning for segments beyond the edge of stability.
        """
        self.bind(subject, train_data, objective=objective)
        disk.check_optimizer(self)
        guards.check_sampling(self._fit_job(0, self.train_))
        if not self.force_bf16:
            guards.check_bf16(self._job(self.train_, self.objective_))
        self._working = Working(self.model_, list(self.checkpoints))
        for k in range(len(list(self.checkpoints))):
            self._working.load(k)  # another architecture is refused before the first pass
        self.seconds_: dict[str, float] = {}
        mapper = as_mapper(executor)
        self.spectra_ = tuple(
            self._spectra(i, segment, mapper, store) for i, segment in enumerate(self.segments_)
        )
        del self._working
        self._warn()
        return self

    def _spectra(
        self, index: int, segment: Segment, mapper: Mapper, store: Path | str | None
    ) -> dict[str, Spectrum]:
        rows = self.stages_[segment.stage]
        chosen = fitting.factor_rows(len(rows), self.factor_examples, self.seed)
        ids = [f"fit-{index:02d}/checkpoint-{k:03d}" for k in segment.checkpoints]
        work = SegmentFit(
            self._working, mapper, self._shards(rows, chosen),
            {k: self._fit_job(k, rows, self._working.model) for k in segment.checkpoints},
            {k: self._store(store, name, rows) for k, name in zip(segment.checkpoints, ids, strict=True)},
            self._store(store, f"fit-{index:02d}/basis", rows),
            partial(curvature.added, self.seconds_),
        )  # fmt: skip
        about = (
            segment.c,
            self.scales_[segment.stage],
            of_stage(self.weight_decay, segment.stage, "weight_decay"),
        )
        if not self._adam:
            factors = curvature.segment_factors(work, self.names_)
            return {name: Spectrum(f, *about) for name, f in factors.items()}
        points = list(self.checkpoints)
        P = curvature.mean_step_sizes(points, segment.checkpoints, self.model_, self.names_)
        if self.adam_form == "hybrid":
            factors = curvature.segment_factors(work, self.names_)
            return {n: HybridSpectrum(f, *about, P=P[n], damping=self.damping) for n, f in factors.items()}
        roots = curvature.roots_of(P)
        factors = curvature.metric_factors(work, self.names_, roots)
        return {
            n: FactoredSpectrum(f, *about, left=roots[n][0], right=roots[n][1]) for n, f in factors.items()
        }

    # ── asking ───────────────────────────────────────────────────────────────

    def score(
        self,
        queries: Any,
        measurement: str | Measurement = "auto",
        *,
        stage: str | None = None,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        row_norm: Normed = "none",
        unit: Unit = "row",
        top_k: int | None = None,
        per_module: bool = False,
        per_segment: bool = False,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Scores `[Q, N]` of the rows of `stage` (default: of all stages) for each query at the final model.

        A score is the predicted change of the measurement had the row counted twice in that stage; without a
        `stage` the terms of all stages in which the row was seen add up. `per_segment` keeps the terms of
        segment i as `per_module["segment/i"]`. `candidates` are scored as if they had been in `stage`. Other
        options as in `EKFAC.score`; `row_norm` "grad" divides by the row's gradient norm at each checkpoint.
        """
        self._check_fitted()
        check_choice("query_agg", query_agg, QueryAgg)
        check_choice("row_norm", row_norm, Normed)
        check_choice("unit", unit, Unit)
        asked = asking.asked_units(queries, unwanted, query_agg, self._tokenizer)
        f = self._measurement(measurement, asked)
        self.asked_ = (asked, f, query_agg, stage)
        plan = Plan(0.0, row_norm, unit, per_module)
        about = {
            "query_agg": query_agg, "row_norm": row_norm, "unit": unit,
            "measurement": asking.name_of(f), "stage": stage,
        }  # fmt: skip
        rows, todo = self._passes(stage, candidates, unit)
        with curvature.added(self.seconds_, "scores"):
            found, ids = passes.scored(
                self, rows, todo, plan, as_mapper(executor),
                per_segment=per_segment, store=store, about=about,
            )  # fmt: skip
        table = self._table(found, rows, ids, plan, about)
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, stage: str | None = None) -> NDArray[np.float32]:
        """The score of each row on its own negative loss at the end of training, `[N]` float32.

        Not bounded below: a row may have pushed the model away from itself in a segment.
        """
        self._check_fitted()
        rows, todo = self._passes(stage, None, "row")
        return asking.finite(passes.self_scores(self, rows, todo).numpy(), "self scores")

    def explain(self, q: int | str, n: int | str, *, candidates: Any = None) -> ScoreTable:
        """Token by module parts of row n in query q of the last `score` call: one query, `per_module` set."""
        self._check_fitted()
        if not hasattr(self, "asked_"):
            raise InputError("there are no queries yet", fix="call score() first")
        stage = self.asked_[3]
        every: Any = self._rows_of(stage, candidates)
        at = asking.position(n, every.ids, "row")
        rows, name = every.subset([at]), every.ids[at]
        seen = [s for s, own in self.stages_.items() if candidates is not None or name in own.ids]
        plan = Plan(0.0, unit="token", per_module=True)
        todo = passes.passes_over(self, rows, seen if stage is None else [stage], "token", alike=True)
        found, ids = passes.scored(self, rows, todo, plan, as_mapper(None))
        row = asking.position(q, ids, "query")
        about = {"unit": "token", "row": name, "stage": stage}
        return self._table({k: v[row : row + 1] for k, v in found.items()}, rows, (ids[row],), plan, about)

    def schedule(self, *, per_module: bool = False) -> pd.DataFrame:
        """One line a segment: stage, steps, checkpoints, rate sum, c, and after `fit` the effective rank.

        The effective rank is `sum (1 - exp(-c s))` over eigenvalues s: directions along which the segment
        converged, out of `directions`. With `per_module` one line a segment and module. Needs `bind`.
        """
        self._check_bound()
        return report.schedule(self, per_module=per_module)

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage and bytes, before anything runs; `train` replaces the rows of every stage.

        C times EK-FAC's passes, one eigenproblem a segment, and the factors of all segments.
        """
        self._check_bound()
        other = None if train is None else as_units(train, tokenizer=self._tokenizer)
        return report.cost(self, queries, other)

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json`, one file a segment and module, and weights that lie only in memory."""
        self._check_fitted()
        return disk.save(
            Path(folder), self.checkpoints, self.spectra_, self._manifest() | {"notes": self.notes_}
        )

    @classmethod
    def load(cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None) -> SOURCE:
        """What `save` wrote; StaleError when subject, rows or a checkpoint have changed since."""
        manifest = disk.read(Path(folder))
        method = cls(**disk.options(Path(folder), manifest)).bind(subject, train_data, objective=objective)
        method._check_stored(manifest, folder)
        method.seconds_, method.notes_ = {}, list(manifest["notes"])
        method.spectra_ = disk.spectra(Path(folder), method)
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    @property
    def _adam(self) -> bool:
        return self.optimizer == "adam" and not self.assume_sgd

    def _check_options(self) -> None:
        super()._check_options()
        for name, allowed in (("optimizer", Optimizer), ("adam_form", AdamForm), ("label_mode", LabelMode)):
            check_choice(name, getattr(self, name), allowed)
        check_choice("svd", self.svd, Literal["randomized", "full"])
        check_damping(self.damping)
        at_least_one("factor_examples", self.factor_examples)
        at_least_one("query_rank", self.query_rank)
        disk.check_numbers(self)
        cut(self.checkpoints, self.segments, lr_log=self.lr_log, c=self.c, momentum=self.momentum)

    def _options(self) -> dict[str, Any]:
        segments = self.segments if isinstance(self.segments, int) else [int(s) for s in self.segments]
        plain = {
            k: dict(v) if isinstance(v := getattr(self, k), Mapping) else v
            for k in ("momentum", "weight_decay")
        }
        return super()._options() | plain | {
            "segments": segments,
            "c": None if self.c is None else [float(x) for x in self.c],
            "lr_log": disk.logged(self.lr_log),
            "checkpoints": [disk.described(point) for point in self.checkpoints],
            "run_rates": disk.run_rates(self.checkpoints),
        }  # fmt: skip

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        for name in ("asked_", "spectra_", "notes_"):
            self.__dict__.pop(name, None)
        names = stages_of(self.checkpoints)
        data = train_data if isinstance(train_data, Mapping) else {names[0]: train_data}
        if set(data) != set(names):
            raise InputError(
                f"data for the stages {', '.join(map(repr, data))}, checkpoints of "
                f"{', '.join(map(repr, names))}",
                where="train_data", fix="give {stage: rows}, every stage once",
            )  # fmt: skip
        _, tokenizer = guards.unwrap(subject)
        self.stages_ = {name: as_units(data[name], tokenizer=tokenizer) for name in names}
        super()._bind(subject, pooled(self.stages_), objective)
        self.segments_ = cut(
            self.checkpoints, self.segments, lr_log=self.lr_log, c=self.c, momentum=self.momentum
        )
        self.scales_ = {name: disk.loss_scale(self.loss_scale, rows) for name, rows in self.stages_.items()}
        self.notes_ = training_notes(self)

    def _check_bound(self) -> None:
        if not hasattr(self, "segments_"):
            raise InputError("it is not fitted", where="SOURCE", fix="call bind() or fit() first")

    def _warn(self) -> None:
        """Say which segments lie beyond the edge of stability, and note it."""
        for line in unstable(self.segments_, self.spectra_):
            self.notes_.append(line)
            warnings.warn(line, StabilityWarning, stacklevel=3)

    def _manifest(self) -> dict[str, Any]:
        stages = {name: rows.sha256 for name, rows in self.stages_.items()}
        return super()._manifest() | {"stages": stages}

    def _fit_job(self, k: int, rows: Units, model: Any = None) -> Job:
        """The curvature pass at checkpoint k; labels are drawn afresh at each but the first."""
        job = self._job(rows, self.objective_, sampled=self.label_mode == "sampled")
        seed = self.seed if k == 0 else derive(self.seed, "checkpoint", k)
        return replace(job, seed=seed, model=model or self.model_)

    def _row_job(self, working: Working) -> Any:
        return lambda k, rows: replace(self._job(rows, self.objective_), model=working.model)

    def _copy(self) -> Working:
        return Working(self.model_, list(self.checkpoints))

    def _rows_of(self, stage: str | None, candidates: Any) -> Units:
        if stage is not None and stage not in self.stages_:
            raise InputError(
                f"there is no stage {stage!r}", fix=f"choose from {', '.join(map(repr, self.stages_))}"
            )
        if candidates is not None:
            if stage is None and len(self.stages_) > 1:
                raise InputError(
                    "candidates were in no stage",
                    fix=f"say stage= one of {', '.join(map(repr, self.stages_))}",
                )
            return as_units(candidates, tokenizer=self._tokenizer)
        return self.train_ if stage is None else self.stages_[stage]

    def _passes(self, stage: str | None, candidates: Any, unit: Unit) -> tuple[Units, list[Pass]]:
        """The rows of the table, and which of them meet which segment."""
        rows = self._rows_of(stage, candidates)
        stages = list(self.stages_) if stage is None else [stage]
        alike = candidates is not None or len(stages) == 1
        return rows, passes.passes_over(self, rows, stages, unit, alike=alike)

    def _table(
        self, found: dict[str, Tensor], rows: Units, ids: tuple[str, ...], plan: Plan, about: dict[str, Any]
    ) -> ScoreTable:
        meta = {**self._manifest(), **about, "notes": list(self.notes_)}
        if about.get("stage") is not None:
            meta["n_train"] = len(self.stages_[about["stage"]])
        return asking.table([found], rows, ids, n=1, tokens=plan.unit == "token", meta=meta)
