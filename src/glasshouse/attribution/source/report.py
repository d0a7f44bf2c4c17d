"""The schedule of a run as a frame, and what a fit and a score pass will cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasshouse.attribution.ekfac.cost import cost as one_pass
from glasshouse.attribution.units import Units

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.attribution.source.method import SOURCE


def schedule(method: SOURCE, *, per_module: bool) -> pd.DataFrame:
    """One line a segment, or a segment and module; ranks are missing before `fit`."""
    import pandas as pd

    sizes = {m.name: m.out_features * m.in_features for m in method.tracked_}
    lines: list[dict[str, Any]] = []
    for i, segment in enumerate(method.segments_):
        steps = [point.step for k, point in enumerate(method.checkpoints) if k in segment.checkpoints]
        line = {
            "segment": i, "stage": segment.stage, "first_step": segment.first, "last_step": segment.last,
            "checkpoints": ", ".join(map(str, steps)), "rate_sum": segment.rate_sum, "c": segment.c,
        }  # fmt: skip
        spectra = method.spectra_[i] if hasattr(method, "spectra_") else {}
        ranks = {name: spectrum.effective_rank() for name, spectrum in spectra.items()}
        if per_module:
            lines += [
                {**line, "module": n, "effective_rank": ranks.get(n), "directions": sizes[n]}
                for n in method.names_
            ]
            continue
        total = sum(ranks.values()) if ranks else None
        lines.append({**line, "effective_rank": total, "directions": sum(sizes.values())})
    return pd.DataFrame(lines)


def cost(method: SOURCE, queries: int, rows: Units | None) -> dict[str, float]:
    """C times EK-FAC's passes, one eigenproblem a segment, the factors of all segments."""
    shapes = [(m.out_features, m.in_features) for m in method.tracked_]
    total: dict[str, float] = {}
    for segment in method.segments_:
        own = method.stages_[segment.stage] if rows is None else rows
        C = len(segment.checkpoints)
        for key, value in one_pass(shapes, own.sizes, queries, rank=method.query_rank).items():
            times = C if key in ("covariance", "lambda", "scores") else 1
            total[key] = total.get(key, 0.0) + times * value
    total["query_bytes"] /= len(method.segments_)  # one segment's queries at a time
    weights = sum(p.numel() * p.element_size() for p in method.model_.parameters())
    return total | {"checkpoint_bytes": float(len(list(method.checkpoints)) * weights)}
