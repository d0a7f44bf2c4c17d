"""What a fit and a score pass will cost: floating-point operations and bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence


def cost(
    shapes: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    queries: int,
    *,
    rank: int | None = None,
    strategy: str = "ekfac",
) -> dict[str, float]:
    """Multiply-adds counted as two; `shapes` are (out, in) of tracked modules, `sizes` tokens per row.

    Keys: `covariance`, `eigen`, `lambda`, `scores` (FLOPs; forward and backward of tracked modules included,
    attention and LM head not), `factor_bytes`, `query_bytes`.
    """
    T, N = float(sum(sizes)), float(len(sizes))
    P = float(sum(o * i for o, i in shapes))
    squares = float(sum(o * o + i * i for o, i in shapes))
    passes = 4 * P * T
    has_basis, has_lambda = strategy in ("kfac", "ekfac"), strategy in ("diagonal", "ekfac")
    per_row = sum(min(T / N * (o * o + i * i), float(o * i * (o + i))) for o, i in shapes)
    rotation = 2 * N * per_row if strategy == "ekfac" else 0.0
    outer = 0.0 if max(sizes) == 1 else 2 * P * T
    thin = [2 * T * queries * (rank or 0) * (o + i) for o, i in shapes]
    full = [outer / P * o * i + 2 * o * i * N * queries for o, i in shapes]
    thick = [
        f if rank is None or rank >= min(s) else min(t, f) for t, f, s in zip(thin, full, shapes, strict=True)
    ]
    t = T / N
    there = [2 * queries * min(t * (o * o + i * i), float(o * i * (o + i))) for o, i in shapes]
    back = [2 * min(T * (o * o + i * i), float(queries * o * i * (o + i))) for o, i in shapes]
    preconditioning = sum(there) + sum(back) if has_basis else 0.0
    stored = [o * i if rank is None or rank >= min(o, i) else rank * (o + i) for o, i in shapes]
    return {
        # x^T x is symmetric, so half of it is enough.
        "covariance": passes + T * squares if has_basis else 0.0,
        "eigen": 9.0 * sum(o**3 + i**3 for o, i in shapes) if has_basis else 0.0,
        "lambda": passes + rotation + outer + 2 * P * N if has_lambda else 0.0,
        "scores": passes * (N + queries) / N + preconditioning + sum(thick),
        "factor_bytes": 4.0 * (squares * has_basis + P * (strategy != "identity")),
        "query_bytes": 4.0 * queries * sum(stored),
    }
