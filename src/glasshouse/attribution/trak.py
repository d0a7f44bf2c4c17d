"""`TRAK`: attribution with randomly projected after-kernels (Park, Georgiev, Ilyas et al. 2023, 2303.14186).

With phi_n the projected gradient of the margin of row n and p_n the probability of its label, the score of
row n for a query q is `phi_q^T (Phi^T Phi)^-1 phi_n (1 - p_n)` (equation 17), averaged over M models: the
projected products and the weights `1 - p_n` are averaged apart, as in the paper's algorithm 1. Since
`-grad L_n = (1 - p_n) grad margin_n`, a positive score means here what it means for every method of the wing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glasshouse.attribution.base import GradientMethod, as_mapper, at_least_one
from glasshouse.attribution.checkpoints import Checkpoint, loaded
from glasshouse.attribution.features import Output, feature_shard, in_float
from glasshouse.attribution.manifests import read_manifest
from glasshouse.attribution.objectives import ClassLoss, Measurement, Objective
from glasshouse.attribution.projection import Kind, Projector
from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages import asking, guards, scoring
from glasshouse.attribution.stages.curvature import check_damping
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import QueryAgg, check_choice
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Tensors, gathered, read_tensors, write_tensors
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import derive

DAMPING_SHARE = 0.1
"""Damping "auto" is this share of the kernel's mean diagonal; the paper uses 0 with dim far below N."""

BF16_LEAST = 0.99
"""Least correlation, for the worst of some rows, of bfloat16 scores with float32 ones: above the bound of
`guards`, since queries are other functions than those that are checked."""

SINGULAR = 1e-9
"""Smallest squared pivot over the largest, below which a Cholesky factor of float32 features is noise."""


class TRAK(GradientMethod):
    """Margins linearised at M models, in a random projection of dimension `dim` (arXiv:2303.14186).

    Options: `models`, the M members as `Checkpoint`s, modules, state dicts, files or folders, independent
    runs (best) or checkpoints of one; () means the subject alone. `dim`: width of a projection, well below
    the number of rows; `projection` gaussian | rademacher | kronecker (see `Projector`; each member has its
    own); `damping` added to `Phi^T Phi / N`, "auto" a tenth of its mean diagonal; `output`, the linearised
    function, "auto" the margin (regression: the prediction); `modules`, `seed`, batches and shards as in
    `EKFAC`.

    Rows of classes are weighted by `1 - p`. On token rows the output is the margin summed over labelled
    tokens and each token's margin gradient is weighted by its own `1 - p`, which is minus the gradient of
    the row's loss: a second backward pass. So it is for other outputs and losses.

    Learned: `models_`, `features_` (per member `phi` [N, dim], and `weight` [N] or `psi` [N, dim]),
    `kernels_` (per member `Phi^T Phi / N`, float64), `seconds_` (features, kernel, and scores after each
    `score`).

    >>> from torch import nn
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> method = TRAK([nn.Linear(3, 2), nn.Linear(3, 2)], dim=4).fit(nn.Linear(3, 2), (X, y))
    >>> method.score((X[:2], y[:2])).scores.shape
    (2, 8)
    """

    OPTIONS = ("dim", "projection", "damping", "force_bf16")
    FITTED = "kernels_"

    def __init__(
        self,
        models: Sequence[Any] = (),
        *,
        dim: int = 512,
        projection: Kind = "gaussian",
        damping: float | Literal["auto"] = "auto",
        output: str | Measurement = "auto",
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        batch_tokens: int = 2048,
        batch_rows: int = 512,
        shards: int | None = None,
        force_bf16: bool = False,
    ) -> None:
        self.models, self.dim, self.projection, self.damping = models, dim, projection, damping
        self.output, self.modules, self.seed, self.force_bf16 = output, modules, seed, force_bf16
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards

    # ── fitting ──────────────────────────────────────────────────────────────

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        objective: Objective | Measurement | None = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> TRAK:
        """Projected gradients of every row at every member; with a `store`, a killed fit goes on.

        Raises InputError for members of another architecture and NumericalError for features that are not
        finite, besides the errors of every gradient method.
        """
        self.bind(subject, train_data, objective=objective)
        mapper, kept = as_mapper(executor), self._store(store, "fit", self.train_)
        if not self.force_bf16:
            self._check_bf16()
        features: list[Tensors] = []
        seconds: dict[str, float] = {}
        with clocked(seconds, "features"):
            for k, member in enumerate(self.models_):
                with loaded(self.model_, member) as working:
                    features.append(self._features(k, working, self.train_, mapper, kept))
        with clocked(seconds, "kernel"):
            self._learn(features)
        self.seconds_ = seconds
        return self

    def _check_bf16(self) -> None:
        """Refuse a bfloat16 model whose *scores* of some rows on one another differ from float32.

        The inverse kernel makes small gradients count, and small gradients round most: gradient products
        alone, which every method checks, would pass models whose scores are noise.
        """
        guards.check_bf16(self._job(self.train_, self.objective_))
        if all(p.dtype != torch.bfloat16 for p in self.model_.parameters()):
            return
        rows = list(range(min(guards.BF16_ROWS, len(self.train_))))
        scores = []
        for model in (self.model_, copy.deepcopy(self.model_).float()):
            units = in_float(self.train_) if model is not self.model_ else self.train_
            job = replace(self._job(units, self._output()), model=model)
            loss = None if self._weighted() else self.objective_
            found = feature_shard(job, self._projector(0), loss, rows)
            phi = found["phi"].double()
            solved = torch.cholesky_solve(phi.T, self._factor(phi.T @ phi / len(rows), "bfloat16 check")).T
            scores.append(solved @ found["psi" if "psi" in found else "phi"].double().T)
        least = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*scores, strict=True))
        if not least >= BF16_LEAST:
            raise NumericalError(
                f"bfloat16 scores of a row correlate only {least:.3f} with float32 (least {BF16_LEAST})",
                where="model", fix="load it in float32, or pass force_bf16=True",
            )  # fmt: skip

    def _learn(self, features: list[Tensors]) -> None:
        N = len(self.train_)
        self.features_ = features
        self.kernels_ = [f["phi"].double().T @ f["phi"].double() / N for f in features]

    def _features(self, k: int, model: nn.Module, rows: Units, mapper: Mapper, kept: Any) -> Tensors:
        """`phi` and `weight` or `psi` of all `rows` at member k, whose weights `model` has."""
        job = replace(self._job(rows, self._output()), model=model)
        loss = None if self._weighted() else self.objective_
        fn = partial(feature_shard, job, self._projector(k), loss)
        parts = gathered(f"features-{k:03d}", fn, self._shards(rows), mapper, kept)
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        for key, value in joined.items():
            bad = (~torch.isfinite(value).reshape(len(value), -1).all(1)).nonzero().flatten().tolist()
            if bad:
                raise NumericalError(
                    f"{key} is NaN or infinite", where=f"row {rows.ids[bad[0]]!r}, member {k}",
                    fix="remove the row, or repair the checkpoint",
                )  # fmt: skip
        return joined

    # ── asking ───────────────────────────────────────────────────────────────

    def score(
        self,
        queries: Any,
        measurement: str | Measurement = "auto",
        *,
        unwanted: Any = None,
        query_agg: QueryAgg = "each",
        top_k: int | None = None,
        candidates: Any = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> ScoreTable:
        """Scores `[Q, N]` of training rows (or of `candidates`) for each query; options as in `EKFAC.score`.

        `damping` may be changed between calls: it is applied here.
        """
        self._check_fitted()
        check_choice("query_agg", query_agg, QueryAgg)
        check_damping(self.damping)
        asked = asking.asked_units(queries, unwanted, query_agg, self._tokenizer)
        rows, f = self._rows(candidates), self._measurement(measurement, asked)
        kept = self._store(store, "score", rows) if candidates is not None else None
        mapper, products, weights = as_mapper(executor), [], []
        with clocked(self.seconds_, "scores"):
            for k, member in enumerate(self.models_):
                with loaded(self.model_, member) as working:
                    phi, ids = self._asked(k, replace(self._job(asked, f), model=working), query_agg)
                    found = self.features_[k]
                    if candidates is not None:
                        found = self._features(k, working, rows, mapper, kept)
                solved = torch.cholesky_solve(phi.double().T, self._cholesky(k)).T
                products.append(solved @ found["psi" if "psi" in found else "phi"].double().T)
                weights.append(found.get("weight", torch.ones(len(rows))).double())
        scores = torch.stack(products).mean(0) * torch.stack(weights).mean(0)
        about = {"query_agg": query_agg, "measurement": asking.name_of(f), "unit": "row"}
        meta = {**self._manifest(), **about}
        part = {"scores": scores.float()}
        table = asking.table([part], rows, ids, n=len(self.train_), tokens=False, meta=meta)
        return table if top_k is None else table.keep_top(top_k)

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """`grad L^T K^-1 grad L / N` of each row in the projection, mean over members, `[N]` (>= 0)."""
        self._check_fitted()
        total = torch.zeros(len(self.train_), dtype=torch.float64)
        for k, found in enumerate(self.features_):
            psi = (found["psi"] if "psi" in found else found["phi"] * found["weight"][:, None]).double()
            half = torch.linalg.solve_triangular(self._cholesky(k), psi.T, upper=False)
            total += half.square().sum(0)
        values = total / len(self.features_) / len(self.train_)
        return asking.finite(values.float().numpy(), "self scores")

    def cost(self, queries: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage and bytes, before anything runs. Needs `bind` or `fit`."""
        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        P = float(sum(m.out_features * m.in_features for m in self.tracked_))
        T, N, M, k = float(sum(rows.sizes)), len(rows), len(self.models_), self._projector(0).width
        passes, twice = 4 * P * T, 1 if self._weighted() else 2
        dense = 2 * P * k * N + (2 * P * T if max(rows.sizes) > 1 else P * N)
        thin = 2 * T * k**0.5 * sum(m.out_features + m.in_features for m in self.tracked_)
        project = thin if self.projection == "kronecker" else dense
        kernel = 2.0 * N * k * k
        return {
            "covariance": M * twice * (passes + project), "eigen": M * kernel, "lambda": 0.0,
            "scores": M * (queries * (passes + project) / N + k**3 / 3 + 2.0 * queries * k * (k + N)),
            "factor_bytes": M * (4.0 * N * (k * twice + 1) + 8.0 * k * k),
            "query_bytes": 4.0 * queries * k,
        }  # fmt: skip

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write one file of features a member, then `manifest.json`. Members' weights are not copied."""
        self._check_fitted()
        for k, found in enumerate(self.features_):
            write_tensors(Path(folder) / f"features-{k:03d}.safetensors", found, {"member": str(k)})
        files.write_json(Path(folder) / "manifest.json", self._manifest())
        return Path(folder)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Any, train_data: Any, *, objective: Any = None,
        models: Sequence[Any] = (), output: str | Measurement = "auto",
    ) -> TRAK:  # fmt: skip
        """What `save` wrote; StaleError when the subject, the rows or a member is another one.

        `models` must be given again where they were given in memory, `output` where it was a function.
        """
        manifest = read_manifest(Path(folder))
        options = dict(manifest["options"])
        stored, named = options.pop("models"), options.pop("output")
        places = [Checkpoint(m["path"], m["step"], m["lr"], m["stage"], m["lr_sum"]) for m in stored]
        if not models and any(m["path"] is None and m["weights"] != "subject" for m in stored):
            raise InputError("its members lay in memory", where=str(folder), fix="give models= again")
        method = cls(models or (places if stored else ()), output=named or output, **options)
        method.bind(subject, train_data, objective=objective)
        method._check_stored(manifest, folder)
        if [c.hash for c in method.models_] != [m["weights"] for m in stored or [{"weights": "subject"}]]:
            raise InputError("its members are others", where=str(folder), fix="give those it was fitted with")
        read = [
            read_tensors(Path(folder) / f"features-{k:03d}.safetensors")[0]
            for k in range(len(method.models_))
        ]
        method.seconds_ = {}
        method._learn(read)
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _check_options(self) -> None:
        super()._check_options()
        check_choice("projection", self.projection, Kind)
        check_damping(self.damping)
        at_least_one("dim", self.dim)

    def _options(self) -> dict[str, Any]:
        members = [c.to_json() for c in self._members()] if len(self.models) else []
        named = self.output if isinstance(self.output, str) else None
        return super()._options() | {"models": members, "output": named}

    def _members(self) -> tuple[Checkpoint, ...]:
        if "models_" in self.__dict__:
            return self.models_
        given = [m if isinstance(m, Checkpoint) else Checkpoint(m, k) for k, m in enumerate(self.models)]
        return tuple(given) or (Checkpoint(None, 0),)

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        self.__dict__.pop("models_", None)
        super()._bind(subject, train_data, objective)
        self.models_ = self._members()

    def _projector(self, k: int) -> Projector:
        shapes = tuple((m.name, m.out_features, m.in_features) for m in self.tracked_)
        return Projector(self.projection, self.dim, derive(self.seed, "trak", k), shapes)

    def _output(self) -> Output:
        if self.output != "auto":
            return Output(self.output)
        usual = asking.usual_measurement(self.train_)
        return Output("output" if usual == "output" else "margin")

    def _weighted(self) -> bool:
        """True where `1 - p` is one number a row, so that psi need not be computed."""
        return isinstance(self.objective_, ClassLoss) and self._output().f == "margin"

    def _asked(self, k: int, job: Job, how: QueryAgg) -> tuple[Tensor, tuple[str, ...]]:
        found = feature_shard(job, self._projector(k), None, range(len(job.units)), weighted=False)
        raw, ids = scoring.aggregate({"": found["phi"].unsqueeze(1)}, job.units.ids, how)
        return raw[""].squeeze(1), ids

    def _cholesky(self, k: int) -> Tensor:
        return self._factor(self.kernels_[k], f"member {k}")

    def _factor(self, K: Tensor, where: str) -> Tensor:
        """The lower factor of a damped kernel. Raises NumericalError where it is singular."""
        damping = DAMPING_SHARE * float(K.diagonal().mean()) if self.damping == "auto" else self.damping
        L, info = torch.linalg.cholesky_ex(K + damping * torch.eye(len(K), dtype=K.dtype))
        pivots = L.diagonal().square()
        if int(info) or not float(pivots.min()) > SINGULAR * float(pivots.max()):
            raise NumericalError(
                f"Phi^T Phi of {len(self.train_)} rows in {len(K)} dimensions is singular",
                where=where, fix="lower dim, or raise the damping",
            )  # fmt: skip
        return L
