"""What is kept of the inputs: a mean and a covariance per class, as low-rank factor plus diagonal.

`x = mean + U xi + sqrt(diagonal) * eta` with standard normal xi [r] and eta [d]. A full covariance is a
factor of rank d without diagonal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import torch_generator

Covariance = Literal["full", "diag"] | int

WIDEST = 2000
"""Inputs wider than this have no full covariance: 3,072 squared floats are 38 MB a class."""
JITTER = 1e-4
"""Added to the diagonal (times its mean) of a covariance that is not positive semidefinite."""
THIN = 4
"""Rows a kept direction needs where a class has fewer rows than the input has numbers."""


class SketchWarning(UserWarning):
    """The sketch holds less, or something else, than was asked for; its notes say the same."""


@dataclass(frozen=True)
class InputMoments:
    """Moments of K classes: `mean` [K, d], `factor` [K, d, r], `diagonal` [K, d], `weights` [K] (sum 1).

    `counts` [K] are the rows behind each class, `names` its labels.
    """

    mean: Tensor
    factor: Tensor
    diagonal: Tensor
    weights: Tensor
    counts: Tensor
    names: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, *, count: int = 1) -> InputMoments:
        """From a mean [d] and a covariance [d, d] that somebody else measured.

        One that is not positive semidefinite gets a jitter of 1e-4 of its mean variance, with a
        SketchWarning; InputError where that does not suffice, or for NaN or a wrong shape.
        """
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}"
            raise InputError(f"the shapes do not fit: {shapes}", fix="give [d] and [d, d]")
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise NumericalError("the moments hold NaN or infinity", fix="measure them again")
        matrix = covariance.double()
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        rounding = 1e-6 * float(values.abs().max())
        if float(values.min()) < -rounding:
            jitter = JITTER * float(matrix.diagonal().mean())
            if float(values.min()) + jitter < -rounding:
                raise InputError(
                    f"its eigenvalue {float(values.min()):.3g} is beyond what a jitter repairs",
                    where="covariance",
                    fix="give a positive semidefinite one",
                )
            warnings.warn(
                f"the covariance is not positive semidefinite (eigenvalue {float(values.min()):.3g}); "
                f"{jitter:.3g} was added to its diagonal",
                SketchWarning,
                stacklevel=2,
            )
            values = values + jitter
        factor = (vectors * values.clamp_min(0).sqrt()).float()
        return cls(
            mean.float()[None], factor[None], torch.zeros(1, len(mean)), torch.ones(1), torch.tensor([count])
        )

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def width(self) -> int:
        """Numbers of one input."""
        return int(self.mean.shape[1])

    @property
    def numbers(self) -> int:
        """Numbers that are stored."""
        kept = self.mean.numel() + self.factor.numel() + len(self)
        return kept + (self.diagonal.numel() if bool(self.diagonal.any()) else 0)

    def covariance(self, k: int = 0) -> Tensor:
        """The covariance [d, d] of class k."""
        return self.factor[k] @ self.factor[k].mT + torch.diag(self.diagonal[k])

    def allotted(self, n: int) -> list[int]:
        """How many of `n` draws each class gets: by weight, largest remainders first, at least one."""
        if n < len(self):
            raise InputError(f"{n} samples for {len(self)} classes", fix="draw at least one a class")
        exact = self.weights.double() * n
        found = exact.floor().clamp_min(1).long()
        order = torch.argsort(exact - exact.floor(), descending=True).tolist()
        for k in (order * n)[: max(0, n - int(found.sum()))]:
            found[k] += 1
        while int(found.sum()) > n:  # classes lifted to one
            found[int(found.argmax())] -= 1
        return [int(x) for x in found]

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """`n` inputs [n, d] and the class of each [n], stratified by weight."""
        generator = torch_generator(seed, "inputs")
        drawn, classes = [], []
        for k, count in enumerate(self.allotted(n)):
            xi = torch.randn(count, self.factor.shape[2], generator=generator)
            x = self.mean[k].cpu() + xi @ self.factor[k].cpu().mT
            if bool(self.diagonal[k].any()):
                x = x + torch.randn(count, self.width, generator=generator) * self.diagonal[k].cpu().sqrt()
            drawn.append(x)
            classes += [k] * count
        return torch.cat(drawn).to(self.mean), torch.tensor(classes, device=self.mean.device)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> InputMoments:
        """The same moments elsewhere or in another number format."""
        parts = (
            part.to(device=device, dtype=dtype)
            for part in (self.mean, self.factor, self.diagonal, self.weights)
        )
        return InputMoments(*parts, self.counts, self.names)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored on disk."""
        return {
            "mean": self.mean, "factor": self.factor, "diagonal": self.diagonal, "weights": self.weights,
            "counts": self.counts,
        }  # fmt: skip


class MomentSum:
    """Running sums of rows [n, d] of one class; few rows are kept as they are, many as a second moment."""

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self._rows: list[Tensor] = []
        self._sum: Tensor | None = None
        self._second: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows [n, d]."""
        self._rows.append(rows.detach().cpu().double())
        self.count += len(rows)
        if sum(len(part) for part in self._rows) > 2 * self.width:
            self._collapse()

    def _collapse(self) -> None:
        if not self._rows:
            return
        rows, self._rows = torch.cat(self._rows), []
        first, second = rows.sum(0), rows.mT @ rows
        self._sum = first if self._sum is None else self._sum + first
        self._second = second if self._second is None else self._second + second

    def finish(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [d], factor [d, r] of the `rank` largest directions (None: all), and the variances left [d].

        Row order changes them by rounding only: rows are sorted first where they were kept.
        """
        if self._sum is not None:
            self._collapse()
            assert self._sum is not None and self._second is not None
            mean = self._sum / self.count
            covariance = self._second / self.count - torch.outer(mean, mean)
            return mean, *_split(covariance.diagonal().clamp_min(0), *_top(covariance, rank))
        rows = torch.cat(self._rows)
        mean = rows.mean(0)
        x = (rows - mean) / math.sqrt(self.count)
        if rank == 0:
            return mean, x.new_zeros(self.width, 0), x.square().sum(0)
        if len(x) >= self.width:
            return mean, *_split(x.square().sum(0), *_top(x.mT @ x, rank))
        values, left = _top(x @ x.mT, min(len(x), self.width if rank is None else rank))
        # The eigenvectors of x^T x from those of x x^T: x^T v / sqrt(lambda).
        keep = values > 1e-12 * values.max().clamp_min(1e-300)
        vectors = x.mT @ (left[:, keep] / values[keep].sqrt())
        return mean, *_split(x.square().sum(0), values[keep], vectors)


def summarise(
    sums: Sequence[MomentSum], names: Sequence[int], cov: Covariance
) -> tuple[InputMoments, list[str]]:
    """Moments of the classes, and notes on what was stored otherwise than asked."""
    width, notes = sums[0].width, []
    if cov == "full" and width > WIDEST:
        raise InputError(
            f"a full covariance of {width:,} inputs is {4 * width * width / 1e6:.0f} MB a class",
            fix='use cov="diag", or a rank such as cov=256',
        )
    found = []
    thin = []
    for name, one in zip(names, sums, strict=True):
        if one.count < 2:
            raise InputError(f"class {name} has {one.count} row(s)", fix="give at least two rows a class")
        rank = None if cov == "full" else 0 if cov == "diag" else min(int(cov), width)
        if cov == "full" and one.count < width:
            thin.append((name, one.count))
            rank = max(1, one.count // THIN)
        found.append(one.finish(rank))
    if thin:
        classes = ", ".join(f"{name} ({count})" for name, count in thin[:4])
        notes.append(
            f"{len(thin)} class(es) have fewer rows than the {width} inputs: {classes}; their covariance is "
            f"a factor of a {THIN}th of their rows plus a diagonal"
        )
    total = sum(one.count for one in sums)
    most = max(factor.shape[1] for _, factor, _ in found)
    padded = [torch.nn.functional.pad(factor, (0, most - factor.shape[1])) for _, factor, _ in found]
    return InputMoments(
        torch.stack([mean for mean, _, _ in found]).float(),
        torch.stack(padded).float(),
        torch.stack([left for _, _, left in found]).float(),
        torch.tensor([one.count / total for one in sums]),
        torch.tensor([one.count for one in sums]),
        tuple(names),
    ), notes


def check_covariance(cov: Covariance) -> None:
    """Raise InputError unless `cov` is "full", "diag" or a rank >= 1."""
    whole = isinstance(cov, int | np.integer) and not isinstance(cov, bool)
    if cov not in ("full", "diag") and not (whole and int(cov) >= 1):
        raise InputError(f"cov is {cov!r}", fix='use "full", "diag" or a rank such as 256')


def _top(matrix: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues (>= 0) and their vectors [d, rank]."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    kept = len(values) if rank is None else min(rank, len(values))
    return values[-kept:].clamp_min(0) if kept else values[:0], vectors[:, len(values) - kept :]


def _split(variance: Tensor, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The factor, and the part of each variance that it leaves."""
    factor = vectors * values.sqrt()
    left = variance - factor.square().sum(1)
    # A complete factor leaves nothing but rounding.
    return factor, torch.where(left > 1e-9 * variance.max().clamp_min(1e-300), left, 0.0)
