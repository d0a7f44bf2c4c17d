"""Rows by what their label costs; points by how easily any label fits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.ifcomp import baselines
from glasshouse.attribution.ifcomp.results import Complexity, Floats
from glasshouse.runtime import files
from glasshouse.statistics import Estimate, auroc

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class MislabelReport:
    """Scores [n] of each row, higher = more suspicious; `order` [n]: by code length, worst first.

    `preferred` [n] is the label the model prefers.
    """

    ids: tuple[str, ...]
    given: NDArray[np.int64]
    preferred: NDArray[np.int64]
    scores: dict[str, Floats]
    order: NDArray[np.int64]

    def top(self, k: int = 20) -> list[tuple[str, float]]:
        """The k worst rows with their code lengths."""
        return [(self.ids[i], float(self.scores["codelength"][i])) for i in self.order[:k]]

    def aurocs(self, wrong: Any) -> dict[str, Estimate]:
        """How well each score tells rows known to be `wrong` [n] from the others."""
        bad = np.asarray(wrong, dtype=bool)
        return {name: auroc(score[bad], score[~bad]) for name, score in self.scores.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per training row, worst first."""
        import pandas as pd

        columns = {"id": list(self.ids), "given": self.given, "preferred": self.preferred, **self.scores}
        return pd.DataFrame(columns).iloc[self.order].reset_index(drop=True)

    def save(self, path: Path | str) -> Path:
        """Write the frame as Parquet, atomically."""
        with files.atomic_path(Path(path)) as temporary:
            self.to_frame().to_parquet(temporary, index=False)
        return Path(path)

    def plot(self) -> Any:
        """A plotly figure: code lengths, sorted."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(y=self.scores["codelength"][self.order], mode="lines"))
        return figure.update_layout(xaxis_title="row, most suspicious first", yaxis_title="code length")

    def _repr_html_(self) -> str:
        return str(self.to_frame().head(10).to_html(index=False))


@dataclass(frozen=True)
class OODReport:
    """Area under the ROC curve of each score for telling points from outside from those inside."""

    aurocs: dict[str, Estimate]
    scores: dict[str, tuple[Floats, Floats]]
    """(inside, outside) of each score; higher = more foreign."""

    def to_frame(self) -> pd.DataFrame:
        """One row per score."""
        import pandas as pd

        return pd.DataFrame([{"score": name, **e.to_json()} for name, e in self.aurocs.items()])

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))


def mislabels(
    found: Complexity, y: NDArray[np.int64], *, weight: float | Literal["auto"] = "auto"
) -> MislabelReport:
    """The report of labelled points; el2n and loss are read off the same logits."""
    weight = found.balanced_weight(y) if weight == "auto" else weight
    at = found._columns(y)
    rows = np.arange(len(found))
    scores = {
        "codelength": found.codelength(y, weight=weight),
        "loss": found.loss(y),
        "complexity": found.parametric,
        "self-influence": found.norm_of(y),
        "el2n": baselines.el2n(found.logits, at),
    }
    order = np.argsort(-scores["codelength"], kind="stable")
    preferred = found.labels[rows, found.logits.argmax(1)]
    return MislabelReport(found.ids, np.asarray(y), preferred, scores, order)


def out_of_distribution(inside: Complexity, outside: Complexity) -> OODReport:
    """The report of two sets of points."""
    scores = {
        "complexity": (inside.parametric, outside.parametric),
        "msp": (baselines.msp(inside.logits), baselines.msp(outside.logits)),
        "energy": (baselines.energy(inside.logits), baselines.energy(outside.logits)),
    }
    return OODReport({name: auroc(far, near) for name, (near, far) in scores.items()}, scores)
