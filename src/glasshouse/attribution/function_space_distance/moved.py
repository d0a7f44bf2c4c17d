"""How far did my fine-tune move? Two checkpoints of a language model, compared block by block and whole."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glasshouse.attribution.function_space_distance import blocks
from glasshouse.attribution.function_space_distance.fallback import outputs_of
from glasshouse.attribution.function_space_distance.metrics import output_distance
from glasshouse.attribution.function_space_distance.results import FORMAT, Breakdown
from glasshouse.attribution.function_space_distance.sketch import FSDSketch
from glasshouse.attribution.stages import guards
from glasshouse.attribution.units import TokenUnits
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, bootstrap

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Moved:
    """`blocks`: distances of the MLP blocks (`relative` to the size of their outputs).

    `kl`: mean KL(before || after) per labelled token in nats, attention and all, measured on the rows
    themselves; the interval is over rows.
    """

    blocks: Breakdown
    kl: Estimate
    meta: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per block: layer, distance, relative."""
        return self.blocks.to_frame()

    def plot(self) -> go.Figure:
        """Bars of the blocks' relative distances."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Bar(x=list(self.blocks.names), y=list(self.blocks.relative)))
        return figure.update_layout(yaxis_title="distance over half the squared output of the block")

    def save(self, path: Path | str) -> Path:
        """Write one JSON file."""
        shown = {"names": self.blocks.names, "values": self.blocks.values, "total": self.blocks.total,
                 "relative": self.blocks.relative, "meta": self.blocks.meta}  # fmt: skip
        row = {"format": FORMAT, "blocks": shown, "kl": self.kl.to_json(), "meta": self.meta}
        return files.write_json(path, row)

    @classmethod
    def load(cls, path: Path | str) -> Moved:
        """Read what `save` wrote."""
        try:
            row = files.read_json(path)
            b = row["blocks"]
            parts = tuple(tuple(b[name]) for name in ("names", "values"))
            found = Breakdown(*parts, b["total"], tuple(b["relative"]), b["meta"])
            return cls(found, Estimate.from_json(row["kl"]), row["meta"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"it holds no comparison ({error})", where=str(path)) from error

    def _repr_html_(self) -> str:
        return f"<p>KL per token {html.escape(str(self.kl))}</p>{self.blocks._repr_html_()}"


def how_far(before: Any, after: Any, data: Any, *, rank: int = 64, batch_tokens: int = 2048) -> Moved:
    """Compare two checkpoints of one language model (Subjects or transformers models) on rows of text.

    `data` are token rows, records or texts; `rank` is that of the covariance kept per block. Raises
    InputError for models that differ in architecture, naming the first difference.
    """
    sketch = FSDSketch(cov=rank, approx=True, batch_rows=batch_tokens).fit(before, data)
    found = sketch.breakdown(after)
    units = blocks.token_units(before, data)
    hashes = {"before": sketch.model_hash_, "after": guards.model_hash(after)}
    return Moved(found, _kl(before, after, units), {**hashes, "rank": rank, "tokens": sketch.count_})


def _kl(before: Any, after: Any, units: TokenUnits) -> Estimate:
    models = [guards.unwrap(subject)[0] for subject in (before, after)]
    values = []
    with torch.no_grad():
        for i in range(len(units)):
            batch = units.batch([i])
            f0, f1 = (outputs_of(model, batch.to(next(model.parameters()).device)) for model in models)
            values.append(float(output_distance(f0, f1.to(f0), "kl").mean()))
    return bootstrap(values)
