"""Mislabelled rows: who finds them first, when rows are inspected in the order of a score?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.leave_some_out import read_about
from glasshouse.attribution.evaluate.retraining import ranking
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.1, 0.2)


@dataclass(frozen=True)
class MislabelCurves:
    """`scores[name]` [N], high = suspect, and `wrong` [N] bool: which rows carry a wrong label."""

    wrong: NDArray[np.bool_]
    scores: dict[str, NDArray[np.float64]]

    def auroc(self, name: str) -> Estimate:
        """Probability that a wrong row scores above a right one."""
        from glasshouse.statistics import auroc

        return auroc(self._of(name)[self.wrong], self._of(name)[~self.wrong])

    def found(self, name: str, share: float) -> Estimate:
        """Share of wrong rows among the first `share` of all rows (Wilson interval over wrong rows).

        No method can find more than `share / wrong.mean()` of them; `ceiling(share)` says so.
        """
        from glasshouse.statistics import wilson

        first = ranking(self._of(name))[: round(share * len(self.wrong))]
        return wilson(int(self.wrong[first].sum()), int(self.wrong.sum()))

    def ceiling(self, share: float) -> float:
        """What a perfect order finds in the first `share` of rows."""
        return min(1.0, round(share * len(self.wrong)) / int(self.wrong.sum()))

    def curve(self, name: str) -> NDArray[np.float64]:
        """Share of wrong rows found after inspecting 1, 2, ..., N rows, `[N]`."""
        return np.asarray(np.cumsum(self.wrong[ranking(self._of(name))]) / self.wrong.sum())

    def to_frame(self, shares: Sequence[float] = SHARES) -> pd.DataFrame:
        """One row a method: AUROC with its interval and the shares found."""
        import pandas as pd

        rows = []
        for name in self.scores:
            a = self.auroc(name)
            row = {"method": name, "auroc": a.value, "low": a.low, "high": a.high}
            rows.append(row | {f"found at {s:.0%}": self.found(name, s).value for s in shares})
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """A plotly figure: share of wrong rows found against share inspected; dashed is chance."""
        import plotly.graph_objects as go

        x = (np.arange(len(self.wrong)) + 1) / len(self.wrong)
        figure = go.Figure([go.Scatter(x=x, y=self.curve(name), name=name) for name in self.scores])
        figure.add_scatter(x=[0, 1], y=[0, 1], name="chance", line={"dash": "dash", "color": "gray"})
        return figure.update_layout(
            xaxis_title="share of rows inspected", yaxis_title="share of wrong rows found"
        )

    def save(self, folder: Path | str) -> Path:
        """Write `mislabel.safetensors` and `mislabel.json`; returns the folder."""
        from safetensors.numpy import save

        arrays = {f"score/{name}": np.ascontiguousarray(s) for name, s in self.scores.items()}
        files.write_bytes(Path(folder) / "mislabel.safetensors", save({**arrays, "wrong": self.wrong}))
        files.write_json(Path(folder) / "mislabel.json", {"names": list(self.scores)})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> MislabelCurves:
        """What `save` wrote. Raises InputError where there is none."""
        from safetensors.numpy import load_file

        names = read_about(Path(folder) / "mislabel.json")["names"]
        arrays = load_file(Path(folder) / "mislabel.safetensors")
        return cls(arrays["wrong"], {name: arrays[f"score/{name}"] for name in names})

    def _of(self, name: str) -> NDArray[np.float64]:
        if name not in self.scores:
            raise InputError(f"there are no scores {name!r}", fix=f"choose from {', '.join(self.scores)}")
        return self.scores[name]

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="%.3f"))


def mislabel(scores: Mapping[str, Any], wrong: Any) -> MislabelCurves:
    """Curves of each score `[N]` (high = suspect: self-influence, loss, EL2N) against the truth `[N]`.

    Raises InputError unless some rows are wrong and some right, NumericalError for scores not finite.
    """
    truth = np.asarray(wrong, dtype=bool)
    if truth.ndim != 1 or not 0 < truth.sum() < len(truth):
        raise InputError(f"{int(truth.sum())} of {truth.size} rows are wrong", fix="give both kinds of rows")
    found = {}
    for name, values in scores.items():
        found[name] = np.asarray(values, dtype=np.float64)
        if found[name].shape != truth.shape:
            raise InputError(f"the score {name!r} has shape {found[name].shape} for {len(truth)} rows")
        if not np.isfinite(found[name]).all():
            raise NumericalError(f"the score {name!r} holds NaN or infinity")
    return MislabelCurves(truth, found)


def losses(model: Any, units: Any, *, batch_rows: int = 512) -> NDArray[np.float64]:
    """Training loss of every row, `[N]` in nats (cross-entropy, or half the squared error)."""
    import torch

    from glasshouse.attribution.objectives import default_objective

    objective, device = default_objective(units.batch([0])), next(model.parameters()).device
    parts = []
    with torch.no_grad():
        for k in range(0, len(units), batch_rows):
            batch = units.batch(range(k, min(k + batch_rows, len(units)))).to(device)
            parts.append(objective(model, batch).double().cpu())
    return np.asarray(torch.cat(parts).numpy())


def el2n(models: Sequence[Any], units: Any) -> NDArray[np.float64]:
    """`|softmax(z) - onehot(y)|` of every row of classes, mean over `models` early in training, `[N]`.

    Paul, Ganguli and Dziugaite 2021, arXiv:2107.07075, section 2. Raises InputError for other data.
    """
    import torch

    targets = getattr(units, "targets", None)
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or not models:
        raise InputError("EL2N is for rows of classes and at least one model", fix="use losses")
    with torch.no_grad():
        norms = []
        for model in models:
            p = torch.softmax(model(units.inputs).double(), 1)
            p[torch.arange(len(p)), targets] -= 1
            norms.append(p.norm(dim=1))
    return np.asarray(torch.stack(norms).mean(0).numpy())
