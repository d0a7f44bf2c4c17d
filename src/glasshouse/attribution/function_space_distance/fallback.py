"""The common part of the other estimators: the same calls as `FSDSketch`, for any network.

They are what a sketch has to beat, and what is left where a network has operations without a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from glasshouse.attribution.function_space_distance.disk import FORMAT, read_manifest
from glasshouse.attribution.function_space_distance.metrics import check_rho, checked
from glasshouse.attribution.function_space_distance.program import shape_mismatch, state_of
from glasshouse.attribution.function_space_distance.results import Breakdown
from glasshouse.attribution.objectives import TokenLoss
from glasshouse.attribution.stages import guards
from glasshouse.attribution.store import read_tensors, write_tensors
from glasshouse.attribution.units import Batch, TensorBatch, TensorUnits, Units, as_units
from glasshouse.corpora.rows import IGNORE
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError

Tensors = Mapping[str, Tensor]


class _Fallback:
    """Fitted on a reference and its data; `distance` and `breakdown` of another network.

    Learned: `start_` (the reference's parameters by name), `model_hash_`, `count_`.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    RHO: ClassVar[tuple[str, ...]] = ("l2",)

    def fit(self, subject: Any, data: Any) -> Self:
        """Learn what the estimator keeps; `data` are inputs, (inputs, targets), units or token rows."""
        self._check_options()
        model, tokenizer = guards.unwrap(subject)
        units = _units(data, tokenizer)
        self._refuse_noise(model)
        self.start_ = {name: value.detach().clone() for name, value in model.named_parameters()}
        if not all(bool(torch.isfinite(value).all()) for value in self.start_.values()):
            raise NumericalError("the model's weights hold NaN or infinity", fix="repair the checkpoint")
        self.model_hash_, self.count_ = guards.model_hash(subject), len(units)
        self._learn(model, units, tokenizer)
        return self

    def distance(self, model1: Any, *, rho: str | None = None) -> Tensor:
        """The estimated distance of `model1`: a scalar >= 0 with gradients in its parameters.

        `rho` as in `FSDSketch.distance`, where the estimator knows it; None is its own first one.
        """
        model, rho = self._ready(model1, rho)
        return checked(self._distance(model, dict(model.named_parameters()), rho))

    def breakdown(self, model1: Any, *, rho: str | None = None) -> Breakdown:
        """The distance of each layer moved alone, the others held at the reference."""
        model, rho = self._ready(model1, rho)
        with torch.no_grad():
            tensors = dict(model.named_parameters())
            total = float(self._distance(model, tensors, rho))
            found = {layer: float(self._distance(model, moved, rho)) for layer, moved in self._swaps(tensors)}
        about = {"method": type(self).__name__, "rho": rho, "rows": self.count_}
        return Breakdown(tuple(found), tuple(found.values()), total, (float("nan"),) * len(found), about)

    def numbers(self) -> int:
        """Numbers stored besides the reference's weights."""
        self._check_fitted()
        return sum(value.numel() for value in self._kept().values())

    def save(self, folder: Path | str) -> Path:
        """Write `manifest.json`, the estimator's own tensors and the reference's weights."""
        self._check_fitted()
        folder = Path(folder)
        write_tensors(folder / "kept.safetensors", self._kept(), {"kind": type(self).__name__})
        write_tensors(folder / "reference.safetensors", self.start_, {"kind": type(self).__name__})
        about = {"model_hash": self.model_hash_, "count": self.count_, "more": self._more()}
        options = {name: getattr(self, name) for name in self.OPTIONS}
        files.write_json(
            folder / "manifest.json",
            {"format": FORMAT, "kind": type(self).__name__, "options": options, **about},
        )
        return folder

    @classmethod
    def load(cls, folder: Path | str, subject: Any = None) -> Self:
        """The estimator from disk. Raises InputError or RunError for a folder that holds no whole one."""
        manifest = read_manifest(Path(folder), cls.__name__)
        found = cls(**manifest["options"])
        kept, _ = read_tensors(Path(folder) / "kept.safetensors")
        found.start_, _ = read_tensors(Path(folder) / "reference.safetensors")
        found.model_hash_, found.count_ = manifest["model_hash"], manifest["count"]
        found._restore(kept, manifest["more"])
        return found

    # -- for subclasses --------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        """Raise InputError for options that cannot work."""

    def _refuse_noise(self, model: nn.Module) -> None:
        noisy = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
        for name, module in model.named_modules():
            if module.training and isinstance(module, noisy) and getattr(module, "p", 1) > 0:
                raise InputError(
                    f"{type(module).__name__} is in training mode", where=f"module {name!r}",
                    fix="call model.eval()",
                )  # fmt: skip

    def _learn(self, model: nn.Module, units: Units, tokenizer: Any) -> None:
        raise NotImplementedError

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        raise NotImplementedError

    def _kept(self) -> dict[str, Tensor]:
        return {}

    def _more(self) -> dict[str, Any]:
        return {}

    def _restore(self, kept: dict[str, Tensor], more: dict[str, Any]) -> None:
        """Take back what `_kept` and `_more` gave."""

    def _rho(self) -> tuple[str, ...]:
        return self.RHO

    # -- inside ----------------------------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        if not hasattr(self, "start_"):
            raise InputError("it is not fitted", where=type(self).__name__, fix="call fit() first")

    def _ready(self, model1: Any, rho: str | None) -> tuple[nn.Module, str]:
        self._check_fitted()
        allowed = self._rho()
        rho = allowed[0] if rho is None else rho
        check_rho(rho, allowed, f", which {type(self).__name__} does not estimate")
        model, _ = guards.unwrap(model1)
        self._refuse_noise(model)
        found = shape_mismatch(self.start_, state_of(model))
        if found is not None:
            raise InputError(f"the two models differ: {found}", fix="compare models of one architecture")
        return model, rho

    def _moves(self, tensors: Tensors) -> dict[str, Tensor]:
        """How far each parameter has moved, in the other network's order."""
        return {name: x - self.start_[name].to(x) for name, x in tensors.items() if name in self.start_}

    def _swaps(self, tensors: Tensors) -> Iterator[tuple[str, dict[str, Tensor]]]:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name in self.start_)
        for layer in layers:
            yield (
                layer,
                {
                    name: tensors[name] if name.rpartition(".")[0] == layer else value.to(tensors[name])
                    for name, value in self.start_.items()
                },
            )


def outputs_of(model: Any, batch: Batch) -> Tensor:
    """Outputs [n, C]: one row per input, or per labelled token."""
    if isinstance(batch, TensorBatch):
        found = model(batch.inputs)
        return (found if isinstance(found, Tensor) else found.logits).flatten(1).float()
    logits = TokenLoss().outputs(model, batch)
    kept = (batch.labels[:, 1:] != IGNORE).any(0)
    return logits[batch.labels[:, 1:][:, kept] != IGNORE].float()


def _units(data: Any, tokenizer: Any) -> Units:
    if isinstance(data, Tensor):
        return TensorUnits(data, torch.zeros(len(data), dtype=torch.long))
    return as_units(data, tokenizer=tokenizer)
