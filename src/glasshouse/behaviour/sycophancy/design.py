"""What a feature matrix must be before it is fitted, and how far its columns can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def checked(x: Any, y: Any, names: Sequence[str] | None) -> tuple[Floats, NDArray[np.int64], tuple[str, ...]]:
    """`x` [N, K] as floats, `y` [N] in {0, 1} and K names.

    Raises InputError naming the place: no rows, another shape, NaN, a y that is neither 0 nor 1, a constant
    column, two equal or opposite columns.
    """
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"X has shape {x.shape}", fix="give at least one row and one feature, [N, K]")
    if y.shape != x.shape[:1]:
        raise InputError(f"y has shape {y.shape} for {len(x)} rows", fix="give one outcome per row")
    named = tuple(names) if names is not None else tuple(f"feature {k}" for k in range(x.shape[1]))
    if len(named) != x.shape[1] or len(set(named)) != len(named):
        raise InputError(f"{len(named)} names for {x.shape[1]} columns", fix="give each column its own name")
    if not np.isfinite(x).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise InputError(
            f"X is NaN or infinite in {int((~np.isfinite(x)).any(1).sum())} rows",
            where=f"row {row}, feature {named[column]!r}",
            fix="drop the pairs that could not be annotated, and say how many",
        )
    wrong = np.flatnonzero(~np.isin(y, (0, 1)))
    if wrong.size:
        raise InputError(
            f"y is {y[wrong[0]]:g}", where=f"row {wrong[0]}", fix="give 1 where A is preferred, else 0"
        )
    _refuse_degenerate(x, named)
    return x, y.astype(np.int64), named


def _refuse_degenerate(x: Floats, names: tuple[str, ...]) -> None:
    constant = np.flatnonzero((x == x[0]).all(0))
    if constant.size:
        raise InputError(
            f"feature {names[constant[0]]!r} is {x[0, constant[0]]:g} in every row", fix="drop the column"
        )
    seen: dict[bytes, int] = {}
    for column in range(x.shape[1]):
        for values in (x[:, column] + 0.0, -x[:, column] + 0.0):  # + 0.0 makes -0.0 equal to 0.0
            twin = seen.get(values.tobytes())
            if twin is not None:
                raise InputError(
                    f"features {names[twin]!r} and {names[column]!r} are equal or opposite in every row",
                    fix="drop one of them: their effects cannot be told apart",
                )
        seen[(x[:, column] + 0.0).tobytes()] = column


def correlations(x: Floats) -> Floats:
    """Uncentred correlations [K, K] of the columns: the model has no intercept."""
    size = np.sqrt((x * x).sum(0))
    return (x.T @ x) / np.outer(size, size)


def vif(x: Floats) -> Floats:
    """Variance inflation [K]: how much wider each interval is, squared, than with uncorrelated columns."""
    with np.errstate(all="ignore"):
        matrix = correlations(x)
        if np.linalg.matrix_rank(matrix) < len(matrix):
            return np.full(len(matrix), np.inf)
        return np.diag(np.linalg.inv(matrix))


def win_rates(x: Any, y: Any, *, names: Sequence[str] | None = None, level: float = 0.95) -> pd.DataFrame:
    """The univariate analysis: how often the reply with more of a feature is preferred (Wilson).

    It credits a feature with everything it is correlated with; shown as a baseline, never as an effect.
    """
    import pandas as pd

    x, y, named = checked(x, y, names)
    rows = []
    for column, name in enumerate(named):
        told = x[:, column] != 0
        found = wilson(int(((x[told, column] > 0) == (y[told] == 1)).sum()), int(told.sum()), level)
        rows.append(
            {"feature": name, "win_rate": found.value, "low": found.low, "high": found.high, "n": found.n}
        )
    return pd.DataFrame(rows)


def majority_rule(x: Any, y: Any, *, train: NDArray[np.bool_]) -> Estimate:
    """Accuracy on the rows outside `train` of voting: each feature votes as its win rate in `train` says.

    Ties count half.
    """
    x, y, _ = checked(x, y, None)
    signs = np.sign(x[train].T @ (y[train] - 0.5))
    votes = np.sign(x[~train] @ signs)
    return t_interval(np.where(votes == 0, 0.5, (votes > 0) == (y[~train] == 1)).astype(float))
