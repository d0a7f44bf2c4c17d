"""What a segment of training does to a query, as functions of the eigenvalues of its curvature.

With `c` the sum of learning rates of the segment and s an eigenvalue of the training loss's curvature
(weight decay included), a step multiplies a parameter change by `1 - eta s`, so that

    F_back(s) = exp(-c s)                 what is left at the segment's end of a change made before it
    F_seg(s)  = (1 - exp(-c s)) / s       what a constant push during the segment adds up to; c at s = 0

(Bae et al. 2024, equations 14 to 16). F_seg is at most c and at most 1/s: no damping is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasshouse.attribution.stages.curvature import Factor


def f_back(s: Tensor, c: float) -> Tensor:
    """`exp(-c s)`, float64, in [0, 1] for s >= 0."""
    return torch.exp(-c * s.double())


def f_seg(s: Tensor, c: float) -> Tensor:
    """`(1 - exp(-c s)) / s`, float64, in [0, c]; exact where c s is small or zero."""
    x = c * s.double()
    ratio = torch.where(x > 0, -torch.expm1(-x) / torch.where(x > 0, x, 1.0), 1.0)
    return c * ratio


@dataclass(frozen=True)
class Spectrum:
    """Curvature of one module over one segment of plain or heavy-ball gradient descent.

    `c`: sum of learning rates, momentum included. `scale`: what the training loop's loss is times ours (a
    mean over tokens against a sum). `decay`: weight decay, which acts on every direction alike.
    """

    factor: Factor
    c: float
    scale: float = 1.0
    decay: float = 0.0

    @property
    def eigenvalues(self) -> Tensor:
        """Of the loss the loop descended, weight decay included, [out, in]."""
        assert self.factor.Lambda is not None
        return self.factor.Lambda * self.scale + self.decay

    def back(self, V: Tensor) -> Tensor:
        """The query [..., out, in] before the segment, from the query after it."""
        return self.factor.unrotate(self.factor.rotate(V) * f_back(self.eigenvalues, self.c).to(V.dtype))

    def seg(self, V: Tensor) -> Tensor:
        """What meets a row's mean gradient in the segment, [..., out, in]."""
        return self.factor.unrotate(self.factor.rotate(V) * f_seg(self.eigenvalues, self.c).to(V.dtype))

    def effective_rank(self) -> float:
        """`sum F_seg(s) s`: directions along which the segment converged, between 0 and out * in."""
        return float((1 - f_back(self.eigenvalues, self.c)).sum())

    def largest(self) -> float:
        """Largest eigenvalue of the loop's loss, without weight decay."""
        assert self.factor.Lambda is not None
        return float(self.factor.Lambda.max()) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored."""
        parts = {k: getattr(self.factor, k) for k in ("Lambda", "Qa", "Qs")}
        return {k: v for k, v in parts.items() if v is not None}


@dataclass(frozen=True)
class FactoredSpectrum(Spectrum):
    """The same in Adam's metric: `P = diag(1 / (sqrt(v) + eps))` with `P^(1/2)` taken as `left right^T`.

    Steps multiply a change by `1 - eta (P H + decay)`. A P of rank one keeps `M = P^(1/2) H P^(1/2)` a
    Kronecker product, so `F` acts on M's own eigenvalues and needs no damping. `factor` holds
    `P^(1/2)` times M's eigenvectors.
    """

    left: Tensor = field(default_factory=lambda: torch.ones(0))
    right: Tensor = field(default_factory=lambda: torch.ones(0))

    def back(self, V: Tensor) -> Tensor:
        """`exp(-c (H P + decay)) V = P^(-1/2) exp(-c (M + decay)) P^(1/2) V`."""
        assert self.factor.Qs is not None and self.factor.Qa is not None
        V = self.factor.rotate(V) * f_back(self.eigenvalues, self.c).to(V.dtype)
        Qs, Qa = self.factor.Qs / self.left.square()[:, None], self.factor.Qa / self.right.square()[:, None]
        return Qs @ V @ Qa.T

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored."""
        return {**super().tensors(), "left": self.left, "right": self.right}


@dataclass(frozen=True)
class HybridSpectrum(Spectrum):
    """Adam as in the paper's appendix C: exponentials on the diagonal of `P H`, the inverse from EK-FAC.

    The inverse part is not bounded by the length of training, so it needs the `damping` of EK-FAC.
    """

    P: Tensor = field(default_factory=lambda: torch.ones(0))
    damping: float | str = "auto"

    @property
    def rates(self) -> Tensor:
        """Diagonal of `P H` plus decay, [out, in]."""
        return diagonal(self.factor) * self.scale * self.P + self.decay

    def back(self, V: Tensor) -> Tensor:
        """`exp(-c (diag(H) P + decay)) V`, elementwise."""
        return V * f_back(self.rates, self.c).to(V.dtype)

    def seg(self, V: Tensor) -> Tensor:
        """`(H + decay / P + damping)^-1 (1 - exp(-c (diag(H) P + decay))) V`."""
        assert self.factor.Lambda is not None
        s = self.factor.Lambda * self.scale
        added = self.factor.damping(self.damping) * (self.scale if self.damping == "auto" else 1.0)
        moving = self.P[self.P > 0]
        added += self.decay * (float((1 / moving.double()).mean()) if len(moving) else 0.0)
        V = V * (1 - f_back(self.rates, self.c)).to(V.dtype)
        return self.factor.unrotate(self.factor.rotate(V) / (s + added))

    def effective_rank(self) -> float:
        """`sum 1 - exp(-c s)` over the diagonal's s."""
        return float((1 - f_back(self.rates, self.c)).sum())

    def largest(self) -> float:
        """Largest entry of the diagonal of `P H`."""
        return float((diagonal(self.factor) * self.scale * self.P).max())

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored."""
        return {**super().tensors(), "P": self.P}


def diagonal(factor: Factor) -> Tensor:
    """The diagonal of the curvature in the module's own coordinates: `Qs^2 Lambda (Qa^2)^T`, [out, in]."""
    assert factor.Lambda is not None and factor.Qa is not None and factor.Qs is not None
    return factor.Qs.square() @ factor.Lambda @ factor.Qa.square().T


def rank_one_root(P: Tensor) -> tuple[Tensor, Tensor]:
    """`left` [out] and `right` [in] with `left right^T` near `P^(1/2)`: means of logarithms over P > 0.

    Rows and columns without any P > 0 get the smallest positive one's share, which their zero gradients
    leave without effect.
    """
    moving = P > 0
    if not bool(moving.any()):
        return torch.ones(len(P)), torch.ones(P.shape[1])
    logs = torch.where(moving, 0.5 * P.double().clamp_min(1e-300).log(), 0.0)
    mean = logs.sum() / moving.sum()
    left, right = (
        torch.where(moving.any(k), logs.sum(k) / moving.sum(k).clamp_min(1), logs[moving].min())
        for k in (1, 0)
    )
    return left.exp().float(), (right - mean).exp().float()


def rebuilt(
    name: str, parts: Mapping[str, Tensor], c: float, scale: float, decay: float, damping: float | str
) -> Spectrum:
    """A spectrum from the tensors it stored."""
    factor = Factor(name, parts["Lambda"], parts["Qa"], parts["Qs"])
    if "P" in parts:
        return HybridSpectrum(factor, c, scale, decay, P=parts["P"], damping=damping)
    if "left" in parts:
        return FactoredSpectrum(factor, c, scale, decay, left=parts["left"], right=parts["right"])
    return Spectrum(factor, c, scale, decay)
