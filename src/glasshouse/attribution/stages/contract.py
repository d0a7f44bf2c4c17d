"""Scores of one module: query gradients [Q, out, in] against pairs (a, g), without storing layer gradients.

`score[q, n] = sum_oi V_q G_n`, `G_n = sum_t g_t a_t^T`. With t tokens a row and Q > 1 queries it is
cheaper to form each G_n once (t o i) and use one product (Q o i) than to contract tokens
with every query (Q t o i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.subjects.capture import Pair

CHUNK_FLOATS = 1 << 23
"""Numbers of layer gradients formed at once."""


@dataclass(frozen=True)
class Query:
    """One module's query gradients: `full` [Q, o, i], or `left` [Q, o, k] times `right` [Q, k, i].

    A `full` may come in two parts, its last column as `bias` [Q, o]: for pairs whose ones are not stored.
    """

    full: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    bias: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """`[Q, out, in]`, multiplied out if low rank, the bias's column included."""
        if self.full is not None:
            return self.full if self.bias is None else torch.cat([self.full, self.bias.unsqueeze(2)], 2)
        assert self.left is not None and self.right is not None
        return self.left @ self.right

    def split(self, ones: bool) -> tuple[Tensor, Tensor | None]:
        """Weight part and bias part, the latter None for pairs without unstored `ones`."""
        if self.full is not None and ones == (self.bias is not None):
            return self.full, self.bias
        V = self.matrix
        return (V[..., :-1], V[..., -1]) if ones else (V, None)

    def parted(self, ones: bool) -> Query:
        """The same query stored in the form that `split(ones)` wants; low rank is left alone."""
        if self.full is None:
            return self
        weight, bias = self.split(ones)
        return Query(weight.contiguous(), bias=None if bias is None else bias.contiguous())

    @property
    def floats(self) -> int:
        """Numbers stored."""
        return sum(t.numel() for t in self._parts if t is not None)

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.full, self.left, self.right, self.bias

    def __len__(self) -> int:
        part = self.full if self.full is not None else self.left
        assert part is not None
        return len(part)

    def at(self, q: int) -> Query:
        """One query alone."""
        return Query(*(None if t is None else t[q : q + 1] for t in self._parts))


class Scratch:
    """One block of memory used again and again: a fresh large block costs as much as filling it."""

    def __init__(self) -> None:
        self._block: Tensor | None = None

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised `shape`, valid until the next call."""
        floats = math.prod(shape)
        if self._block is None or self._block.numel() < floats or self._block.device != like.device:
            self._block = like.new_empty(floats)
        return self._block[:floats].view(shape)


def outer(pair: Pair) -> Tensor:
    """`G_n = sum_t g_t a_t^T`, [B, out, in]."""
    if not pair.ones:
        return torch.bmm(pair.g.mT, pair.a)
    return torch.cat([torch.bmm(pair.g.mT, pair.a), pair.g.sum(1).unsqueeze(2)], 2)


def low_rank(V: Tensor, rank: int | None, *, method: str, seed: int) -> Query:
    """The best ("full") or nearly best ("randomized") rank-k form of V [Q, o, i]; V if k >= min(o, i)."""
    if rank is None or rank >= min(V.shape[1:]):
        return Query(full=V)
    if method == "full":
        U, s, Vh = torch.linalg.svd(V, full_matrices=False)
        return Query(left=(U[..., :rank] * s[:, None, :rank]).contiguous(), right=Vh[:, :rank].contiguous())
    # Halko, Martinsson and Tropp 2011: a Gaussian sketch with oversampling and two power iterations.
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + 8, min(V.shape[1:]))
    sketch = torch.randn(V.shape[2], width, generator=generator).to(V)
    basis = torch.linalg.qr(V @ sketch)[0]
    for _ in range(2):
        basis = torch.linalg.qr(V @ torch.linalg.qr(V.mT @ basis)[0])[0]
    U, s, Vh = torch.linalg.svd(basis.mT @ V, full_matrices=False)
    left = (basis @ U[..., :rank]) * s[:, None, :rank]
    return Query(left=left.contiguous(), right=Vh[:, :rank].contiguous())


def row_scores(query: Query, pair: Pair, scratch: Scratch | None = None) -> Tensor:
    """`[Q, B]`."""
    Q, (B, T, i), o = len(query), pair.a.shape, pair.g.shape[2]
    k = 0 if query.left is None else query.left.shape[2]
    formed = T * o * i + Q * o * i
    if k and Q * T * k * (o + i) < formed:
        return _thin_tokens(query, pair).sum(2)
    if T == 1 or Q == 1:
        return token_scores(query, pair).sum(2)
    scratch = scratch or Scratch()
    weight, bias = query.split(pair.ones)
    V = weight.flatten(1)
    out = V.new_empty(Q, B) if bias is None else bias @ pair.g.sum(1).T
    for part in _chunks(B, o * i):
        g = pair.g[part]
        G = torch.bmm(g.mT, pair.a[part], out=scratch.take(g, len(g), o, i)).flatten(1)
        out[:, part] = V @ G.T if bias is None else out[:, part].addmm_(V, G.T)
    return out


def token_scores(query: Query, pair: Pair) -> Tensor:
    """`[Q, B, T]`: the part of each token's (a_t, g_t)."""
    Q, (B, T, i), o = len(query), pair.a.shape, pair.g.shape[2]
    if query.left is not None and query.left.shape[2] * (o + i) < o * i:
        return _thin_tokens(query, pair)
    V, bias = query.split(pair.ones)
    a, g = pair.a.reshape(B * T, i), pair.g.reshape(B * T, o)
    # The bias sees a = 1, so its part is g alone.
    out = a.new_zeros(Q, B * T) if bias is None else bias @ g.T
    if o > i:  # contract the larger side inside the product, keep the smaller one between
        V, a, g, o = V.transpose(1, 2), g, a, i
    V = V.reshape(Q * o, -1)
    for part in _chunks(B * T, Q * o):
        between = (a[part] @ V.T).view(-1, Q, o)  # (tokens, Q, o)
        out[:, part] += torch.einsum("nqo,no->qn", between, g[part])
    return out.view(Q, B, T)


def squared_norms(pair: Pair, weight: Tensor | None = None, scratch: Scratch | None = None) -> Tensor:
    """`[B]`: `sum_oi weight G_n^2`; the squared norm for weight None."""
    B, T, i = pair.a.shape
    o, ones = pair.g.shape[2], pair.ones
    last = None  # the weight's column for the bias, whose layer gradient is the sum of g
    if weight is not None and ones:
        weight, last = weight[:, :-1], weight[:, -1]
    if T == 1:
        a, g = pair.a[:, 0].square(), pair.g[:, 0].square()
        found = a.sum(1) * g.sum(1) if weight is None else ((g @ weight) * a).sum(1)
        return found + (g if last is None else g * last).sum(1) if ones else found
    if weight is None and T * (i + o) < i * o:
        # |sum_t g a^T|^2 = sum_ts (g_t . g_s)(a_t . a_s): cheaper than forming G for short rows.
        return (torch.bmm(pair.g, pair.g.mT) * (torch.bmm(pair.a, pair.a.mT) + ones)).sum((1, 2))
    out = pair.a.new_empty(B)
    scratch = scratch or Scratch()
    for part in _chunks(B, o * i):
        g = pair.g[part]
        G = torch.bmm(g.mT, pair.a[part], out=scratch.take(g, len(g), o, i)).square_()
        out[part] = (G if weight is None else G.mul_(weight)).sum((1, 2))
    if ones:
        G = pair.g.sum(1).square_()
        out += (G if last is None else G.mul_(last)).sum(1)
    return out


def _thin_tokens(query: Query, pair: Pair) -> Tensor:
    """Token scores through the low-rank factors: `(g L_q) . (a R_q^T)`."""
    assert query.left is not None and query.right is not None
    B, T, i = pair.a.shape
    Q, o, k = query.left.shape
    left = query.left.permute(1, 0, 2).reshape(o, Q * k)
    right = query.right.permute(2, 0, 1).reshape(-1, Q * k)
    a, g = pair.a.reshape(B * T, i), pair.g.reshape(B * T, o) @ left
    a = torch.addmm(right[-1], a, right[:-1]) if pair.ones else a @ right
    return a.mul_(g).view(B, T, Q, k).sum(3).permute(2, 0, 1)


def _chunks(rows: int, floats: int) -> list[slice]:
    size = max(1, CHUNK_FLOATS // max(floats, 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
