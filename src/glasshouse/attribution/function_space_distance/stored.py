"""Estimators that keep examples: the change on them, and its linearisation in the parameters (NTK)."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from glasshouse.attribution.base import at_least_one
from glasshouse.attribution.function_space_distance.fallback import Tensors, _Fallback, outputs_of
from glasshouse.attribution.function_space_distance.metrics import output_distance
from glasshouse.attribution.units import Batch, TensorUnits, TokenUnits, Units
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import rng


class CoresetDistance(_Fallback):
    """Keeps `size` rows of the data (all with None) and the reference's outputs there, and compares.

    Rows are drawn by `seed`, evenly over integer labels. Any `rho`. It stores data, which a sketch avoids.

    >>> model = nn.Linear(3, 2)
    >>> CoresetDistance(4).fit(model, torch.randn(9, 3)).distance(model).item()
    0.0
    """

    OPTIONS = ("size", "seed")
    RHO = ("l2", "kl", "prob_l2")

    def __init__(self, size: int | None = 40, *, seed: int = 0) -> None:
        self.size, self.seed = size, seed

    def _check_options(self) -> None:
        at_least_one("size", self.size)

    def _learn(self, model: nn.Module, units: Units, tokenizer: Any) -> None:
        self.rows_ = _subset(units, _chosen(units, self.size, self.seed))
        with torch.no_grad():
            self.outputs_ = outputs_of(model, self._batch(model))
        if not bool(torch.isfinite(self.outputs_).all()):
            raise NumericalError("the reference's outputs hold NaN or infinity", fix="repair the checkpoint")

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        found = outputs_of(_Bound(model, tensors), self._batch(model))
        return output_distance(self.outputs_.to(found), found, rho).mean()  # type: ignore[arg-type]

    def _batch(self, model: nn.Module) -> Batch:
        device = next(model.parameters()).device
        return self.rows_.batch(range(len(self.rows_))).to(device)

    def _kept(self) -> dict[str, Tensor]:
        kept = {"outputs": self.outputs_}
        if isinstance(self.rows_, TensorUnits):
            kept |= {"inputs": self.rows_.inputs, "targets": self.rows_.targets}
        return kept

    def _more(self) -> dict[str, Any]:
        if isinstance(self.rows_, TensorUnits):
            return {"ids": list(self.rows_.ids)}
        rows = [[list(row.ids), list(row.labels)] for row in self.rows_.rows]
        return {"ids": list(self.rows_.ids), "rows": rows, "side": self.rows_.side, "pad": self.rows_.pad_id}

    def _restore(self, kept: dict[str, Tensor], more: dict[str, Any]) -> None:
        try:
            self.outputs_ = kept["outputs"]
            if "rows" not in more:
                self.rows_: TensorUnits | TokenUnits = TensorUnits(
                    kept["inputs"], kept["targets"], more["ids"]
                )
                return
        except KeyError as error:
            raise InputError(f"it lacks {error}", where=type(self).__name__, fix="fit again") from error
        pairs = zip(more["rows"], more["ids"], strict=True)
        rows = [TokenRow(tuple(ids), tuple(labels), name) for (ids, labels), name in pairs]
        self.rows_ = TokenUnits(rows, side=more["side"], pad_id=more["pad"])


class NTKDistance(CoresetDistance):
    """The network linearised in its parameters at the reference, on `size` kept rows (all with None).

    `0.5 E |J (theta1 - theta0)|^2` for l2; with the linearised outputs for the others.
    """

    def __init__(self, size: int | None = None, *, seed: int = 0) -> None:
        super().__init__(size, seed=seed)

    def _distance(self, model: nn.Module, tensors: Tensors, rho: str) -> Tensor:
        batch, moves = self._batch(model), self._moves(tensors)
        start = {name: self.start_[name].to(move) for name, move in moves.items()}  # in one order

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            return outputs_of(_Bound(model, parameters), batch)

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            f0, change = jvp(outputs, (start,), (moves,))
        return output_distance(f0, f0 + change, rho, change).mean()  # type: ignore[arg-type]


class _Bound:
    """A model with other parameters, under its own forward signature."""

    def __init__(self, model: nn.Module, tensors: Tensors) -> None:
        self.model, self.tensors = model, dict(tensors)
        self.forward = model.forward  # the signature is read by the objective

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.tensors, args, kwargs)


def _chosen(units: Units, size: int | None, seed: int) -> list[int]:
    """Rows to keep: drawn evenly over integer labels, else at random; named by row, not by place."""
    if size is None or size >= len(units):
        return list(range(len(units)))
    names = sorted(range(len(units)), key=lambda i: units.ids[i])
    order = [names[i] for i in rng(seed, "coreset").permutation(len(units))]
    targets = getattr(units, "targets", None)
    if targets is None or targets.is_floating_point() or targets.ndim != 1:
        return sorted(order[:size])
    labels = targets.cpu().numpy()
    turn: dict[int, int] = {}
    ranks = []
    for i in order:
        label = int(labels[i])
        turn[label] = turn.get(label, 0) + 1
        ranks.append(turn[label])
    return sorted(order[i] for i in np.argsort(ranks, kind="stable")[:size])


def _subset(units: Units, rows: list[int]) -> TensorUnits | TokenUnits:
    subset = getattr(units, "subset", None)
    if subset is None or "indices" not in inspect.signature(subset).parameters:
        raise InputError(
            f"cannot keep rows of a {type(units).__name__}", fix="give TensorUnits or TokenUnits"
        )
    return subset(rows)
