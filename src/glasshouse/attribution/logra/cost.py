"""What a log will cost, from shapes alone: operations of each stage, and bytes before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from glasshouse.attribution.logra.layout import Layout
from glasshouse.attribution.logra.number import BYTES
from glasshouse.runtime.errors import InputError


def cost(
    shapes: Sequence[tuple[int, int]],
    blocks: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    queries: int,
    rank: int,
    init: str,
    curvature: str | None,
    dtype: str,
    unit: str,
) -> dict[str, float]:
    """Multiply-adds counted as two; `shapes` (out, in), `blocks` (r_o, r_i), `sizes` tokens per row.

    Keys: `covariance`, `eigen` (init "pca"), `log`, `lambda` (0), `curvature`, `scores` (FLOPs; forward and
    backward of tracked modules included, attention and LM head not), `score_flops_per_pair`, `sketch_bytes`
    (on disk), `row_bytes`, `factor_bytes`, `query_bytes`.
    """
    T, N = float(sum(sizes)), float(len(sizes))
    P = float(sum(o * i for o, i in shapes))
    squares = float(sum(o * o + i * i for o, i in shapes))
    d = [o * i for o, i in blocks]
    width = float(sum(d))
    project = 2 * sum(min(rank, o) * o + min(rank, i) * i for o, i in shapes)
    outer = 2 * sum(min(rank, o) * min(rank, i) for o, i in shapes) if unit == "row" else 0
    pca = init == "pca"
    curved = {
        None: 0.0,
        # The matrix is symmetric: half of it is enough. Then one Cholesky factor.
        "raw": N * sum(x * x for x in d) + sum(x**3 for x in d) / 3,
        "kfac": T * sum(o * o + i * i for o, i in blocks),
        "ekfac": T * sum(o * o + i * i for o, i in blocks) + 2 * N * sum(o * i * (o + i) for o, i in blocks),
    }[curvature]
    stored = width if unit == "row" else float(sum(o + i for o, i in blocks))
    lines = N if unit == "row" else T
    pair = 2 * width if unit == "row" else 2 * width * T / N
    solving = 2 * queries * (sum(x * x for x in d) if curvature == "raw" else 2 * width * rank)
    factors = {None: 0.0, "raw": sum(x * x for x in d)}.get(
        curvature, sum(o * o + i * i + o * i for o, i in blocks)
    )
    return {
        "covariance": 4 * P * T + T * squares if pca else 0.0,
        "eigen": 9.0 * sum(o**3 + i**3 for o, i in shapes) if pca else 0.0,
        "log": T * (4 * P + project + outer),
        "lambda": 0.0,
        "curvature": curved,
        "scores": queries * (4 * P * T / N + pair * N) + solving,
        "score_flops_per_pair": pair,
        "sketch_bytes": lines * stored * BYTES[dtype],
        "row_bytes": lines * stored * BYTES[dtype] / N,
        "factor_bytes": 4.0 * factors,
        "query_bytes": 4.0 * queries * width,
    }


def needed_bytes(layout: Layout, sizes: Sequence[int], dtype: str) -> int:
    """Bytes of all stored lines."""
    lines = len(sizes) if layout.unit == "row" else sum(sizes)
    return lines * layout.stored * BYTES[dtype]


def refuse_full_disk(folder: Path, needed: float) -> None:
    """Raise InputError where `needed` bytes do not fit on the folder's disk."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"the sketches need {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free",
            where=str(folder),
            fix="lower rank, track fewer modules, or share= sketches among them",
        )  # fmt: skip
