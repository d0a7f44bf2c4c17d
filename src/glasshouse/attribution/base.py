"""What every method that follows gradients does alike: bind a subject and rows, name and keep its work.

A method is a small recipe over `attribution.stages`. It stores keyword options in its constructor, and
`fit` calls `_bind` (every refusal that costs no pass) before it learns anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

from glasshouse.attribution.objectives import (
    BUILT_IN,
    Measurement,
    Objective,
    TokenLoss,
    check_sums,
    default_objective,
    measure,
)
from glasshouse.attribution.stages import asking, fitting, guards
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Here, Mapper, Store
from glasshouse.attribution.units import Units, as_units
from glasshouse.runtime.errors import InputError, StaleError

SHARD_TOKENS = 1 << 16
"""Tokens of training data in one shard: what a killed pass may have to repeat."""


class GradientMethod:
    """Options, binding and bookkeeping shared by the gradient methods of the wing.

    Subclasses name their own options in `OPTIONS` and the attribute that exists only after `fit` in `FITTED`.

    Learned by `bind` and `fit`: `model_`, `tracked_` (modules), `names_`, `train_` (units), `objective_`,
    `model_hash_`, and `seconds_`, the CPU seconds of this process in each stage.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    FITTED: ClassVar[str] = "factors_"

    modules: str | Sequence[str]
    seed: int
    batch_tokens: int
    batch_rows: int
    shards: int | None

    def bind(self, subject: Any, train_data: Any, *, objective: Any = None) -> Self:
        """Check subject and data and stop there, for `cost`."""
        self._check_options()
        self._bind(subject, train_data, objective)
        return self

    # ── for subclasses ───────────────────────────────────────────────────────

    def _check_options(self) -> None:
        """Raise InputError for options that cannot work; subclasses add theirs."""
        for name in ("batch_tokens", "batch_rows", "shards"):
            at_least_one(name, getattr(self, name))

    def _options(self) -> dict[str, Any]:
        """Everything that decides the result besides model and data, as plain JSON."""
        modules = self.modules if isinstance(self.modules, str) else list(self.modules)
        shared = ("seed", "batch_tokens", "batch_rows", "shards")
        return {"modules": modules} | {name: getattr(self, name) for name in (*self.OPTIONS, *shared)}

    def _bind(self, subject: Any, train_data: Any, objective: Objective | Measurement | None) -> None:
        self.model_, self._tokenizer = guards.unwrap(subject)
        self._subject = subject
        guards.check_dtype(self.model_)
        self.tracked_ = guards.select_modules(self.model_, self.modules)
        self.names_ = tuple(m.name for m in self.tracked_)
        self.train_ = as_units(train_data, tokenizer=self._tokenizer)
        self.model_hash_ = guards.model_hash(subject)
        self.objective_: Any = objective or default_objective(self.train_.batch([0]))
        if isinstance(self.objective_, TokenLoss) and guards.tracks_head(self.model_, self.names_):
            self.objective_ = replace(self.objective_, all_positions=True)
        self._check_reduction(self.objective_, self.train_, "the training loss")

    def _check_reduction(self, f: Any, units: Units, what: str) -> None:
        if not isinstance(f, BUILT_IN):
            device = next(self.model_.parameters()).device
            batch = units.batch(range(min(2, len(units)))).to(device)
            check_sums(f, self.model_, batch, what)

    def _check_fitted(self) -> None:
        if not hasattr(self, self.FITTED):
            raise InputError("it is not fitted", where=type(self).__name__, fix="call fit() first")

    def _job(self, units: Units, loss: Any, *, sampled: bool = False) -> Job:
        limits = self.batch_tokens, self.batch_rows
        return Job(self.model_, self.names_, units, loss, sampled, self.seed, *limits)

    def _shards(self, rows: Units, chosen: list[int] | None = None) -> list[list[int]]:
        """All rows, or the `chosen` ones, in contiguous pieces."""
        chosen = list(range(len(rows))) if chosen is None else chosen
        return fitting.split(rows, chosen, self.shards, SHARD_TOKENS)

    def _rows(self, candidates: Any) -> Units:
        """The rows to score: the training rows, or `candidates`."""
        return self.train_ if candidates is None else as_units(candidates, tokenizer=self._tokenizer)

    def _measurement(self, measurement: str | Measurement, asked: Units) -> Measurement:
        if measurement == "auto":
            measurement = asking.usual_measurement(asked)
        f = measure(measurement)
        if f is measurement:
            self._check_reduction(f, asked, "the measurement")
        return f

    def _manifest(self) -> dict[str, Any]:
        return {
            "method": type(self).__name__,
            "options": self._options(),
            "model_hash": self.model_hash_,
            "data_hash": self.train_.sha256,
            "objective": asking.name_of(self.objective_),
            "modules": list(self.names_),
            "n_train": len(self.train_),
            "versions": versions(type(self).__module__),
        }

    def _store(self, folder: Path | str | None, stage: str, rows: Units, **more: Any) -> Store | None:
        """The folder of one stage, bound to everything its result depends on; None without a folder."""
        if folder is None:
            return None
        about = {
            "stage": stage,
            "rows": rows.sha256,
            **self._manifest(),
            **more,
        }
        return Store(Path(folder) / stage, about)

    def _check_stored(self, manifest: dict[str, Any], folder: Path | str) -> None:
        """Raise StaleError when a stored fit belongs to another checkpoint or to other rows."""
        for name, live in (("model_hash", self.model_hash_), ("data_hash", self.train_.sha256)):
            if manifest[name] != live:
                raise StaleError(
                    f"the factors were fitted with another {name.split('_')[0]} "
                    f"({manifest[name][:12]}, now {live[:12]})", where=str(folder), fix="fit again",
                )  # fmt: skip


def versions(module: str) -> dict[str, str]:
    """Versions that may change numbers: torch, and the code of the method's module."""
    from glasshouse.runtime.codeversion import code_version

    return {"torch": version("torch"), "code": code_version(module)}


def as_mapper(executor: str | Mapper | None) -> Mapper:
    """The executor of that name, the one given, or this process."""
    if executor is None:
        return Here()
    if isinstance(executor, str):
        from glasshouse.runtime.executors import get_executor

        return get_executor(executor)
    return executor


def at_least_one(name: str, value: int | None) -> None:
    """Raise InputError for a count below one."""
    if value is not None and value < 1:
        raise InputError(f"{name} is {value}", fix="use at least 1")
