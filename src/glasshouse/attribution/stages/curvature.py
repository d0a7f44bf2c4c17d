"""The curvature of one module: its eigenbasis, its eigenvalues, and the damped inverse.

`A = E[a a^T]` and `S = E[g g^T]` over tokens, `A = Qa diag(la) Qa^T`, `S = Qs diag(ls) Qs^T`;
`Lambda = E[(Qs^T G_n Qa)^2]` elementwise over *rows* (EK-FAC), or `ls la^T` (K-FAC).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.subjects.capture import Pair

DAMPING_SHARE = 0.1
"""Damping "auto" is this share of the module's mean eigenvalue (Grosse et al. 2023, section 5)."""


@dataclass(frozen=True)
class Factor:
    """Curvature of one module: `Lambda` [out, in] in the basis `Qs` [out, out], `Qa` [in, in] (None: I).

    With `Lambda` None the curvature is the identity and damping does not enter.
    """

    name: str
    Lambda: Tensor | None = None
    Qa: Tensor | None = None
    Qs: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def damping(self, value: float | str) -> float:
        """The absolute damping of this module."""
        if self.Lambda is None:
            return 0.0
        return DAMPING_SHARE * float(self.Lambda.double().mean()) if value == "auto" else float(value)

    def inverse(self, damping: float | str) -> Tensor | None:
        """`1 / (Lambda + damping)` [out, in]; NumericalError where that is not positive."""
        if self.Lambda is None:
            return None
        total = self.Lambda + self.damping(damping)
        if float(total.min()) <= 0:
            zeros = int((total <= 0).sum())
            raise NumericalError(
                f"{zeros} of {total.numel()} damped eigenvalues are not positive",
                where=f"module {self.name!r}",
                fix='use damping="auto" or a positive number',
            )
        return total.reciprocal_()

    def effective_rank(self, damping: float | str) -> float:
        """`sum Lambda / (Lambda + damping)`: how many directions the damping leaves alone."""
        if self.Lambda is None:
            return 0.0
        total = self.Lambda.double()
        return float((total / (total + self.damping(damping)).clamp_min(1e-300)).sum())

    def rotate(self, V: Tensor) -> Tensor:
        """`Qs^T V Qa` for V [..., out, in]."""
        V = V if self.Qa is None else V @ self.Qa
        return V if self.Qs is None else self.Qs.T @ V

    def unrotate(self, V: Tensor) -> Tensor:
        """`Qs V Qa^T`, the inverse of `rotate`."""
        V = V if self.Qa is None else V @ self.Qa.T
        return V if self.Qs is None else self.Qs @ V

    def rotate_pair(self, pair: Pair) -> Pair:
        """`a Qa` and `g Qs`; ones that were not stored become part of `a Qa`."""
        if self.Qa is None or self.Qs is None:
            return pair
        if not pair.ones:
            return Pair(pair.a @ self.Qa, pair.g @ self.Qs)
        a = torch.addmm(self.Qa[-1], pair.a.flatten(0, 1), self.Qa[:-1])
        return Pair(a.unflatten(0, pair.a.shape[:2]), pair.g @ self.Qs)

    def precondition(self, V: Tensor, damping: float | str) -> Tensor:
        """`(G + damping)^-1 V` for V [..., out, in]."""
        inverse = self.inverse(damping)
        return V if inverse is None else self.unrotate(self.rotate(V).mul_(inverse))


def eigenbasis(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending, clamped at 0) and eigenvectors of a covariance, solved in float64.

    Float32 would give negative eigenvalues of the size of the smallest true ones.
    """
    double = matrix.double()
    try:
        values, vectors = torch.linalg.eigh((double + double.T) / 2)
    except RuntimeError as error:
        raise NumericalError(f"its eigendecomposition failed ({error})", where=where) from error
    # Contiguous, so that factors read back from disk go through the very same kernels.
    return values.clamp_min(0).float(), vectors.float().contiguous()


def check_damping(value: float | str) -> None:
    """Raise InputError unless damping is "auto" or a finite number >= 0."""
    if value == "auto":
        return
    if isinstance(value, str) or not torch.isfinite(torch.tensor(float(value))) or float(value) < 0:
        raise InputError(f"damping is {value!r}", fix='use "auto" or a number >= 0')
