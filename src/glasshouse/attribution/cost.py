"""What a trace will cost, before it starts: floating-point operations, bytes and minutes.

The counts are those of the algorithm (T tokens in all, layer (i, o), P = sum of i*o over tracked layers):
a pass forward and back to the layer outputs 4(P + rest)T, covariances 2T(i^2 + o^2), eigenvectors
9(i^3 + o^3), corrected eigenvalues 2T(i^2 + o^2) + 2PT, scores 2PT + 2PNQ.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from glasshouse.subjects.modules import TrackedModule

GEMM_SHARE = 0.6
"""Share of the measured matrix-product rate that whole stages reach; small layers reach less."""


@dataclass(frozen=True)
class CostPlan:
    """FLOPs per stage, bytes of factors in memory and on disk, bytes of scores, and the rate assumed.

    `rate` is FLOP per second of one large matrix product on this device, measured when the plan was made.
    """

    stages: dict[str, float]
    factor_bytes: int
    score_bytes: int
    rate: float
    rows: int
    queries: int
    tokens: int

    @property
    def seconds(self) -> float:
        """Expected wall time at `GEMM_SHARE` of the measured rate."""
        return sum(self.stages.values()) / (GEMM_SHARE * self.rate)

    def sentence(self) -> str:
        """One line for people."""
        flops = sum(self.stages.values())
        return (
            f"{self.rows:,} rows ({self.tokens:,} tokens) x {self.queries} queries: {_scale(flops)}FLOP, "
            f"factors {_scale(self.factor_bytes)}B, scores {_scale(self.score_bytes)}B, "
            f"about {_duration(self.seconds)} here"
        )


def plan(
    model: nn.Module,
    modules: Sequence[TrackedModule],
    *,
    sizes: Sequence[int],
    queries: int,
    strategy: str = "ekfac",
    factor_rows: int | None = None,
) -> CostPlan:
    """The plan for `sizes` tokens per row; `modules` as described (selected ones count)."""
    shapes = [(m.in_features, m.out_features) for m in modules if m.selected]
    tracked = sum(i * o for i, o in shapes)
    rest = max(0, sum(p.numel() for p in model.parameters()) - tracked)
    n, tokens = len(sizes), sum(sizes)
    fitted = tokens if factor_rows is None else tokens * min(1.0, factor_rows / max(1, n))
    squares = sum(i * i + o * o for i, o in shapes)
    one_pass = 4 * (tracked + rest)
    stages: dict[str, float] = {}
    if strategy in ("kfac", "ekfac"):
        stages["covariance"] = (one_pass + 2 * squares) * fitted
        stages["eigen"] = 9.0 * sum(i**3 + o**3 for i, o in shapes)
    if strategy == "ekfac":
        stages["lambda"] = (one_pass + 2 * squares + 2 * tracked) * fitted
    if strategy == "diagonal":
        stages["lambda"] = (one_pass + 2 * tracked) * fitted
    stages["scores"] = (one_pass + 2 * tracked) * tokens + 2.0 * tracked * n * queries
    factor_bytes = (
        4 * (squares + tracked) if strategy in ("kfac", "ekfac") else 4 * tracked * (strategy == "diagonal")
    )
    rate = measure_rate(next(model.parameters()).device.type)
    return CostPlan(stages, factor_bytes, 4 * n * queries, rate, n, queries, tokens)


def measure_rate(device: str = "cpu", size: int = 768) -> float:
    """FLOP per second of a large float32 matrix product here and now (tens of milliseconds)."""
    import torch

    a = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _scale(x: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if x < 1000:
            return f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} E"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
