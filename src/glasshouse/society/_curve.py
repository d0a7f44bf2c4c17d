"""`Curve`: a table of numbers along one axis with the scenario that made it; saved as npy and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Curve:
    """Columns [N] of numbers, columns [N] of words, and what they came from.

    `x` and `shown` name the columns that `plot` draws; `low`/`high` columns named `<column>_low` and
    `<column>_high` are drawn as intervals. `notes` holds what belongs to the whole curve, as plain JSON.
    """

    kind: str
    scenario: Mapping[str, Any]
    numbers: Mapping[str, NDArray[np.float64]]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    x: str = ""
    shown: tuple[str, ...] = ()
    log: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in [*self.numbers.items(), *self.words.items()]}
        if len(set(lengths.values())) > 1:
            raise InputError(f"columns have different lengths: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values())))

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        if column not in self.numbers:
            raise InputError(f"there is no column {column!r}", fix="use one of: " + ", ".join(self.numbers))
        return self.numbers[column]

    def to_frame(self) -> pd.DataFrame:
        """One row per point: the numbers, then the words."""
        import pandas as pd

        return pd.DataFrame({**self.numbers, **{name: list(said) for name, said in self.words.items()}})

    def plot(self) -> go.Figure:
        """The shown columns along x (plotly)."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name in self.shown:
            error = None
            if f"{name}_low" in self.numbers:
                value = self[name]
                error = {"array": self[f"{name}_high"] - value, "arrayminus": value - self[f"{name}_low"]}
            figure.add_trace(go.Scatter(name=name, x=self[self.x], y=self[name], error_y=error))
        scale = "log" if self.log else "linear"
        return figure.update_layout(
            title=self.kind, xaxis={"title": self.x, "type": scale}, yaxis={"type": scale}
        )

    def save(self, folder: Path | str) -> Path:
        """Write `numbers.npy` [columns, N] and `curve.json` into `folder`."""
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, np.array(list(self.numbers.values()), dtype=np.float64), allow_pickle=False)
        told = {
            "kind": self.kind, "scenario": dict(self.scenario), "columns": list(self.numbers),
            "words": {name: list(said) for name, said in self.words.items()}, "x": self.x,
            "shown": list(self.shown), "log": self.log, "notes": dict(self.notes),
        }  # fmt: skip
        files.write_bytes(Path(folder) / "numbers.npy", buffer.getvalue())
        files.write_json(Path(folder) / "curve.json", told)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Curve:
        """Read what `save` wrote."""
        import numpy as np

        told = files.read_json(Path(folder) / "curve.json")
        table = np.load(Path(folder) / "numbers.npy", allow_pickle=False)
        return cls(
            told["kind"], told["scenario"], dict(zip(told["columns"], table, strict=True)),
            {name: tuple(said) for name, said in told["words"].items()},
            told["x"], tuple(told["shown"]), told["log"], told["notes"],
        )  # fmt: skip
