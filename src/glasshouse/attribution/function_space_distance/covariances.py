"""Values as linear forms of the input's noise, covariances of pairs of values, and their small algebra.

None stands for zero everywhere: the change is zero at the input and in layers that did not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Columns = Callable[[Tensor], Tensor]
"""A linear map on rows [..., k_in]."""


@dataclass
class Form:
    """A value as a linear form: factors [K, k, c] of a and d, and unmixed standard deviations [K, k].

    None stands for zero. The unmixed noise has one variable per number of the input; once mixed it becomes
    the columns `[..., r:]` of the factors.
    """

    Fa: Tensor
    Fd: Tensor | None
    Sa: Tensor | None
    Sd: Tensor | None


@dataclass
class Block:
    """Covariances [K, k_v, k_w] of two values: (a, a), (a, d), (d, a), (d, d). None stands for zero."""

    aa: Tensor
    ad: Tensor | None
    da: Tensor | None
    dd: Tensor | None

    @property
    def mT(self) -> Block:
        """The same with the two values exchanged."""
        return Block(self.aa.mT, transposed(self.da), transposed(self.ad), transposed(self.dd))


def trace_through(A: Columns, X: Tensor) -> Tensor:
    """`sum_i (X A^T)_ii` [K] for X [K, k_out, k_in]."""
    if X.shape[-2] <= X.shape[-1]:
        return A(X).diagonal(dim1=-2, dim2=-1).sum(-1)
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    return (X * A(eye).mT).sum((-2, -1))


def columns(A: Columns, x: Tensor) -> Tensor:
    """`A x` for x [K, k_in, c]: the map works on rows."""
    return A(x.mT).mT


def product(F: Tensor, S: Tensor | None, G: Tensor, T: Tensor | None) -> Tensor:
    """The covariance of two forms over the same noise (see `Form`)."""
    r = min(F.shape[-1], G.shape[-1])
    found = F[..., :r] @ G[..., :r].mT
    if F.shape[-1] > r:  # the left one is mixed, the right one is not
        return found if T is None else found + F[..., r:] * T.unsqueeze(-2)
    if G.shape[-1] > r:
        return found if S is None else found + S.unsqueeze(-1) * G[..., r:].mT
    return found if S is None or T is None else found + torch.diag_embed(S * T)


def on_diagonal(matrix: Tensor | None, diagonal: Tensor | None) -> Tensor | None:
    """The matrix with something added to its diagonal."""
    if matrix is None or diagonal is None:
        return matrix
    return matrix + torch.diag_embed(diagonal)


def plus(b: Block, c: Block) -> Block:
    """The sum of two blocks."""
    aa, ad, da, dd = (added(getattr(b, n), getattr(c, n)) for n in ("aa", "ad", "da", "dd"))
    assert aa is not None
    return Block(aa, ad, da, dd)


def added(*parts: Tensor | float | bool | None) -> Tensor | None:
    """The sum of the parts that are there (None and False stand for zero)."""
    found: Tensor | None = None
    for part in parts:
        if isinstance(part, Tensor):
            found = part if found is None else found + part
    return found


def times(gain: Tensor, x: Tensor | None) -> Tensor | None:
    """`gain * x`."""
    return None if x is None else gain * x


def mapped(A: Columns, x: Tensor | None) -> Tensor | None:
    """`A x` for rows x."""
    return None if x is None else A(x)


def transposed(x: Tensor | None) -> Tensor | None:
    """The last two axes exchanged."""
    return None if x is None else x.mT


def dense(x: Tensor | None, like: Tensor) -> Tensor:
    """x, or zeros like `like`."""
    return torch.zeros_like(like) if x is None else x
