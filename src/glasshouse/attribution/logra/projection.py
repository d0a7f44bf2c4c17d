"""The two small matrices of a module, `P_o` and `P_i`, and the sketch `P_o G P_i^T` without forming G.

`G_n = sum_t g_t a_t^T`, so `P_o G_n P_i^T = sum_t (P_o g_t)(P_i a_t)^T`: project first, then multiply. A
token costs r (in + out) instead of in * out (Choe et al. 2024, arXiv:2405.13954, section 3.1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from glasshouse.attribution.stages.curvature import Factor
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import torch_generator
from glasshouse.subjects.capture import Pair, TrackedModule

Init = Literal["random", "kaiming", "pca"]


class RankWarning(UserWarning):
    """The rank asked for is larger than a side of a module; that side is kept whole."""


@dataclass(frozen=True)
class Projection:
    """`Po` [r_o, out] and `Pi` [r_i, in(+1)] of one module, float32."""

    name: str
    Po: Tensor
    Pi: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(r_o, r_i) of a sketch."""
        return len(self.Po), len(self.Pi)

    def inputs(self, a: Tensor) -> Tensor:
        """`P_i a` [..., r_i] for a [..., in] or, with its column of ones stored, [..., in + 1]."""
        if a.shape[-1] == self.Pi.shape[1]:
            return a @ self.Pi.T
        # The bias sees a = 1, which is not stored: its part is the last column of P_i.
        return a @ self.Pi[:, :-1].T + self.Pi[:, -1]

    def halves(self, pair: Pair) -> Pair:
        """`P_i a` [B, T, r_i] and `P_o g` [B, T, r_o]."""
        return Pair(self.inputs(pair.a), pair.g @ self.Po.T)

    def sketch(self, pair: Pair) -> Tensor:
        """`P_o G_n P_i^T`, [B, r_o, r_i]."""
        half = self.halves(pair)
        if half.a.shape[1] == 1:
            return half.g.mT * half.a
        return torch.bmm(half.g.mT, half.a)

    def to(self, device: torch.device) -> Projection:
        """The same on another device."""
        return Projection(self.name, self.Po.to(device), self.Pi.to(device))


Projections = dict[str, Projection]


def drawn(modules: Sequence[TrackedModule], rank: int, init: Init, seed: int) -> Projections:
    """Projections that only `seed` and the module's name decide, so that the seed is all one has to keep.

    "random": Gaussian entries of variance 1/r on both sides, so that inner products of sketches are unbiased;
    a side of at most `rank` is kept whole. "kaiming" is the reference implementation's: uniform within
    1/sqrt(in) on the input side and within 1/sqrt(r) on the output side.
    """
    found = {}
    for m in modules:
        sides = []
        for side, size in (("out", m.out_features), ("in", m.in_features)):
            r, stream = min(rank, size), torch_generator(seed, "logra", m.name, side)
            if init == "kaiming":
                bound = 1 / math.sqrt(size if side == "in" else r)
                sides.append((2 * torch.rand(r, size, generator=stream) - 1) * bound)
            elif r == size:
                sides.append(torch.eye(size))
            else:
                sides.append(torch.randn(r, size, generator=stream) / math.sqrt(r))
        found[m.name] = Projection(m.name, *sides)
    return found


def principal(factors: dict[str, Factor], rank: int) -> Projections:
    """The top eigenvectors of `E[g g^T]` and `E[a a^T]`: K-FAC's eigenbasis, cut off.

    Raises InputError for a module without an eigenbasis (nothing was measured): there is no random fallback.
    """
    found = {}
    for name, factor in factors.items():
        if factor.Qs is None or factor.Qa is None:
            raise InputError(
                "it has no covariance to take principal directions from", where=f"module {name!r}",
                fix='measure it first, or use init="random"',
            )  # fmt: skip
        sides = [Q[:, -rank:].flip(1).T.contiguous() for Q in (factor.Qs, factor.Qa)]
        found[name] = Projection(name, *sides)
    return found


def warn_capped(modules: Sequence[TrackedModule], rank: int) -> None:
    """Say once which modules are smaller than the rank."""
    small = [m for m in modules if rank > min(m.out_features, m.in_features)]
    if small:
        first = small[0]
        warnings.warn(
            RankWarning(
                f"rank {rank} is larger than a side of {len(small)} module(s), first {first.name!r} "
                f"({first.out_features} x {first.in_features}); that side is kept whole"
            ),
            stacklevel=4,
        )
