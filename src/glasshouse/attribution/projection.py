"""Random projections of row gradients, drawn block by block and never held as one matrix.

`phi = P^T vec(G)` with P of shape [parameters, dim], entries of variance 1/dim, so that `phi . phi'` is an
unbiased estimate of `vec(G) . vec(G')` (Johnson and Lindenstrauss). Each block of P depends on the seed, the
module's name and its place alone: the same numbers in any batch, process or order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive
from glasshouse.subjects.capture import Pair

Kind = Literal["gaussian", "rademacher", "kronecker"]

BLOCK_FLOATS = 1 << 22
"""Numbers of P drawn at once. Part of the definition of P: changing it changes every projection."""

KEPT_FLOATS = 1 << 27
"""Numbers of P kept in memory (512 MiB); what does not fit is drawn again for every batch."""

CHUNK_FLOATS = 1 << 23
"""Numbers of layer gradients formed at once."""


@dataclass(frozen=True)
class Projector:
    """Projects the pairs (a, g) of a batch to `[B, width]`.

    `kind` gaussian | rademacher: one dense P over all modules, width `dim`. kronecker: per module
    `P_out^T G P_in` with Gaussian factors, formed from pairs at the price of two thin products, side by side;
    its width is at most `dim`. `shapes` are (name, out, in) of the modules, the bias's column included.
    """

    kind: Kind
    dim: int
    seed: int
    shapes: tuple[tuple[str, int, int], ...]
    _kept: dict[tuple[str, int, str], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind == "kronecker" and self.dim < len(self.shapes):
            raise InputError(
                f"dim is {self.dim} for {len(self.shapes)} modules", fix="give at least one number a module"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # other processes draw their own blocks

    @property
    def width(self) -> int:
        """Numbers in one projection."""
        if self.kind != "kronecker":
            return self.dim
        return sum(math.prod(self.ranks(o, i)) for _, o, i in self.shapes)

    def ranks(self, o: int, i: int) -> tuple[int, int]:
        """Ranks (out, in) that a module of that shape gets of the Kronecker projection."""
        share = self.dim // len(self.shapes)
        left = min(o, math.isqrt(share))
        right = min(i, share // left)
        return min(o, share // right), right

    def project(self, pairs: Mapping[str, Pair]) -> Tensor:
        """`[B, width]` of the rows of a batch."""
        if self.kind == "kronecker":
            return torch.cat([self._thin(name, o, i, pairs[name]) for name, o, i in self.shapes], 1)
        first = pairs[self.shapes[0][0]]
        out = first.g.new_zeros(len(first.g), self.dim)
        for name, o, i in self.shapes:
            self._add(out, name, o, i, pairs[name])
        return out

    def matrix(self) -> Tensor:
        """The whole dense P, [parameters, dim]: for tests and tiny models."""
        blocks = [
            self._block(name, start, (stop - start) * i, torch.device("cpu"))
            for name, o, i in self.shapes
            for start, stop in self._pieces(o, i)
        ]
        return torch.cat(blocks)

    def _pieces(self, o: int, i: int) -> Iterator[tuple[int, int]]:
        """Ranges of output rows that one block covers."""
        step = max(1, BLOCK_FLOATS // (i * self.dim))
        return ((start, min(start + step, o)) for start in range(0, o, step))

    def _add(self, out: Tensor, name: str, o: int, i: int, pair: Pair) -> None:
        ones = pair.g.sum(1).unsqueeze(2) if pair.ones else None  # (B, o, 1): the bias's layer gradient
        for start, stop in self._pieces(o, i):
            P = self._block(name, start, (stop - start) * i, out.device)
            step = max(1, CHUNK_FLOATS // ((stop - start) * i))
            for k in range(0, len(out), step):
                G = torch.bmm(pair.g[k : k + step, :, start:stop].mT, pair.a[k : k + step])
                if ones is not None:
                    G = torch.cat([G, ones[k : k + step, start:stop]], 2)
                out[k : k + step].addmm_(G.flatten(1), P)

    def _thin(self, name: str, o: int, i: int, pair: Pair) -> Tensor:
        left, right = self.ranks(o, i)
        Po, Pi = self._draw(name, 0, (o, left), "out", pair.g), self._draw(name, 0, (i, right), "in", pair.g)
        g = pair.g @ Po  # (B, T, left)
        a = torch.matmul(pair.a, Pi[:-1]) + Pi[-1] if pair.ones else pair.a @ Pi  # (B, T, right)
        return torch.bmm(g.mT, a).flatten(1)

    def _block(self, name: str, start: int, rows: int, device: torch.device) -> Tensor:
        return self._draw(name, start, (rows, self.dim), "dense", torch.empty(0, device=device))

    def _draw(self, name: str, start: int, shape: tuple[int, int], part: str, like: Tensor) -> Tensor:
        """Entries of variance 1/columns, drawn on the CPU so that every device gets the same."""
        key = (name, start, part)
        if key in self._kept and self._kept[key].device == like.device:
            return self._kept[key]
        g = torch.Generator().manual_seed(derive(self.seed, "projection", name, start, part))
        if self.kind == "rademacher":
            drawn = torch.randint(0, 2, shape, generator=g, dtype=torch.int8).float().mul_(2).sub_(1)
        else:
            drawn = torch.randn(shape, generator=g)
        drawn = drawn.div_(math.sqrt(shape[1])).to(like.device)
        if drawn.numel() + sum(block.numel() for block in self._kept.values()) <= KEPT_FLOATS:
            self._kept[key] = drawn
        return drawn
