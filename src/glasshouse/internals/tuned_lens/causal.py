"""Causal basis extraction: the directions that a layer's lens prediction depends on most.

energy(v) = E KL(lens(h) || lens(h with v mean-ablated)). Directions v_1 .. v_k are found greedily, each of
the largest energy in the orthogonal complement of the earlier ones (Belrose et al. 2023, algorithm 1). Where
the stream is not white, the energy of a direction grows with the stream's variance along it: what is found is
the direction that matters given how the stream varies, not the row of W that reads it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.kernel import block_elements
from glasshouse.internals.tuned_lens.lens import Lens, TunedLens
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import track
from glasshouse.runtime.seeds import torch_generator

TOLERANCE = 1e-4
"""Relative gain in energy below which an ascent stops."""


class CausalBasis(NamedTuple):
    """`vectors` fp32 [d, k], orthonormal columns sorted by `energies` [k] (nats)."""

    vectors: Tensor
    energies: Tensor


def causal_basis(
    lens: Lens,
    hiddens: Tensor,
    layer: int,
    k: int,
    *,
    mode: Literal["mean", "zero"] = "mean",
    starts: int = 4,
    max_iter: int = 100,
    seed: int = 0,
) -> CausalBasis:
    """The first k causal directions of the lens at `layer`, from states `hiddens` [n, d] that enter it.

    Each ascent is L-BFGS (strong Wolfe, at most `max_iter` evaluations) on a free vector that is projected
    and normalised inside the closure. `starts` of them are tried and the best is kept, because single ones
    end in local optima: the j-th right singular vector of M = W (I + A) (W with the norm's gain), the first
    one of M in what is left, then random ones. Raises InputError for k > d or fewer than two states.
    """
    h = _states(lens, hiddens, layer)
    if not 1 <= k <= h.shape[1] or starts < 1:
        raise InputError(f"k is {k}, starts {starts}", fix=f"give 1 <= k <= {h.shape[1]} and starts >= 1")
    energy = _Energy(lens, h, layer, mode)
    svd, reader = _singular(lens, layer)
    generator = torch_generator(seed, "causal basis", layer)
    basis, energies = h.new_zeros(h.shape[1], 0), []
    for j in track(range(k), f"causal basis, layer {layer}"):
        left = torch.eye(h.shape[1], device=h.device) - basis @ basis.T
        inside = torch.linalg.eigh(left @ reader @ left).eigenvectors[:, -1]
        drawn = torch.randn(max(starts - 2, 0), h.shape[1], generator=generator).to(h)
        tries = [svd[:, j], inside, *drawn][:starts]
        found = [_ascend(energy, v, basis, max_iter) for v in tries if (left @ v).norm() > 1e-3]
        value, best = max(found or [_ascend(energy, inside, basis, max_iter)], key=lambda pair: pair[0])
        basis = torch.cat([basis, best[:, None]], 1)
        energies.append(value)
    order = torch.tensor(energies).argsort(descending=True, stable=True)
    return CausalBasis(basis[:, order.to(basis.device)], torch.tensor(energies)[order])


def energies(lens: Lens, hiddens: Tensor, layer: int, vectors: Tensor, *, mode: str = "mean") -> Tensor:
    """Energy of each column of `vectors` [d, k] alone, in nats [k]."""
    energy = _Energy(lens, _states(lens, hiddens, layer), layer, mode)
    with torch.no_grad():
        return torch.stack([energy(v / v.norm()) for v in vectors.to(energy.h).T]).cpu()


class _Energy:
    """energy(v) on fixed states, block by block; differentiable in v [d] of norm 1."""

    def __init__(self, lens: Lens, h: Tensor, layer: int, mode: str) -> None:
        if mode not in ("mean", "zero"):
            raise InputError(f"mode is {mode!r}", fix="use 'mean' or 'zero'")
        self.lens, self.h, self.layer = lens, h, layer
        self.centre = h.mean(0) if mode == "mean" else torch.zeros_like(h[0])
        width = max(1, 4 * block_elements(h.device) // lens.head_.vocab_size)
        self.blocks = [slice(s, s + width) for s in range(0, len(h), width)]
        with torch.no_grad():
            self.before = [lens.logits(h[at], layer).log_softmax(-1) for at in self.blocks[:1]]

    def __call__(self, v: Tensor) -> Tensor:
        total = self.h.new_zeros(())
        for index, at in enumerate(self.blocks):
            total = total + self._block(index, at, v)
        return total / len(self.h)

    def gradient(self, v: Tensor) -> tuple[float, Tensor]:
        """The energy and its gradient [d]; the graph of one block at a time."""
        value, grad = 0.0, torch.zeros_like(v)
        for index, at in enumerate(self.blocks):
            leaf = v.detach().requires_grad_()
            part = self._block(index, at, leaf) / len(self.h)
            grad += torch.autograd.grad(part, leaf)[0]
            value += float(part.detach())
        return value, grad

    def _block(self, index: int, at: slice, v: Tensor) -> Tensor:
        h = self.h[at]
        if index < len(self.before):
            before = self.before[index]
        else:
            with torch.no_grad():
                before = self.lens.logits(h, self.layer).log_softmax(-1)
        after = self.lens.logits(h + ((self.centre - h) @ v)[:, None] * v, self.layer).log_softmax(-1)
        return measures.kl(before, after).sum()


def _ascend(energy: _Energy, start: Tensor, basis: Tensor, max_iter: int) -> tuple[float, Tensor]:
    """The largest energy reached from a start, and where: a unit vector orthogonal to the basis."""
    free = _inside(start, basis).clone().requires_grad_()
    scale = max(energy.gradient(free.detach())[0], 1e-12)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=max_iter, max_eval=max_iter, tolerance_change=TOLERANCE, tolerance_grad=1e-7,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        with torch.enable_grad():
            v = _inside(free, basis)
        value, grad = energy.gradient(v.detach())
        (free.grad,) = torch.autograd.grad(v, free, -grad / scale)
        return -value / scale

    optimizer.step(closure)
    with torch.no_grad():
        best = _inside(free, basis)
        return float(energy(best)), best.detach()


def _inside(v: Tensor, basis: Tensor) -> Tensor:
    v = v - basis @ (basis.T @ v)
    return v / v.norm().clamp_min(1e-12)


def _singular(lens: Lens, layer: int) -> tuple[Tensor, Tensor]:
    """Right singular vectors of M = W diag(gain) (I + A), columns by falling singular value, and M'M."""
    head = lens.head_
    gram = head.weight.float().T @ head.weight.float()  # d' x d'
    gain = getattr(head.norm, "weight", None)
    if head.after is not None:
        down = head.after.get_parameter("weight").float()
        gram = down.T @ gram @ down
    if gain is not None:
        gram = gain[:, None] * gram * gain
    moved = torch.eye(len(gram), device=gram.device)
    if isinstance(lens, TunedLens):
        moved = moved + lens.weight_[layer]
    gram = moved.T @ gram @ moved
    return torch.linalg.eigh(gram).eigenvectors.flip(1), gram


def _states(lens: Lens, hiddens: Tensor, layer: int) -> Tensor:
    lens._check(hiddens, layer)
    h = hiddens.flatten(0, -2).to(lens.head_.device, torch.float32)
    if len(h) < 2:
        raise InputError(f"{len(h)} states have no mean to ablate to", fix="give at least two tokens")
    return h
