"""Edits of the residual stream: a subspace taken out at a layer, or a block's contribution taken away.

With P the projection on the columns of A and mu the mean state: zero: h - P h; mean: h + P (mu - h);
resample: h + P (h_pi - h), pi a permutation without fixed points (Belrose et al. 2023, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.head import check_width
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import torch_generator
from glasshouse.subjects import Patch, Site

Mode = Literal["zero", "mean", "resample"]
MODES = ("zero", "mean", "resample")


def projection(A: Tensor) -> Tensor:
    """P = A (A'A)^-1 A', fp32 [d, d], of the columns of A [d, k] or [d]. Raises InputError where rank < k."""
    columns = (A[:, None] if A.ndim == 1 else A).detach().float()
    q, r = torch.linalg.qr(columns)
    size = r.diagonal().abs()
    if columns.shape[1] > columns.shape[0] or bool((size <= 1e-6 * size.max()).any()) or not size.max():
        raise InputError(f"A {tuple(A.shape)} has dependent columns", fix="give independent directions")
    return q @ q.T


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """A uniformly drawn permutation of n without fixed points, by rejection. Raises InputError for n < 2."""
    if n < 2:
        raise InputError("one state cannot be swapped with another", fix="give at least two tokens")
    while True:
        drawn = torch.randperm(n, generator=generator)
        if not bool((drawn == torch.arange(n)).any()):
            return drawn


def ablated(h: Tensor, P: Tensor, mode: Mode, *, mean: Tensor | None = None, seed: int = 0) -> Tensor:
    """States h [n, d] with the subspace of P ablated; `mean` [d] is by default that of h."""
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}", fix=f"use one of {', '.join(MODES)}")
    x, P = h.float(), P.to(h.device)
    if mode == "zero":
        other = torch.zeros_like(x)
    elif mode == "mean":
        other = (x.mean(0) if mean is None else mean.to(x)).expand_as(x)
    else:
        other = x[derangement(len(x), torch_generator(seed, "derangement", len(x))).to(x.device)]
    return (x + (other - x) @ P).to(h.dtype)


@contextmanager
def subspace_ablation(
    subject: Any,
    layer: int,
    A: Tensor,
    mode: Mode = "mean",
    *,
    mean: Tensor | None = None,
    positions: Any = None,
    seed: int = 0,
) -> Iterator[Any]:
    """Inside the block, any pass of `subject` has the columns of A [d, k] ablated at `resid_pre.layer`.

    Mean and permutation are over all real tokens of a batch (or over `positions`, as in `Patch`). Raises
    InputError for dependent columns or a width that does not fit.
    """
    check_width(A.T if A.ndim == 2 else A, subject.d_model, "A")
    P = projection(A)

    def edit(x: Tensor) -> Tensor:
        return ablated(x.flatten(0, -2), P, mode, mean=mean, seed=seed).reshape(x.shape)

    _check_mode(mode)
    with subject.patched([Patch(Site("resid_pre", layer), "fn", edit, positions=positions)]):
        yield subject


@contextmanager
def layer_ablation(subject: Any, layer: int, mode: Mode = "zero", *, seed: int = 0) -> Iterator[Any]:
    """Inside the block, what `layer` adds to the stream is zero, its batch mean, or another token's."""
    _check_mode(mode)
    seen: dict[str, Tensor] = {}

    def remember(x: Tensor) -> Tensor:
        seen["in"] = x
        return x

    def edit(x: Tensor) -> Tensor:
        entered = seen["in"].flatten(0, -2).float()
        added = x.flatten(0, -2).float() - entered
        changed = ablated(added, torch.eye(x.shape[-1]), mode, seed=seed)
        return (entered + changed).reshape(x.shape).to(x.dtype)

    before, after = Site("resid_pre", layer), Site("resid_post", layer)
    with subject.patched([Patch(before, "fn", remember), Patch(after, "fn", edit)]):
        yield subject


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}", fix=f"use one of {', '.join(MODES)}")
