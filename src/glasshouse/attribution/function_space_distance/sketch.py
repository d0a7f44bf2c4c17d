"""`FSDSketch`: how far has a network moved on data that may no longer be kept?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from glasshouse.attribution.base import at_least_one
from glasshouse.attribution.function_space_distance import blocks, disk
from glasshouse.attribution.function_space_distance.chain import reference_distance
from glasshouse.attribution.function_space_distance.fitting import Plan, fit_blocks, fit_module, idle_units
from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.metrics import Rho, check_rho, checked
from glasshouse.attribution.function_space_distance.moments import (
    Covariance,
    SketchWarning,
    check_covariance,
)
from glasshouse.attribution.function_space_distance.program import (
    first_mismatch,
    state_of,
)
from glasshouse.attribution.function_space_distance.results import Breakdown
from glasshouse.attribution.function_space_distance.tracing import trace
from glasshouse.attribution.stages import guards
from glasshouse.runtime.errors import InputError

Method = Literal["deterministic", "stochastic", "relu-gaussian"]
METHODS: tuple[str, ...] = get_args(Method)
VARIANTS = ("exact", "reference")


class FSDSketch:
    """The linearised activation function trick (LAFTR; Dhawan, Huang, Bae, Grosse 2023, arXiv:2302.03519).

    A sketch holds input means and covariances, one number per ReLU unit (the probability that its gate is
    open), and the reference's weights. From these alone it tells how far another network's outputs are on the
    data it was fitted on. `per_class` keeps all of it per label of the data (a single Gaussian underestimates
    data of several classes by half); `cov` is "full", "diag", or the rank of a factor that is kept beside the
    diagonal; `approx` admits smooth activations and products of values, by their expected derivatives.
    `batch_rows` changes results only by rounding; `seed` is for gates estimated from moments alone.

    Of a language model the MLP blocks are sketched, each with the residuals the reference had (needs
    `approx` unless they are ReLU); attention is not covered.

    Learned: `graphs_` by name, `notes_`, `model_hash_`, `count_` (rows or tokens), `dead_` and `always_on_`
    (units whose gate is shut, or open, on all rows of all classes).

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> sketch = FSDSketch().fit(model, torch.randn(50, 3))
    >>> sketch.distance(model).item()
    0.0
    """

    def __init__(
        self,
        per_class: bool = False,
        *,
        cov: Covariance = "full",
        approx: bool = False,
        seed: int = 0,
        batch_rows: int = 2048,
    ) -> None:
        self.per_class, self.cov, self.approx = per_class, cov, approx
        self.seed, self.batch_rows = seed, batch_rows

    # -- fitting ---------------------------------------------------------------------------------------------

    def fit(self, subject: Any, data: Any) -> Self:
        """Summarise `data` as `subject` sees it; afterwards neither is needed.

        `data` are inputs [N, ...], a pair (inputs, targets), TensorUnits, or InputMoments that somebody else
        measured (gates are then estimated on draws); for a language model token rows, records or texts.
        Raises InputError for an operation without a rule (named), a smooth activation without `approx`,
        layers in training mode, `per_class` without integer labels; NumericalError for NaN in data or model.
        """
        check_covariance(self.cov)
        at_least_one("batch_rows", self.batch_rows)
        plan = Plan(self.per_class, self.cov, self.approx, self.seed, self.batch_rows)
        if blocks.is_language_model(subject):
            self.graphs_, notes = fit_blocks(subject, data, plan)
        else:
            self.graphs_, notes = fit_module(guards.unwrap(subject)[0], data, plan)
        for note in notes:
            warnings.warn(note, SketchWarning, stacklevel=2)
        self.model_hash_ = guards.model_hash(subject)
        self.count_ = int(next(iter(self.graphs_.values())).moments.counts.sum())
        self.dead_, self.always_on_, units = idle_units(self.graphs_)
        if self.dead_ or self.always_on_:
            notes.append(f"of {units} units {self.dead_} are shut and {self.always_on_} open on all data")
        self.notes_: list[str] = notes
        return self

    # -- asking ----------------------------------------------------------------------------------------------

    def distance(
        self,
        model1: Any,
        method: Method = "deterministic",
        rho: Rho = "l2",
        *,
        n: int = 200,
        seed: int = 0,
        variant: Literal["exact", "reference"] = "exact",
    ) -> Tensor:
        """The distance of `model1` from the reference: a scalar >= 0 with gradients in model1's parameters.

        `model1` is a network of the same architecture, a Subject, or a dictionary of its tensors by name.
        "deterministic" propagates second moments (l2 only); "stochastic" draws `n` inputs and gates;
        "relu-gaussian" draws inputs and takes the gates of the reference there. The same `seed` gives the
        same draws. `variant="reference"` is the published code's recursion, for comparison. Of a language
        model the distances of the blocks are added. Raises InputError for another architecture, naming
        the first difference, and for a `rho` the method has no moments for.
        """
        self._check_ask(method, rho, n, variant)
        return torch.stack(
            [
                self._one(graph, tensors, method, rho, n, seed, variant)
                for graph, tensors in self._paired(model1)
            ]
        ).sum()

    def samples(
        self, model1: Any, method: Method = "stochastic", rho: Rho = "l2", *, n: int = 200, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Distances of `n` single draws [n], and their weights [n] (sum 1); of networks with one graph."""
        self._check_ask(method, rho, n, "exact")
        if method == "deterministic" or len(self.graphs_) != 1:
            raise InputError("single draws exist for sampled methods on one graph only")
        (pair,) = self._paired(model1)
        graph, tensors = pair
        return graph.samples(tensors, rho=rho, n=n, seed=seed, drawn=method == "stochastic")

    def breakdown(
        self, model1: Any, method: Method = "deterministic", rho: Rho = "l2", *, n: int = 200, seed: int = 0
    ) -> Breakdown:
        """The distance of each layer moved alone, the others held at the reference; by block for LMs."""
        self._check_ask(method, rho, n, "exact")
        names, values, relative = [], [], []
        total = 0.0
        with torch.no_grad():
            pairs = list(zip(self.graphs_, self._paired(model1), strict=True))
            for name, (graph, tensors) in pairs:
                whole = float(self._one(graph, tensors, method, rho, n, seed, "exact"))
                total += whole
                moves = [(name, tensors)] if name else list(_swaps(graph, tensors))
                for layer, moved in moves:
                    value = whole if name else float(self._one(graph, moved, method, rho, n, seed, "exact"))
                    names.append(layer)
                    values.append(value)
                    relative.append(value / graph.scale if graph.scale > 0 else float("nan"))
        about = {"method": method, "rho": rho, "n": n, "seed": seed, "rows": self.count_}
        return Breakdown(tuple(names), tuple(values), total, tuple(relative), about)

    def gate_flips(self, model1: Any, inputs: Tensor) -> dict[str, Any]:
        """Per ReLU step the share of gates that differ between the two networks on probe inputs [N, ...].

        Estimates with an interval over rows. Large shares break the assumption of shared gates.
        """
        from glasshouse.attribution.function_space_distance.probe import gate_flips

        self._check_fitted()
        if set(self.graphs_) != {""}:
            raise InputError("gate flips are counted on plain networks only")
        (pair,) = self._paired(model1)
        return gate_flips(pair[0], pair[1], inputs)

    def numbers(self) -> int:
        """Numbers stored besides the reference's weights."""
        self._check_fitted()
        gates = sum(
            v.numel() for g in self.graphs_.values() for parts in g.gates.values() for v in parts.values()
        )
        return gates + sum(graph.moments.numbers for graph in self.graphs_.values())

    # -- disk ------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str, *, snapshot: bool = True) -> Path:
        """Write `manifest.json`, `sketch.safetensors` and, with `snapshot`, the reference's weights."""
        self._check_fitted()
        about = {
            "options": self._options(), "model_hash": self.model_hash_, "count": self.count_,
            "notes": self.notes_, "dead": self.dead_, "always_on": self.always_on_,
        }  # fmt: skip
        return disk.save(Path(folder), type(self).__name__, about, self.graphs_, snapshot)

    @classmethod
    def load(cls, folder: Path | str, subject: Any = None) -> Self:
        """A sketch from disk; one saved without a snapshot needs the reference `subject` again.

        Raises StaleError for another subject, InputError or RunError for a folder that is no whole sketch.
        """
        about, graphs = disk.load(Path(folder), cls.__name__, lambda: _states(subject), guards_of(subject))
        sketch = cls(**about["options"])
        sketch.graphs_, sketch.count_, sketch.model_hash_ = graphs, about["count"], about["model_hash"]
        sketch.notes_, sketch.dead_ = about["notes"], about["dead"]
        sketch.always_on_ = about["always_on"]
        return sketch

    # -- inside ----------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        names = ("per_class", "cov", "approx", "seed", "batch_rows")
        return {name: getattr(self, name) for name in names}

    def _check_fitted(self) -> None:
        if not hasattr(self, "graphs_"):
            raise InputError("it is not fitted", where=type(self).__name__, fix="call fit() first")

    def _check_ask(self, method: str, rho: str, n: int, variant: str) -> None:
        self._check_fitted()
        if method not in METHODS or variant not in VARIANTS:
            raise InputError(
                f"method is {method!r}, variant {variant!r}",
                fix=f"use {', '.join(METHODS)}; variants {', '.join(VARIANTS)}",
            )
        if method == "deterministic":
            check_rho(rho, ("l2",), ", but only l2 has closed moments; a sampled method does every rho")
        check_rho(rho, ("l2",) if set(self.graphs_) != {""} else get_args(Rho))
        at_least_one("n", n)

    def _one(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        method: str,
        rho: Rho,
        n: int,
        seed: int,
        variant: str,
    ) -> Tensor:
        if variant == "reference":
            return checked(reference_distance(graph, tensors))
        if method == "deterministic":
            return graph.deterministic(tensors)
        values, weights = graph.samples(tensors, rho=rho, n=n, seed=seed, drawn=method == "stochastic")
        return checked((weights * values).sum())

    def _paired(self, model1: Any) -> Iterator[tuple[Graph, Mapping[str, Tensor]]]:
        """Each graph with the other network's tensors, checked to fit."""
        if isinstance(model1, Mapping):
            if set(self.graphs_) != {""}:
                raise InputError("the blocks of a language model need the model", fix="pass the model itself")
            others = {"": (None, dict(model1))}
        elif set(self.graphs_) == {""}:
            model, _ = guards.unwrap(model1)
            nodes = trace(model, approx=self.approx)
            others = {"": (nodes, state_of(model))}
        else:
            modules = blocks.mlp_blocks(blocks.parts_of(model1))
            others = {
                name: (trace(module, approx=self.approx, gains=module.gains), state_of(module))
                for name, module in modules.items()
            }
        if set(others) != set(self.graphs_):
            raise InputError(
                f"the two models differ: {len(self.graphs_)} blocks and {len(others)}",
                fix="compare models of one architecture",
            )
        for name, graph in self.graphs_.items():
            nodes, tensors = others[name]
            found = first_mismatch(graph.nodes, nodes) if nodes is not None else None
            if found is not None:
                raise InputError(f"the two models differ: {found}", fix="compare models of one architecture")
            graph.check(tensors)
            yield self._placed(name, graph, tensors), tensors

    def _placed(self, name: str, graph: Graph, tensors: Mapping[str, Tensor]) -> Graph:
        """The graph on the other network's device."""
        device = tensors[next(iter(graph.start))].device
        if graph.moments.mean.device != device:
            self.graphs_[name] = graph = graph.to(device, torch.float32)
        return graph


def guards_of(subject: Any) -> str | None:
    """The hash of a subject that was given."""
    return None if subject is None else guards.model_hash(subject)


def _states(subject: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors of a reference, by graph."""
    if blocks.is_language_model(subject):
        modules = blocks.mlp_blocks(blocks.parts_of(subject))
        return {name: state_of(module) for name, module in modules.items()}
    return {"": state_of(guards.unwrap(subject)[0])}


def _swaps(graph: Graph, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The reference with one layer at a time taken from the other network."""
    for layer in graph.layers():
        yield (
            layer,
            {
                name: tensors[name] if name.rpartition(".")[0] == layer else value
                for name, value in graph.start.items()
            },
        )
