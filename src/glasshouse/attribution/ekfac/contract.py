"""Scores of one module: query gradients [Q, out, in] against pairs (a, g), without storing layer gradients.

`score[q, n] = sum_oi V_q G_n`, `G_n = sum_t g_t a_t^T`. With t tokens a row and Q > 1 queries it is
cheaper to form each G_n once (t o i) and use one product (Q o i) than to contract tokens
with every query (Q t o i).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.subjects.capture import Pair

CHUNK_FLOATS = 1 << 23
"""Numbers of layer gradients formed at once."""


@dataclass(frozen=True)
class Query:
    """One module's query gradients: `full` [Q, o, i], or `left` [Q, o, k] times `right` [Q, k, i]."""

    full: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """`[Q, out, in]`, multiplied out if low rank."""
        if self.full is not None:
            return self.full
        assert self.left is not None and self.right is not None
        return self.left @ self.right

    @property
    def floats(self) -> int:
        """Numbers stored."""
        return sum(t.numel() for t in (self.full, self.left, self.right) if t is not None)

    def __len__(self) -> int:
        part = self.full if self.full is not None else self.left
        assert part is not None
        return len(part)

    def at(self, q: int) -> Query:
        """One query alone."""
        return Query(*(None if t is None else t[q : q + 1] for t in (self.full, self.left, self.right)))


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


def row_scores(query: Query, pair: Pair) -> Tensor:
    """`[Q, B]`."""
    Q, (B, T, i), o = len(query), pair.a.shape, pair.g.shape[2]
    k = 0 if query.left is None else query.left.shape[2]
    formed = T * o * i + Q * o * i
    if k and Q * T * k * (o + i) < formed:
        return _thin_tokens(query, pair).sum(2)
    if T == 1 or Q == 1:
        return token_scores(query, pair).sum(2)
    V = query.matrix.flatten(1)
    out = V.new_empty(Q, B)
    for part in _chunks(B, o * i):
        G = torch.bmm(pair.g[part].transpose(1, 2), pair.a[part])
        out[:, part] = V @ G.flatten(1).T
    return out


def token_scores(query: Query, pair: Pair) -> Tensor:
    """`[Q, B, T]`: the part of each token's (a_t, g_t)."""
    Q, (B, T, i), o = len(query), pair.a.shape, pair.g.shape[2]
    if query.left is not None and query.left.shape[2] * (o + i) < o * i:
        return _thin_tokens(query, pair)
    V, a, g = query.matrix, pair.a.reshape(B * T, i), pair.g.reshape(B * T, o)
    if o > i:  # contract the larger side inside the product, keep the smaller one between
        V, a, g, o = V.transpose(1, 2), g, a, i
    V = V.reshape(Q * o, -1)
    out = a.new_empty(Q, B * T)
    for part in _chunks(B * T, Q * o):
        between = (a[part] @ V.T).view(-1, Q, o)  # (tokens, Q, o)
        out[:, part] = torch.einsum("nqo,no->qn", between, g[part])
    return out.view(Q, B, T)


def squared_norms(pair: Pair, weight: Tensor | None = None) -> Tensor:
    """`[B]`: `sum_oi weight G_n^2`; the squared norm for weight None."""
    B, T, i = pair.a.shape
    o = pair.g.shape[2]
    if T == 1:
        a, g = pair.a[:, 0].square(), pair.g[:, 0].square()
        return a.sum(1) * g.sum(1) if weight is None else ((g @ weight) * a).sum(1)
    if weight is None and T * (i + o) < i * o:
        # |sum_t g a^T|^2 = sum_ts (g_t . g_s)(a_t . a_s): cheaper than forming G for short rows.
        return (torch.bmm(pair.g, pair.g.mT) * torch.bmm(pair.a, pair.a.mT)).sum((1, 2))
    out = pair.a.new_empty(B)
    for part in _chunks(B, o * i):
        G = torch.bmm(pair.g[part].transpose(1, 2), pair.a[part]).square_()
        out[part] = (G if weight is None else G.mul_(weight)).sum((1, 2))
    return out


def _thin_tokens(query: Query, pair: Pair) -> Tensor:
    """Token scores through the low-rank factors: `(g L_q) . (a R_q^T)`."""
    assert query.left is not None and query.right is not None
    B, T, i = pair.a.shape
    Q, o, k = query.left.shape
    left = query.left.permute(1, 0, 2).reshape(o, Q * k)
    right = query.right.permute(2, 0, 1).reshape(i, Q * k)
    a, g = pair.a.reshape(B * T, i) @ right, pair.g.reshape(B * T, o) @ left
    return a.mul_(g).view(B, T, Q, k).sum(3).permute(2, 0, 1)


def _chunks(rows: int, floats: int) -> list[slice]:
    size = max(1, CHUNK_FLOATS // max(floats, 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
