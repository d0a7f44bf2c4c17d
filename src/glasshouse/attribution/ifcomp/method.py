"""`IFComp`: what a model would say had it been trained on the point, for every label, in one linear step."""

from __future__ import annotations

import math
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
from glasshouse.attribution.ekfac import EKFAC
from glasshouse.attribution.ifcomp import gram, reading
from glasshouse.attribution.ifcomp.choices import Choices
from glasshouse.attribution.ifcomp.heads import ClassHead
from glasshouse.attribution.ifcomp.reports import MislabelReport, OODReport, mislabels, out_of_distribution
from glasshouse.attribution.ifcomp.results import Complexity, Floats, Space
from glasshouse.attribution.ifcomp.tuning import TEMPERATURES, Tuned, alphas_for, calibration, search
from glasshouse.attribution.stages import fitting, guards, persist
from glasshouse.attribution.stages.curvature import Factor, check_damping
from glasshouse.attribution.stages.fitting import clocked
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, gathered, summed
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError, NumericalError, StaleError
from glasshouse.runtime.seeds import derive

Strategy = Literal["identity", "kfac", "ekfac"]
VANISHED = 1e-20
"""Mean squared gradient below which a softmax is called saturated."""


class IFComp(GradientMethod):
    """Predictive normalised maximum likelihood by Boltzmann influence functions (arXiv:2406.02745).

    For each point and label k: `norm_k = g_k^T (F_T + damping)^-1 g_k`, the first-order gain of label k from
    one more training row (x, k), with loss, labels and Fisher F_T at `temperature` T. From these
    `complexity(x)` (how easily *any* label is fitted: out-of-distribution), `codelength(x, y)` (how much a
    label costs: mislabelled) and `predict_proba(x)` (hindsight probabilities, calibrated by `tune`).

    Data: (inputs, targets) of a classifier; `Choices` for a language model with a closed set of answers;
    token rows with one labelled token and `top_k`. Training labels are not used: the Fisher draws its own,
    `samples` per row. `damping` "auto" is a tenth of each module's mean eigenvalue. `alpha` scales the step
    (its unit depends on model and data: `tune` it) in `space` logit | prob; `output_temperature` is that of
    the final softmax. `strategy` identity is the plain gradient norm (an NTK), for comparison. Embeddings and
    normalisation layers are not tracked.

    Learned: `factors_`, `alpha_`, `output_temperature_`, `temperature_`, `classes_`, `tracked_`, `names_`,
    `train_`, `model_hash_`; `seconds_`, CPU seconds of each stage.

    >>> from torch import nn
    >>> X, y = torch.randn(20, 3), torch.tensor([0, 1] * 10)
    >>> IFComp().fit(nn.Linear(3, 2), (X, y)).complexity(X[:4]).norms.shape
    (4, 2)
    """

    OPTIONS = (
        "temperature", "damping", "alpha", "space", "output_temperature", "samples", "strategy", "top_k",
        "factor_examples", "force_bf16",
    )  # fmt: skip

    def __init__(
        self,
        temperature: float = 1000.0,
        *,
        damping: float | Literal["auto"] = "auto",
        alpha: float = 1.0,
        space: Space = "logit",
        output_temperature: float = 1.0,
        samples: int = 1,
        strategy: Strategy = "ekfac",
        top_k: int | None = None,
        factor_examples: int = 100_000,
        modules: str | Sequence[str] = "auto",
        seed: int = 0,
        batch_tokens: int = 2048,
        batch_rows: int = 256,
        shards: int | None = None,
        force_bf16: bool = False,
    ) -> None:
        self.temperature, self.damping, self.alpha, self.space = temperature, damping, alpha, space
        self.output_temperature, self.samples, self.strategy = output_temperature, samples, strategy
        self.top_k, self.factor_examples = top_k, factor_examples
        self.modules, self.seed = modules, seed
        self.batch_tokens, self.batch_rows, self.shards = batch_tokens, batch_rows, shards
        self.force_bf16 = force_bf16

    # ── fitting ──────────────────────────────────────────────────────────────

    def fit(
        self,
        subject: Any,
        train_data: Any,
        *,
        factors: EKFAC | None = None,
        executor: str | Mapper | None = None,
        store: Path | str | None = None,
    ) -> IFComp:
        """Estimate the tempered Fisher on `train_data`; with a `store` folder a killed fit goes on.

        `factors`: an `EKFAC` already fitted on the same model and rows, taken over at temperature 1 only (its
        loss is not tempered). Raises InputError, NumericalError (vanished gradients, NaN), StaleError.
        """
        self._check_options()
        self._bind(subject, train_data, None)
        self.seconds_: dict[str, float] = {}
        if factors is not None:
            self.factors_ = self._adopted(factors)
        else:
            self._fit(as_mapper(executor), store)
        self.temperature_, self.alpha_ = self.temperature, self.alpha
        self.output_temperature_ = self.output_temperature
        self._check_alive()
        return self

    def _fit(self, mapper: Mapper, store: Path | str | None) -> None:
        if self.strategy == "identity":
            self.factors_ = {name: Factor(name) for name in self.names_}
            return
        jobs = self._sampled_jobs()
        if not self.force_bf16:
            guards.check_bf16(jobs[0])
        chosen = fitting.factor_rows(len(self.train_), self.factor_examples, self.seed)
        shards = self._shards(self.train_, chosen)
        kept = [self._store(store, f"fit-{k}", self.train_, sample=k) for k in range(self.samples)]
        with clocked(self.seconds_, "covariance"):
            totals = [
                fitting.covariances(job, shards, mapper, at) for job, at in zip(jobs, kept, strict=True)
            ]
        total = {name: sum(part[name] for part in totals) for name in totals[0]}
        with clocked(self.seconds_, "eigen"):
            factors = fitting.bases(total, self.names_, self.strategy, kept[0])  # type: ignore[arg-type]
        if self.strategy == "ekfac":
            with clocked(self.seconds_, "lambda"):
                found = [
                    self._corrected(job, factors, shards, mapper, at)
                    for job, at in zip(jobs, kept, strict=True)
                ]
            factors = {
                name: replace(one, Lambda=sum(part[name] for part in found) / self.samples)  # type: ignore[arg-type]
                for name, one in factors.items()
            }
        self.factors_ = factors

    def _corrected(
        self, job: Job, factors: dict[str, Factor], shards: list[list[int]], mapper: Mapper, kept: Any
    ) -> dict[str, Tensor]:
        """Eigenvalues of one draw of the labels, by module."""
        if self.head_.fold == 1:
            found = fitting.corrected(job, factors, shards, mapper, kept)
            return {name: one.Lambda for name, one in found.items()}  # type: ignore[misc]
        bare = {name: Factor(name, None, one.Qa, one.Qs) for name, one in factors.items()}
        total = summed("lambda", partial(gram.lambda_shard, job, bare), shards, mapper, kept)
        rows = sum(len(shard) for shard in shards)
        return {name: total[f"Lambda/{name}"] / rows for name in factors}

    def _sampled_jobs(self) -> list[Job]:
        """One pass per draw of the labels."""
        job = self._job(self.train_, self.head_, sampled=True)
        seeds = [self.seed] + [derive(self.seed, "label sample", k) for k in range(1, self.samples)]
        return [replace(job, seed=seed) for seed in seeds]

    # ── asking ───────────────────────────────────────────────────────────────

    def complexity(
        self, x: Any, y: Any = None, *, executor: str | Mapper | None = None, store: Path | str | None = None
    ) -> Complexity:
        """Norms of all labels of the points `x` (inputs, (inputs, targets), Choices, token rows or units).

        With a `store` folder finished shards are not computed again.
        """
        self._check_ready()
        units = self._points(x, y)
        job = self._job(units, self.head_)
        kept = self._store(store, "gram", units)
        fn = partial(gram.gram_shard, job, self.factors_, self.damping)
        with clocked(self.seconds_, "gram"):
            parts = gathered("gram", fn, self._shards(units), as_mapper(executor), kept)
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._told(units, found, y is not None or not isinstance(x, Tensor))

    def predict_proba(self, x: Any) -> Floats:
        """Hindsight probabilities [n, k] at `alpha_` and `output_temperature_` (see `tune`)."""
        return self._hindsight(self.complexity(x))

    def codelength(self, x: Any, y: Any = None, weight: float = 1.0) -> Floats:
        """`weight * -log p_1(y|x) / T + C(x) / N` [n]; higher: the label is harder to believe."""
        return self.complexity(x, y).codelength(weight=weight)

    def self_score(self, *, executor: str | Mapper | None = None) -> NDArray[np.float32]:
        """Self-influence: the norm of the given label of each training row, over N, `[N]` float32 (>= 0)."""
        self._check_fitted()
        found = self.complexity(self.train_, executor=executor)
        return (found.norm_of(reading.given(self.train_)) / len(self.train_)).astype(np.float32)

    def tune(
        self,
        val: Any,
        metric: Literal["nll", "ece"] = "nll",
        *,
        alphas: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
    ) -> IFComp:
        """Choose `alpha_` and `output_temperature_` on held-out points with labels, by the least `metric`.

        `alphas`: by default 0 and a grid over four decades around the alpha that moves logits by one.
        `temperatures` of the output: by default 13 from a half to four; give one to tune alpha alone. Raises
        InputError for the training rows themselves, and for numbers that cannot be.
        """
        self._check_ready()
        check_choice("metric", metric, Literal["nll", "ece"])
        units = self._points(val)
        if units.sha256 == self.train_.sha256:
            raise InputError("these are the training rows", where="tune", fix="give held-out points")
        found = self.complexity(units)
        grid = alphas_for(found) if alphas is None else [float(a) for a in alphas]
        if not grid or any(not (a >= 0 and math.isfinite(a)) for a in grid):
            raise InputError(f"alphas are {grid}", where="tune", fix="give finite numbers >= 0")
        heats = list(TEMPERATURES if temperatures is None else temperatures)
        if not heats or any(not (t > 0 and math.isfinite(t)) for t in heats):
            raise InputError(f"temperatures are {heats}", where="tune", fix="give positive numbers")
        self.tuned_: Tuned = search(
            found, reading.given(units), grid, heats, metric, self.space, units.sha256
        )
        self.alpha_, self.output_temperature_ = self.tuned_.alpha, self.tuned_.temperature
        return self

    def calibration(self, x: Any, y: Any = None, *, bins: int = 15) -> dict[str, float]:
        """Calibration error (equal mass) and loss of the model as it stands, and in hindsight.

        Raises InputError on the points that alpha was tuned on: their error is no estimate of anything.
        """
        self._check_ready()
        units = self._points(x, y)
        tuned = getattr(self, "tuned_", None)
        if tuned is not None and tuned.data == units.sha256:
            raise InputError(
                "alpha was tuned on these very points", where="calibration", fix="evaluate on other ones"
            )
        found = self.complexity(units)
        return calibration(found, self._hindsight(found), reading.given(units), bins)

    def mislabel_report(
        self, train: Any = None, *, weight: float | Literal["auto"] = "auto"
    ) -> MislabelReport:
        """Rows ranked by what their own label costs, worst first; `train` defaults to the training rows.

        `weight` "auto" balances loss and complexity over these rows. A temperature of about 3 serves labels
        best: at 1,000 the label is gone from the gradients by design.
        """
        self._check_ready()
        units = self.train_ if train is None else self._points(train)
        return mislabels(self.complexity(units), reading.given(units), weight=weight)

    def ood_report(self, inside: Any, outside: Any) -> OODReport:
        """AUROC of complexity, maximal probability and energy for telling the points of two sets apart."""
        self._check_ready()
        return out_of_distribution(self.complexity(inside), self.complexity(outside))

    def cost(self, points: int, train: Any = None) -> dict[str, float]:
        """FLOPs of each stage and bytes, before `points` are asked. Needs `bind` or `fit`."""
        from glasshouse.attribution.ekfac.cost import cost

        rows = self.train_ if train is None else as_units(train, tokenizer=self._tokenizer)
        shapes = [(m.out_features, m.in_features) for m in self.tracked_]
        fit = cost(shapes, rows.sizes, 0, strategy=self.strategy)
        t = sum(rows.sizes) / len(rows)
        k, P = self._width(), float(sum(o * i for o, i in shapes))
        shared = self.head_.fold == 1
        passes = points * t * P * (2 + 2 * k if shared else 4)
        inner = points * (2 * P + 2 * sum(k * k * o for o, _ in shapes) if t == 1 else 2 * k * (t + k) * P)
        return {
            "covariance": self.samples * fit["covariance"], "eigen": fit["eigen"],
            "lambda": self.samples * fit["lambda"], "gram": passes + inner,
            "factor_bytes": fit["factor_bytes"], "gram_bytes": 4.0 * points * k * (k + 2),
        }  # fmt: skip

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json` (with the tuned alpha) and one safetensors file per module, atomically."""
        self._check_ready()
        tuned = self.tuned_.to_json() if hasattr(self, "tuned_") else None
        about = {**self._manifest(), "classes": self.classes_, "alpha_": self.alpha_,
                 "output_temperature_": self.output_temperature_, "tuned": tuned}  # fmt: skip
        return persist.save(Path(folder), self.factors_, about)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Any, train_data: Any, *, temperature: float | None = None
    ) -> IFComp:
        """What `save` wrote. StaleError for another model, other rows, or another `temperature`."""
        manifest, factors = persist.load(Path(folder))
        options = dict(manifest["options"])
        if temperature is not None and temperature != options["temperature"]:
            raise _other_temperature(options["temperature"], temperature, str(folder))
        method = cls(**options)
        method._check_options()
        method._bind(subject, train_data, None)
        method._check_stored(manifest, folder)
        method.factors_, method.seconds_ = factors, {}
        method.temperature_, method.alpha_ = method.temperature, manifest["alpha_"]
        method.output_temperature_ = manifest["output_temperature_"]
        if manifest["tuned"] is not None:
            method.tuned_ = Tuned(**manifest["tuned"])
        return method

    # ── inside ───────────────────────────────────────────────────────────────

    def _check_options(self) -> None:
        super()._check_options()
        check_choice("space", self.space, Space)
        check_choice("strategy", self.strategy, Strategy)
        check_damping(self.damping)
        for name in ("temperature", "output_temperature"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}", fix="use a positive number")
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha is {self.alpha}", fix="use a number >= 0")
        for name in ("samples", "factor_examples", "top_k"):
            at_least_one(name, getattr(self, name))
        if self.top_k == 1:
            raise InputError("top_k is 1", fix="follow at least two labels")

    def _bind(self, subject: Any, train_data: Any, objective: Any) -> None:
        if objective is not None:
            raise InputError("its loss is the tempered cross-entropy", where="objective", fix="leave it out")
        self.__dict__.pop("tuned_", None)  # of an earlier fit
        units = as_units(train_data, tokenizer=guards.unwrap(subject)[1])
        self.head_ = reading.head_for(units, self.temperature, self.top_k)
        super()._bind(subject, units, self.head_)
        if guards.tracks_head(self.model_, self.names_) and not isinstance(self.head_, ClassHead):
            self.head_ = self.objective_ = replace(self.head_, all_positions=True)
        self.classes_ = reading.count_classes(self.model_, self.head_, units, self.top_k, self._parameters())
        reading.check_labels(units, self.classes_)

    def _check_reduction(self, f: Any, units: Units, what: str) -> None:
        """Heads are sums by construction."""

    def _parameters(self) -> int:
        """Weights followed."""
        return sum(m.out_features * m.in_features for m in self.tracked_)

    def _width(self) -> int:
        """Labels that take part."""
        return min(self.classes_, self.top_k or self.classes_)

    def _points(self, x: Any, y: Any = None) -> Units:
        return reading.points(x, y, self.head_, self._tokenizer, self.classes_)

    def _told(self, units: Units, found: dict[str, Tensor], labelled: bool) -> Complexity:
        own = found.get("own")
        z = found["logits"].double().numpy()
        if isinstance(units, Choices):
            own = found["logits"].gather(1, units.given[:, None])[:, 0]
        result = Complexity(
            tuple(units.ids), z, found["K"].double().numpy(), found["labels"].numpy(),
            found["lse"].double().numpy(), float(self.temperature), len(self.train_), self._parameters(),
            own.double().numpy() if own is not None and labelled else None, self._manifest(),
        )  # fmt: skip
        norms = result.norms
        if len(norms) > 1 and float(np.ptp(norms)) == 0:
            raise self._vanished("all norms are equal")
        return result

    def _hindsight(self, found: Complexity) -> Floats:
        return found.hindsight(self.alpha_, self.space, temperature=self.output_temperature_)

    def _check_ready(self) -> None:
        """Raise InputError before `fit`, StaleError when the temperature is no longer the factors'."""
        self._check_fitted()
        if self.temperature != self.temperature_:
            raise _other_temperature(self.temperature_, self.temperature, type(self).__name__)

    def _check_alive(self) -> None:
        """Raise NumericalError where the tempered Fisher is zero: saturated softmax."""
        lambdas = [f.Lambda for f in self.factors_.values() if f.Lambda is not None]
        scale = self.temperature**2
        if lambdas and max(float(one.mean()) for one in lambdas) * scale < VANISHED:
            raise self._vanished("every gradient of the training rows is zero")

    def _vanished(self, what: str) -> NumericalError:
        return NumericalError(
            f"{what}: the softmax is saturated at temperature {self.temperature:g}",
            where=type(self).__name__, fix="raise the temperature, to 1000 for instance",
        )  # fmt: skip

    def _adopted(self, factors: EKFAC) -> dict[str, Factor]:
        if not hasattr(factors, "factors_"):
            raise InputError("the factors are not fitted", where="factors", fix="call fit() on them first")
        if self.temperature != 1.0:
            raise _other_temperature(1.0, self.temperature, "factors")
        for name, theirs, ours in (
            ("model", factors.model_hash_, self.model_hash_),
            ("rows", factors.train_.sha256, self.train_.sha256),
            ("modules", factors.names_, self.names_),
        ):  # fmt: skip
            if theirs != ours:
                raise StaleError(
                    f"the factors were fitted with another {name}", where="factors", fix="fit again"
                )
        return factors.factors_


def _other_temperature(fitted: float, asked: float, where: str) -> StaleError:
    return StaleError(
        f"the factors were fitted at temperature {fitted:g} and not at {asked:g}, so they do not match the "
        "gradients", where=where, fix="fit again at this temperature",
    )  # fmt: skip
