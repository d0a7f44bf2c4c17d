"""What a trace will cost, said before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import Prepared

GEMM_SHARE = 0.5
"""Share of a large matrix product's rate that whole stages reach; small layers reach less."""


FITTING = ("covariance", "eigen", "lambda", "log", "curvature")
"""The stages of a fit whose operations a method's `cost` counts."""

_KEPT = {
    "factor_bytes": "factors", "sketch_bytes": "sketches", "query_bytes": "queries",
    "checkpoint_bytes": "checkpoints to read",
}  # fmt: skip


def expected_cost(prepared: Prepared) -> str:
    """A sentence: rows, tokens, operations, bytes, minutes on this machine."""
    n, method = len(prepared.queries), prepared.method
    rows, asked = f"{len(prepared.rows):,} rows", f"{n:,} {'query' if n == 1 else 'queries'}"
    if prepared.options.method == "bm25":
        return f"{rows} x {asked} by shared words: no pass through the model"
    parts = method.cost(n)
    lengths = [1] * len(prepared.units) if prepared.options.door.texts else method.train_.sizes
    tokens, scores = sum(lengths), parts["scores"]
    if prepared.scored is not None:
        scores *= sum(lengths[i] for i in prepared.scored) / tokens
    flops = sum(parts.get(stage, 0.0) * _share(prepared, stage) for stage in FITTING) + scores
    kept = [f"{_scale(parts[key])}B of {name}" for key, name in _KEPT.items() if parts.get(key)]
    counted = "" if prepared.options.door.texts else f" ({tokens:,} tokens)"
    layers = f", layers: {len(method.names_)}" if hasattr(method, "names_") else ""
    return (
        f"{rows}{counted} x {asked}{layers}; {', '.join([f'{_scale(flops)}FLOP', *kept])}, "
        f"about {_duration(flops / (GEMM_SHARE * _rate(str(prepared.subject.device))))} on this machine"
    )


def _share(prepared: Prepared, stage: str) -> float:
    """The share of the rows that a stage goes over."""
    if stage not in ("covariance", "lambda") or "factor_rows" not in prepared.options.door.uses:
        return 1.0
    return min(1.0, prepared.options.factor_rows / len(prepared.rows))


def _rate(device: str) -> float:
    """FLOP per second of a large float32 matrix product here and now (tens of milliseconds)."""
    import time

    import torch

    a, best = torch.ones(768, 768, device=device), float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * 768**3 / best


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
