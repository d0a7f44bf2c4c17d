"""`Graph`: one traced network with its input moments, gate numbers and reference weights; distances of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasshouse.attribution.function_space_distance.forward import Pairing, mean_pass, run_pair
from glasshouse.attribution.function_space_distance.metrics import Rho, checked, output_distance
from glasshouse.attribution.function_space_distance.moments import InputMoments
from glasshouse.attribution.function_space_distance.program import (
    AFFINE,
    Affine,
    Node,
    effective,
    shape_mismatch,
)
from glasshouse.attribution.function_space_distance.recursion import Joint, Still
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import torch_generator

DENSE = 8192
"""Units behind a gate whose k x k covariances are still propagated; more are sampled instead."""
KEPT = 1 << 26
"""Numbers of the reference's own moments that are kept between two distances (256 MB)."""


@dataclass
class Graph:
    """Everything a distance needs: steps, shapes, moments, gates, and the reference's weights by name."""

    nodes: tuple[Node, ...]
    shapes: dict[str, Sequence[int]]
    moments: InputMoments
    gates: dict[str, dict[str, Tensor]]
    start: dict[str, Tensor]
    scale: float = float("nan")
    """Half the mean squared norm of the reference's output on the data."""
    _still: dict[tuple[torch.dtype, str], Still] = field(default_factory=dict, repr=False)
    _drawn: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def layers(self) -> list[str]:
        """The modules with weights, in the order of the steps."""
        return list(dict.fromkeys(node.module for node in self.nodes if node.kind in AFFINE))

    @property
    def units(self) -> int:
        """Gated units (one number each for ReLU, per class)."""
        return sum(next(iter(parts.values())).shape[1] for parts in self.gates.values())

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Graph:
        """The same on another device or in another number format; caches are not taken along."""
        return Graph(
            self.nodes, self.shapes, self.moments.to(device, dtype),
            {n: {k: v.to(device, dtype) for k, v in parts.items()} for n, parts in self.gates.items()},
            {name: value.to(device) for name, value in self.start.items()}, self.scale,
        )  # fmt: skip

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise InputError, naming the first difference, unless `tensors` fit the reference's weights."""
        found = shape_mismatch(self.start, tensors)
        if found is not None:
            raise InputError(f"the two models differ: {found}", fix="compare models of one architecture")

    # -- deterministic ---------------------------------------------------------------------------------------

    def deterministic(self, tensors: Mapping[str, Tensor], *, tangent: bool = False) -> Tensor:
        """`0.5 E |change of the outputs|^2` from the moments, exact under the gate assumption; float32.

        A negative number, which rounding can give for tiny moves, is computed again in float64.
        """
        found = self._deterministic(tensors, torch.float32, tangent)
        if float(found.detach()) < 0:
            found = self._deterministic(tensors, torch.float64, tangent)
        return checked(found)

    def _deterministic(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, tangent: bool = False
    ) -> Tensor:
        change, trace = self.joint(tensors, dtype, tangent).run(self._moments(dtype))
        value = 0.5 * (trace + change.square().sum(-1))
        return (self.moments.weights.to(value) * value).sum()

    def joint(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, tangent: bool = False) -> Joint:
        """The recursion, ready to run."""
        self._check_width()
        base, moved = self.pair(tensors, dtype)
        still = self._still.setdefault((dtype, str(self.moments.mean.device)), {})
        if sum(value.numel() for value in still.values() if value is not None) > KEPT:
            still = {}
        return Joint(self.nodes, base, moved, self.gates, self.shapes, still, tangent)

    def pair(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype
    ) -> tuple[dict[str, Affine], dict[str, Affine]]:
        """Effective weights of both networks; layers whose tensors are the reference's are shared."""
        base = effective(self.nodes, {n: v.to(dtype) for n, v in self.start.items()})
        moved = effective(self.nodes, {n: tensors[n].to(dtype) for n in self.start})
        for node in self.nodes:
            if node.kind in AFFINE and all(
                tensors[n] is v for n, v in self.start.items() if n.rpartition(".")[0] == node.module
            ):
                moved[node.name] = base[node.name]
        return base, moved

    def _moments(self, dtype: torch.dtype) -> InputMoments:
        return self.moments if dtype == self.moments.mean.dtype else self.moments.to(dtype=dtype)

    def _check_width(self) -> None:
        for name, parts in self.gates.items():
            width = next(iter(parts.values())).shape[1]
            if width > DENSE and not self._single():
                raise InputError(
                    f"step {name!r} has {width:,} units: covariances of {4e-9 * width * width:.1f} GB",
                    fix='use method="stochastic" or "relu-gaussian"',
                )

    def _single(self) -> bool:
        """One gate only (an MLP block): its covariances are made once and never mapped as wholes."""
        return len(self.gates) <= 1

    # -- sampled ---------------------------------------------------------------------------------------------

    def samples(
        self, tensors: Mapping[str, Tensor], *, rho: Rho, n: int, seed: int, drawn: bool
    ) -> tuple[Tensor, Tensor]:
        """Distance of each of `n` sampled inputs [n], and its weight [n] (they sum to one).

        `drawn`: gates are Bernoulli draws; else they are the reference's own at the sampled input.
        """
        f0, change, weights = self.outputs(tensors, n=n, seed=seed, drawn=drawn)
        return output_distance(f0, f0 + change, rho, change), weights

    def outputs(
        self, tensors: Mapping[str, Tensor], *, n: int, seed: int, drawn: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the reference [n, C], their changes [n, C] and the weights [n] of sampled inputs."""
        x, pairing, weights = self.draws(n, seed, drawn)
        base, moved = self.pair(tensors, x.dtype)
        f0, change = run_pair(self.nodes, base, moved, x, self.shapes, pairing)
        return f0, change, weights

    def draws(self, n: int, seed: int, drawn: bool) -> tuple[Tensor, Pairing, Tensor]:
        """Sampled inputs [n, ...], how their gates act, and their weights [n]."""
        if self._drawn is None or self._drawn[0] != (n, seed):
            self._drawn = (n, seed), self.moments.sample(n, seed)
        x, classes = self._drawn[1]
        generator = torch_generator(seed, "gates") if drawn else None
        pairing = Pairing(self.gates, self.centres() if drawn else {}, classes, generator)
        sizes = torch.bincount(classes, minlength=len(self.moments)).to(x)
        weights = (self.moments.weights.to(x) / sizes)[classes]
        return x.reshape(len(x), *self.shapes[self.nodes[0].name]), pairing, weights

    def centres(self) -> dict[str, Tensor]:
        """Mean pre-activations [K, k] that smooth gains turn around; nothing for ReLU networks."""
        if all(node.kind in ("relu", "maxpool") for node in self.nodes if node.name in self.gates):
            return {}
        mean = self.moments.mean.float()
        base = effective(self.nodes, {n: v.float() for n, v in self.start.items()})
        return mean_pass(self.nodes, base, self.gates, self.shapes, mean)
