"""What a comparison of two networks says: distances by layer, as an object to show, keep and plot."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FORMAT = 1


@dataclass(frozen=True)
class Breakdown:
    """Function-space distances by layer: `values` >= 0 in squared output units (or nats), one per name.

    With layers swapped one at a time they need not add up to `total`, the distance of the whole move.
    `relative` divides by half the mean squared norm of what the layer's own graph puts out (NaN where that
    is unknown). `meta` says how it was made.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    total: float
    relative: tuple[float, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def ranked(self) -> list[tuple[str, float]]:
        """Layers by distance, the farthest first; ties keep the model's order."""
        return sorted(zip(self.names, self.values, strict=True), key=lambda pair: -pair[1])

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: layer, distance, relative."""
        import pandas as pd

        relative: Sequence[float] = self.relative or [float("nan")] * len(self.names)
        return pd.DataFrame({"layer": self.names, "distance": self.values, "relative": relative})

    def plot(self) -> go.Figure:
        """Bars of distance by layer."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Bar(x=list(self.names), y=list(self.values)))
        return figure.update_layout(yaxis_title="function-space distance", xaxis_title="layer moved alone")

    def save(self, path: Path | str) -> Path:
        """Write one JSON file."""
        unknown = [None if x != x else x for x in self.relative]
        return files.write_json(path, {
            "format": FORMAT, "names": self.names, "values": self.values, "total": self.total,
            "relative": unknown, "meta": self.meta,
        })  # fmt: skip

    @classmethod
    def load(cls, path: Path | str) -> Breakdown:
        """Read what `save` wrote."""
        try:
            row = files.read_json(path)
            relative = tuple(float("nan") if x is None else x for x in row["relative"])
            return cls(tuple(row["names"]), tuple(row["values"]), row["total"], relative, row["meta"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"it holds no breakdown ({error})", where=str(path)) from error

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in self.ranked()
        )
        return f"<table><tr><th>layer</th><th>distance</th></tr>{rows}</table>"
