"""Estimators that keep a curvature of the reference: `0.5 (theta1 - theta0)^T G (theta1 - theta0)`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from glasshouse.attribution.base import at_least_one
from glasshouse.attribution.ekfac import EKFAC
from glasshouse.attribution.function_space_distance.fallback import Tensors, _Fallback, outputs_of
from glasshouse.attribution.objectives import SquaredLoss, default_objective
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.scoring import check_choice
from glasshouse.attribution.units import TensorUnits, Units
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.capture import as_matrix

Curvature = Literal["ekfac", "kfac", "diagonal"]
Fisher = Literal["true", "empirical", "last-batch"]


class GGNDistance(_Fallback):
    """The Gauss-Newton matrix of the outputs, by EK-FAC, K-FAC or its diagonal (the factors of `EKFAC`).

    `rho` "l2": J^T J of the outputs; "kl": the Fisher matrix of their softmax (all that a language model
    has). Only the layers that EK-FAC tracks count; norms and embeddings that moved are not seen.
    """

    OPTIONS = ("strategy", "rho", "seed", "batch_rows")

    def __init__(
        self,
        strategy: Curvature = "ekfac",
        *,
        rho: Literal["l2", "kl"] = "l2",
        seed: int = 0,
        batch_rows: int = 512,
    ) -> None:
        self.strategy, self.rho, self.seed, self.batch_rows = strategy, rho, seed, batch_rows

    def _check_options(self) -> None:
        check_choice("strategy", self.strategy, Curvature)
        check_choice("rho", self.rho, Literal["l2", "kl"])
        at_least_one("batch_rows", self.batch_rows)

    def _rho(self) -> tuple[str, ...]:
        return (self.rho,)

    def _learn(self, model: nn.Module, units: Units, tokenizer: Any) -> None:
        objective = None
        if self.rho == "l2":
            if not isinstance(units, TensorUnits):
                raise InputError('the outputs of a language model have no rho="l2" here', fix='use rho="kl"')
            with torch.no_grad():
                width = outputs_of(model, units.batch([0]).to(next(model.parameters()).device)).shape[1]
            units = TensorUnits(units.inputs, torch.zeros(len(units), width), units.ids)
            objective = SquaredLoss()
        method = EKFAC(self.strategy, seed=self.seed, batch_rows=self.batch_rows)
        self.factors_ = method.fit(model, units, objective=objective).factors_

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        moves, total = self._moves(tensors), torch.zeros((), device=next(iter(tensors.values())).device)
        for name, factor in self.factors_.items():
            module, prefix = model.get_submodule(name), f"{name}." if name else ""
            V = as_matrix(module, moves[f"{prefix}weight"], moves.get(f"{prefix}bias")).float()
            placed = _to(factor, V.device)
            assert placed.Lambda is not None
            total = total + 0.5 * (placed.Lambda * placed.rotate(V).square()).sum()
        return total

    def _kept(self) -> dict[str, Tensor]:
        return {
            f"{name}|{key}": value
            for name, factor in self.factors_.items()
            for key in ("Lambda", "Qa", "Qs")
            if (value := getattr(factor, key)) is not None
        }

    def _more(self) -> dict[str, Any]:
        return {"modules": list(self.factors_)}

    def _restore(self, kept: dict[str, Tensor], more: dict[str, Any]) -> None:
        self.factors_ = {
            name: Factor(name, *(kept.get(f"{name}|{key}") for key in ("Lambda", "Qa", "Qs")))
            for name in more["modules"]
        }


class EWCDistance(_Fallback):
    """Elastic weight consolidation: the diagonal Fisher matrix of the loss (Kirkpatrick et al. 2017).

    `fisher` "true": labels drawn from the model, gradients of single rows squared. "empirical": the data's
    labels. "last-batch": the squared mean gradient of the last `batch_rows` rows, as the reference code of
    LAFTR has it; not a Fisher matrix, and shipped only as the straw man that it is.
    """

    OPTIONS = ("fisher", "seed", "batch_rows")
    RHO = ("kl",)

    def __init__(self, fisher: Fisher = "true", *, seed: int = 0, batch_rows: int = 32) -> None:
        self.fisher, self.seed, self.batch_rows = fisher, seed, batch_rows

    def _check_options(self) -> None:
        check_choice("fisher", self.fisher, Fisher)
        at_least_one("batch_rows", self.batch_rows)

    def _learn(self, model: nn.Module, units: Units, tokenizer: Any) -> None:
        if self.fisher == "last-batch":
            self.diagonal_ = _last_batch(model, units, self.batch_rows)
            return
        mode: Any = "sampled" if self.fisher == "true" else "empirical"
        method = EKFAC("diagonal", seed=self.seed, label_mode=mode).fit(model, units)
        self.diagonal_ = {}
        for name, factor in method.factors_.items():
            assert factor.Lambda is not None
            self.diagonal_[name] = factor.Lambda
        method.release()

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        moves, total = self._moves(tensors), torch.zeros((), device=next(iter(tensors.values())).device)
        for name, fisher in sorted(self.diagonal_.items()):  # on disk they lie in this order
            if self.fisher == "last-batch":
                total = total + 0.5 * (fisher.to(moves[name]) * moves[name].square()).sum()
                continue
            module, prefix = model.get_submodule(name), f"{name}." if name else ""
            V = as_matrix(module, moves[f"{prefix}weight"], moves.get(f"{prefix}bias")).float()
            total = total + 0.5 * (fisher.to(V) * V.square()).sum()
        return total

    def _kept(self) -> dict[str, Tensor]:
        return dict(self.diagonal_)

    def _restore(self, kept: dict[str, Tensor], more: dict[str, Any]) -> None:
        self.diagonal_ = kept


class L2Distance(_Fallback):
    """Half the squared distance of all parameters: the baseline that knows nothing of the data."""

    def _learn(self, model: nn.Module, units: Units, tokenizer: Any) -> None:
        """Nothing but the reference's parameters is kept."""

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        return (
            0.5 * torch.stack([move.float().square().sum() for move in self._moves(tensors).values()]).sum()
        )

    def _kept(self) -> dict[str, Tensor]:
        return {"nothing": torch.zeros(1)}

    def numbers(self) -> int:
        """Nothing besides the reference's weights."""
        self._check_fitted()
        return 0


def _last_batch(model: nn.Module, units: Units, size: int) -> dict[str, Tensor]:
    rows = range(max(0, len(units) - size), len(units))
    batch = units.batch(rows).to(next(model.parameters()).device)
    loss = default_objective(batch)(model, batch).mean()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.square()
        for (name, p), g in zip(named.items(), grads, strict=True)
    }


def _to(factor: Factor, device: torch.device) -> Factor:
    parts = (None if x is None else x.to(device) for x in (factor.Lambda, factor.Qa, factor.Qs))
    return Factor(factor.name, *parts)
