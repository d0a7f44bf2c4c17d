"""How far stated confidence is from accuracy.

>>> import numpy as np
>>> calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0]), bins=1)
0.15
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics._validate import floats


def calibration_error(
    confidence: Any, correct: Any, bins: int = 15, *, mass: Literal["equal", "width"] = "equal"
) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin, in [0, 1].

    `confidence` [N] in [0, 1], `correct` [N] (0 or 1). Bins of "equal" mass hold N / bins rows each, rows in
    order of confidence (Nixon et al. 2019); "width" cuts [0, 1] evenly (Guo et al. 2017), where most bins
    of a confident model are empty. The two differ: say which. Raises InputError for other numbers.
    """
    p, hit = floats(confidence, name="confidence", ndim=1), floats(correct, name="correct", ndim=1)
    if p.size == 0 or p.size != hit.size:
        raise InputError(f"{p.size} confidences and {hit.size} outcomes", fix="give one of each per row")
    if p.min() < -1e-9 or p.max() > 1 + 1e-9 or bins < 1:
        raise InputError("a confidence lies outside [0, 1], or bins < 1", fix="give probabilities")
    if mass == "equal":
        order = np.argsort(p, kind="stable")
        parts = np.array_split(order, min(bins, p.size))
    elif mass == "width":
        cell = np.minimum((p * bins).astype(int), bins - 1)
        parts = [np.flatnonzero(cell == k) for k in range(bins)]
    else:
        raise InputError(f"mass is {mass!r}", fix="use 'equal' or 'width'")
    gaps = [len(part) * abs(float(hit[part].mean() - p[part].mean())) for part in parts if len(part)]
    return float(np.round(sum(gaps) / p.size, 15))
