"""Curvature among sketches: the empirical Fisher of each block, or K-FAC and EK-FAC of the projected pairs.

"raw": `F = mean_n vec(Gp_n) vec(Gp_n)^T`, [r_o r_i, r_o r_i], the paper's choice for language models. All of
them use the data's labels and are read off the log, so that they cost no pass through the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from glasshouse.attribution.logra.layout import Block, Layout
from glasshouse.attribution.logra.log import SketchLog
from glasshouse.attribution.stages.curvature import DAMPING_SHARE, Factor, eigenbasis
from glasshouse.attribution.stages.passes import gram_, mirrored
from glasshouse.attribution.store import Mapper, Store, Tensors, summed
from glasshouse.runtime.errors import NumericalError

Kind = Literal["raw", "kfac", "ekfac"]

HELD = 1 << 27
"""Numbers of Fisher matrices summed in one pass over the log (512 MiB)."""


@dataclass(frozen=True)
class Fisher:
    """The empirical Fisher `F` [d, d] of one block's sketches."""

    name: str
    F: Tensor

    @property
    def mean(self) -> float:
        """The mean eigenvalue, trace(F) / d."""
        return float(self.F.diagonal().double().mean())


Curvature = Fisher | Factor | None


class Inverse(Protocol):
    """The damped inverse of one block's curvature."""

    def solve(self, U: Tensor) -> Tensor:
        """`(F + damping)^-1 u` of every row of U [n, d]."""

    def root(self, V: Tensor) -> Tensor:
        """Rows of V whitened: dot products of two such rows are `u^T (F + damping)^-1 v`."""


class _Plain:
    def solve(self, U: Tensor) -> Tensor:
        return U

    def root(self, V: Tensor) -> Tensor:
        return V


class _Dense:
    """By the Cholesky factor of `F + damping`, taken in float64."""

    def __init__(self, fisher: Fisher, damping: float) -> None:
        C = fisher.F.double()
        C.diagonal().add_(damping)
        self.L, info = torch.linalg.cholesky_ex(C)
        if int(info) or float(self.L.diagonal().min()) <= 0:
            raise NumericalError(
                "its damped Fisher matrix is not positive definite", where=f"block {fisher.name!r}",
                fix='use damping="auto" or a larger number',
            )  # fmt: skip
        self.short = self.L.float()

    def solve(self, U: Tensor) -> Tensor:
        return torch.cholesky_solve(U.double().T, self.L).T.float().contiguous()

    def root(self, V: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.short, V.T, upper=False).T.contiguous()


class _Kronecker:
    def __init__(self, factor: Factor, damping: float, block: Block) -> None:
        inverse = factor.inverse(damping)
        assert inverse is not None
        self.factor, self.inverse, self.shape = factor, inverse, (block.out, block.inn)

    def solve(self, U: Tensor) -> Tensor:
        return self.factor.unrotate(self._rotated(U).mul_(self.inverse)).flatten(1)

    def root(self, V: Tensor) -> Tensor:
        return self._rotated(V).mul_(self.inverse.sqrt()).flatten(1)

    def _rotated(self, U: Tensor) -> Tensor:
        return self.factor.rotate(U.unflatten(1, self.shape))


def inverses(
    curvature: dict[str, Curvature], layout: Layout, damping: float | str, share: float = DAMPING_SHARE
) -> dict[str, Inverse]:
    """The damped inverse of every block; damping "auto" is `share` of the block's mean eigenvalue.

    Raises NumericalError naming a block that has no inverse.
    """
    found: dict[str, Inverse] = {}
    for block in layout.blocks:
        one = curvature[block.name]
        if one is None:
            found[block.name] = _Plain()
        elif isinstance(one, Fisher):
            found[block.name] = _Dense(one, share * one.mean if damping == "auto" else float(damping))
        else:
            assert one.Lambda is not None
            mean = float(one.Lambda.double().mean())
            value = share * mean if damping == "auto" else float(damping)
            found[block.name] = _Kronecker(one, value, block)
    return found


def solved(inverse: dict[str, Inverse], layout: Layout, U: Tensor) -> Tensor:
    """Preconditioned sketches [n, width]."""
    return torch.cat([inverse[b.name].solve(U[:, b.columns]) for b in layout.blocks], 1)


def whitened(inverse: dict[str, Inverse], layout: Layout, V: Tensor) -> Tensor:
    """Whitened sketches [n, width], whose plain dot products are scores."""
    return torch.cat([inverse[b.name].root(V[:, b.columns]) for b in layout.blocks], 1)


def measured(
    log: SketchLog, kind: Kind | None, grams: Tensors, mapper: Mapper, kept: Store | None
) -> dict[str, Curvature]:
    """The curvature of every block. `grams` are the log's sums over projected pairs (K-FAC and EK-FAC)."""
    layout, numbers = log.layout, list(range(len(log.shards)))
    if kind is None:
        return {block.name: None for block in layout.blocks}
    if kind == "raw":
        found: dict[str, Curvature] = {}
        for k, blocks in enumerate(_groups(layout)):
            total = summed(f"fisher-{k:03d}", partial(fisher_shard, log, blocks), numbers, mapper, kept)
            for block in blocks:
                found[block.name] = Fisher(block.name, mirrored(total[block.name]) / len(log))
        return found
    factors = _bases(layout, grams)
    if kind == "ekfac":
        total = summed("lambda", partial(lambda_shard, log, factors), numbers, mapper, kept)
        return {n: Factor(n, total[n] / len(log), f.Qa, f.Qs, f.extra) for n, f in factors.items()}
    return dict(factors)


def fisher_shard(log: SketchLog, blocks: Sequence[Block], number: int) -> Tensors:
    """Upper triangles of `sum_n vec(Gp_n) vec(Gp_n)^T` over one shard, by block."""
    part = log.read(number)
    found = {block.name: torch.zeros(block.size, block.size) for block in blocks}
    for block in blocks:
        gram_(found[block.name], part.sketches(block))
    return found


def lambda_shard(log: SketchLog, factors: dict[str, Factor], number: int) -> Tensors:
    """`sum_n (Qs^T Gp_n Qa)^2` over one shard, by block."""
    part = log.read(number)
    return {
        b.name: factors[b.name].rotate(part.sketches(b).view(-1, b.out, b.inn)).square_().sum(0)
        for b in part.layout.blocks
    }


def _bases(layout: Layout, grams: Tensors) -> dict[str, Factor]:
    """K-FAC of the projected pairs."""
    found = {}
    for b in layout.blocks:
        count = float(grams[f"count/{b.name}"])
        la, Qa = eigenbasis(mirrored(grams[f"A/{b.name}"]) / count, f"block {b.name!r}, inputs")
        ls, Qs = eigenbasis(mirrored(grams[f"S/{b.name}"]) / count, f"block {b.name!r}, gradients")
        found[b.name] = Factor(b.name, torch.outer(ls, la), Qa, Qs, {"la": la, "ls": ls})
    return found


def _groups(layout: Layout) -> list[list[Block]]:
    """Blocks whose matrices are summed in one pass over the log."""
    groups: list[list[Block]] = []
    held = HELD
    for block in layout.blocks:
        if held + block.size**2 > HELD:
            groups.append([])
            held = 0
        groups[-1].append(block)
        held += block.size**2
    return groups
