"""`TrainSpec`: everything that decides the weights of a training, as one hashable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.training._schedule import Schedule
from glasshouse.training.mix import DataRef

Algo = Literal["sft", "dpo", "reward", "grpo", "rloo"]
Precision = Literal["auto", "fp32", "bf16"]
LossOn = Literal["auto", "reply", "all"]

ALGO_KW: Mapping[str, Mapping[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0},
    "reward": {"center": 0.0},
    "grpo": {
        "num_generations": 8, "max_new_tokens": 64, "temperature": 1.0, "beta": 0.04,
        "loss_type": "grpo", "scale_rewards": "group",
    },
    "rloo": {
        "num_generations": 4, "max_new_tokens": 64, "temperature": 1.0, "beta": 0.05,
        "normalize_advantages": False,
    },
}  # fmt: skip
"""The options of each algorithm, with their defaults.

`center` weighs a penalty on the squared sum of both rewards. `num_generations` completions are sampled for
each prompt, up to `max_new_tokens` each; `beta` weighs the KL divergence from the start. Completions are
used for one step only, so no ratio is ever clipped.
"""

PAIRED: tuple[Algo, ...] = ("dpo", "reward")
"""Algorithms whose rows are preferences."""

SAMPLED: tuple[Algo, ...] = ("grpo", "rloo")
"""Algorithms whose rows are prompts; the model completes them and a reward judges."""

CHOICES: Mapping[tuple[Algo, str], tuple[str, ...]] = {
    ("dpo", "loss_type"): ("sigmoid", "hinge", "ipo", "robust"),
    ("grpo", "loss_type"): ("grpo", "bnpo", "dr_grpo", "dapo"),
    ("grpo", "scale_rewards"): ("group", "batch", "none"),
}
"""Options that name one of a few things."""

LEAST: Mapping[str, float] = {"num_generations": 2, "max_new_tokens": 1, "beta": 0.0, "center": 0.0}
"""Options that may not be smaller."""


@dataclass(frozen=True)
class LoraSpec:
    """A low-rank adapter on the named linear layers; it is merged into the weights of the checkpoint."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What to train, from where, on what, how.

    `start` is a folder with a saved model, or a Hugging Face id; never a model in memory, because reference
    models are loaded from the same place. With `init_seed`, `start` is a recipe folder (config.json and
    tokenizer, no weights) and training begins from scratch. `lr` is the peak rate, `max_length` counts
    tokens; `batch_size` counts rows: texts, preferences, or prompts to complete. `schedule` falls to
    `final_lr_share` of `lr`. `algo_kw` holds options of the algorithm (`ALGO_KW`). Raises InputError for
    values outside their range.
    """

    algo: Algo
    start: str | Path
    data: DataRef
    steps: int
    batch_size: int
    lr: float
    seed: int
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    final_lr_share: float = 0.0
    max_length: int = 512
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    precision: Precision = "auto"
    loss_on: LossOn = "auto"
    length_buckets: bool = False
    init_seed: int | None = None
    adapter: LoraSpec | None = None
    algo_kw: Mapping[str, Any] = field(default_factory=dict)
    save_every: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("algo", Algo), ("schedule", Schedule), ("precision", Precision), ("loss_on", LossOn),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    f"{name}={getattr(self, name)!r} is unknown", fix=f"choose one of {get_args(allowed)}"
                )
        for name in ("steps", "batch_size", "lr", "max_length"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r} is not positive", where="TrainSpec")
        for name in ("warmup_steps", "weight_decay", "clip", "final_lr_share"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)!r} is negative", where="TrainSpec")
        unknown = sorted(set(self.algo_kw) - set(ALGO_KW[self.algo]))
        if unknown:
            raise InputError(
                f"{self.algo} has no options {unknown}", where="TrainSpec.algo_kw",
                fix=f"choose from {sorted(ALGO_KW[self.algo])}",
            )  # fmt: skip
        self._check_options()
        if self.save_every is not None and self.save_every < 1:
            raise InputError(f"save_every={self.save_every}", where="TrainSpec", fix="give at least 1")

    def _check_options(self) -> None:
        options = self.options
        for name, value in options.items():
            allowed = CHOICES.get((self.algo, name))
            if allowed is not None and value not in allowed:
                raise InputError(
                    f"{name}={value!r} is unknown", where="TrainSpec.algo_kw", fix=f"choose one of {allowed}"
                )
            if name in LEAST and not value >= LEAST[name]:
                raise InputError(
                    f"{name}={value!r} is too small",
                    where="TrainSpec.algo_kw",
                    fix=f"give at least {LEAST[name]:g}",
                )
        if not options.get("temperature", 1.0) > 0:
            raise InputError(
                f"temperature={options['temperature']!r} is not positive", where="TrainSpec.algo_kw"
            )
        if options.get("label_smoothing") and options["loss_type"] != "robust":
            # TRL reads the option for this loss only and would ignore it without a word.
            raise InputError(
                f"label_smoothing has no effect on loss_type={options['loss_type']!r}",
                where="TrainSpec.algo_kw", fix="use loss_type='robust'",
            )  # fmt: skip

    @property
    def options(self) -> dict[str, Any]:
        """The options of the algorithm, defaults included."""
        return {**ALGO_KW[self.algo], **self.algo_kw}

    @property
    def hash(self) -> str:
        """Hex SHA-256 of all that decides the weights, defaults included (so not of `save_every`)."""
        return files.sha256_json({**self.to_json(), "save_every": None})

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def to_json(self) -> dict[str, Any]:
        """The spec with every default written out; data by its hash."""
        told = {key: getattr(self, key) for key in self.__dataclass_fields__}
        told["start"] = str(self.start)
        told["data"] = {"sha256": self.data.sha256, "n": self.data.n}
        told["betas"] = list(self.betas)
        told["adapter"] = None if self.adapter is None else asdict(self.adapter)
        told["algo_kw"] = self.options
        return told

    def but(self, **changes: Any) -> TrainSpec:
        """The same spec with some fields changed."""
        return replace(self, **changes)
