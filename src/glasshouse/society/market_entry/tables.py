"""A user's own curves: losses measured at several numbers of data points, checked row by row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.market_entry.spectrum import Floats
from glasshouse.statistics import Estimate

FEWEST = 4
NOISE = 3.0
"""A loss may rise between two sizes by this many of its standard errors."""


@dataclass(frozen=True)
class ErrorCurve:
    """Losses [n] at increasing data sizes N [n]; `se` [n] are standard errors, or None where unknown."""

    N: Floats
    error: Floats
    se: Floats | None = None

    @classmethod
    def of(cls, N: Any, error: Any, se: Any | None = None, *, where: str = "curve") -> ErrorCurve:
        """A curve from arrays. Raises InputError naming the row (from 1) that is wrong."""
        sizes, losses = (np.asarray(v, dtype=np.float64) for v in (N, error))
        errors = None if se is None else np.asarray(se, dtype=np.float64)
        if (
            sizes.ndim != 1
            or sizes.shape != losses.shape
            or (errors is not None and errors.shape != sizes.shape)
        ):
            raise InputError("N, error and se have different lengths", where=where)
        for row, (n, loss) in enumerate(zip(sizes, losses, strict=True), start=1):
            if not (n > 0 and math.isfinite(n)):
                raise InputError(
                    f"N is {n:g}", where=f"{where} row {row}", fix="give a positive number of points"
                )
            if not (loss >= 0 and math.isfinite(loss)):
                raise InputError(
                    f"the error is {loss:g}", where=f"{where} row {row}", fix="give a number >= 0"
                )
            if errors is not None and not (errors[row - 1] > 0 and math.isfinite(errors[row - 1])):
                raise InputError(
                    f"se is {errors[row - 1]:g}", where=f"{where} row {row}", fix="give a number > 0"
                )
        order = np.argsort(sizes, kind="stable")
        curve = cls(sizes[order], losses[order], None if errors is None else errors[order])
        curve._check(order + 1, where)
        return curve

    @classmethod
    def from_csv(cls, path: Path | str) -> ErrorCurve:
        """A file with columns N, error and perhaps se. Raises InputError naming file and line."""
        rows = read_csv(path, ("N", "error"), ("se",))
        se = [row["se"] for row in rows] if rows and "se" in rows[0] else None
        return cls.of([r["N"] for r in rows], [r["error"] for r in rows], se, where=str(path))

    @property
    def weights(self) -> Floats:
        """1 / variance [n]: from se, else the same relative error for every row."""
        if self.se is not None:
            return np.asarray(self.se**-2.0)
        return np.asarray(np.maximum(self.error, 1e-300) ** -2.0)

    def fit(self, *, resamples: int = 200, seed: int = 0, level: float = 0.95) -> PowerLaw:
        """Error ~ A N^-nu + E_inf by weighted least squares; intervals from a residual bootstrap."""
        A, nu, E_inf = _fit_power(self.N, self.error, self.weights)
        fitted = A * self.N**-nu + E_inf
        root = np.sqrt(self.weights)
        freedom = max(len(self.N) - 3, 1)
        residuals = (self.error - fitted) * root * math.sqrt(len(self.N) / freedom)
        generator, found = rng(seed, "power law"), np.empty((resamples, 3))
        for i in range(resamples):
            drawn = fitted + generator.choice(residuals, len(residuals)) / root
            found[i] = _fit_power(self.N, np.maximum(drawn, 0.0), self.weights)
        tails = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
        label = f"residual bootstrap, {resamples} resamples"
        estimates = [
            Estimate(value, min(low, value), max(high, value), level, len(self.N), label)
            for value, low, high in zip((A, nu, E_inf), *tails.tolist(), strict=True)
        ]
        return PowerLaw(*estimates)

    def _check(self, rows: Floats, where: str) -> None:
        if len(self.N) < FEWEST:
            raise InputError(f"{len(self.N)} points", where=where, fix=f"give at least {FEWEST}")
        for at in range(1, len(self.N)):
            if self.N[at] == self.N[at - 1]:
                same = self.error[at] == self.error[at - 1]
                said = "is repeated" if same else "has two different errors"
                raise InputError(f"N = {self.N[at]:g} {said}", where=f"{where} row {int(rows[at])}",
                                 fix="give one row per size (average repeats and give se)")  # fmt: skip
            rise = self.error[at] - self.error[at - 1]
            if rise > self._allowed(at):
                raise InputError(
                    f"the error rises from {self.error[at - 1]:.4g} to {self.error[at]:.4g}, beyond noise",
                    where=f"{where} row {int(rows[at])}", fix="check the row, or give se",
                )  # fmt: skip

    def _allowed(self, at: int) -> float:
        if self.se is not None:
            return NOISE * math.hypot(float(self.se[at]), float(self.se[at - 1]))
        return 0.1 * float(np.ptp(self.error))  # unknown noise: a tenth of what the curve falls


@dataclass(frozen=True)
class PowerLaw:
    """error = A N^-nu + E_inf."""

    A: Estimate
    nu: Estimate
    E_inf: Estimate

    def at(self, N: Any) -> Floats:
        """Fitted errors at N [n]."""
        return np.asarray(self.A.value * np.asarray(N, dtype=np.float64) ** -self.nu.value + self.E_inf.value)


def read_csv(path: Path | str, needed: Sequence[str], optional: Sequence[str]) -> list[dict[str, float]]:
    """Numbers of a CSV file with a header. Raises InputError for a missing column or a wrong cell."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    reader = csv.DictReader(text.splitlines())
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(f"has no column {missing[0]!r}", where=str(path), fix="name the columns in line 1")
    kept = [name for name in (*needed, *optional) if name in header]
    return [_numbers(row, kept, f"{path}:{line}") for line, row in enumerate(reader, start=2)]


def _numbers(row: Mapping[str | None, Any], columns: Sequence[str], where: str) -> dict[str, float]:
    cells = {str(name).strip(): cell for name, cell in row.items()}
    found = {}
    for name in columns:
        try:
            found[name] = float(cells.get(name) or "")
        except ValueError:
            raise InputError(f"{name!r} is {cells.get(name)!r}, no number", where=where) from None
    return found


def _fit_power(N: Floats, error: Floats, weights: Floats) -> tuple[float, float, float]:
    """A, nu, E_inf >= 0 by variable projection: for given nu the rest is non-negative least squares."""
    from scipy.optimize import minimize_scalar, nnls

    root = np.sqrt(weights)
    scale = float(np.exp(np.log(N).mean()))

    def solve(nu: float) -> tuple[Floats, float]:
        design = np.stack([(N / scale) ** -nu, np.ones_like(N)], axis=1)
        return nnls(design * root[:, None], error * root)

    grid = np.linspace(0.02, 4.0, 60)
    start = grid[int(np.argmin([solve(float(nu))[1] for nu in grid]))]
    found = minimize_scalar(
        lambda nu: solve(nu)[1], bounds=(max(start - 0.1, 0.01), start + 0.1), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    nu = float(found.x)
    A, E_inf = solve(nu)[0]
    return float(A) * scale**nu, nu, float(E_inf)
