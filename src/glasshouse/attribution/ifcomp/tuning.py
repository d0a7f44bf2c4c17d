"""Choosing alpha and the output temperature on held-out points, and what calibration is after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.ifcomp.results import Complexity, Floats, Space
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.calibration import calibration_error

Metric = Literal["nll", "ece"]
BINS = 15
TEMPERATURES = tuple(2 ** (k / 4) for k in range(-4, 9))
"""Output temperatures from a half to four, where they are tuned."""
GRID = tuple(10 ** (k / 8) for k in range(-16, 17))
"""Multiples of the alpha that moves the logits of the median point by one nat: four decades."""


@dataclass(frozen=True)
class Tuned:
    """`alpha` and output `temperature`, the metric there and of the model as it stands, and which points."""

    alpha: float
    temperature: float
    value: float
    raw: float
    metric: str
    data: str

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)


def alphas_for(found: Complexity) -> list[float]:
    """0 and `GRID`, in the unit of these points."""
    spread = float(np.median(np.ptp(found.norms, axis=1)))
    if spread <= 0:
        raise InputError("the labels of most points have equal norms", fix="raise the temperature")
    return [0.0, *(found.n_train / spread * step for step in GRID)]


def search(
    found: Complexity,
    y: NDArray[np.int64],
    alphas: Sequence[float],
    temperatures: Sequence[float],
    metric: Metric,
    space: Space,
    data: str,
) -> Tuned:
    """The alpha and the output temperature with the least metric; of equal ones the first."""
    at = found._columns(y)
    grid = [(a, t) for t in temperatures for a in alphas]
    scores = [_score(found.hindsight(a, space, temperature=t), at, metric) for a, t in grid]
    best = int(np.argmin(scores))
    alpha, temperature = grid[best]
    return Tuned(
        float(alpha), float(temperature), scores[best], _score(found.proba, at, metric), metric, data
    )


def calibration(found: Complexity, p: Floats, y: NDArray[np.int64], bins: int = BINS) -> dict[str, float]:
    """Keys ece (equal mass), nll in nats and accuracy: `raw_*` of the model as it stands, `*` of `p`."""
    at = found._columns(y)
    told = {}
    for name, probabilities in (("raw_", found.proba), ("", p)):
        told[f"{name}ece"] = ece(probabilities, at, bins)
        told[f"{name}nll"] = _score(probabilities, at, "nll")
        told[f"{name}accuracy"] = float((probabilities.argmax(1) == at).mean())
    return told


def ece(p: Floats, at: NDArray[np.int64], bins: int = BINS) -> float:
    """Calibration error of the preferred label, bins of equal mass."""
    return calibration_error(p.max(1).clip(0, 1), p.argmax(1) == at, bins)


def _score(p: Floats, at: NDArray[np.int64], metric: Metric) -> float:
    if metric == "ece":
        return ece(p, at)
    own = np.take_along_axis(p, at[:, None], axis=1)[:, 0]
    return float(-np.log(own.clip(min=1e-300)).mean())
