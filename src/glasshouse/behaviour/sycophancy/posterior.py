"""`Posterior`: the draws of a preference regression and what they say."""

from __future__ import annotations

import html
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import glasshouse.behaviour.sycophancy.diagnostics as diagnostics
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
_FORMAT = 1


class Posterior:
    """`draws` [chains, S, K] of alpha, the names of the K features, and the rows held out.

    `n` rows were fitted. `vif` [K] and `correlations` [K, K] (uncentred) say how far features can be told
    apart: "all else equal" is about the listed features only.
    """

    def __init__(
        self, draws: Floats, names: tuple[str, ...], *, b: float, prior: str, n: int, heldout_x: Floats,
        heldout_y: NDArray[np.int64], vif: Floats, correlations: Floats,
    ) -> None:  # fmt: skip
        self.draws, self.names, self.b, self.prior, self.n = draws, names, b, prior, n
        self.heldout_x, self.heldout_y = heldout_x, heldout_y
        self.vif, self.correlations = vif, correlations

    @cached_property
    def rhat(self) -> Floats:
        """Rank-normalised split R-hat [K]."""
        return diagnostics.rhat(self.draws)

    @cached_property
    def ess(self) -> Floats:
        """Effective number of draws [K]."""
        return diagnostics.bulk_ess(self.draws)

    @property
    def flat(self) -> Floats:
        """All draws [chains * S, K]."""
        return self.draws.reshape(-1, len(self.names))

    def effects(self, level: float = 0.95) -> dict[str, Estimate]:
        """Alpha of each feature in log-odds: posterior mean and central interval."""
        return self._summaries(self.flat, level)

    def effect_probability(self, level: float = 0.95) -> dict[str, Estimate]:
        """sigmoid(alpha): probability that the reply with the feature wins, all else equal."""
        from scipy.special import expit

        return self._summaries(expit(self.flat), level)

    def predict(self, x: Any) -> Floats:
        """P(A preferred) [N] for pairs [N, K], averaged over the draws."""
        from scipy.special import expit

        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.names) or not np.isfinite(x).all():
            raise InputError(
                f"X has shape {x.shape} or holds NaN", fix=f"give [N, {len(self.names)}] numbers"
            )
        return np.mean([expit(x @ part.T).mean(1) for part in np.array_split(self.flat, 8)], axis=0)

    def heldout_accuracy(self, level: float = 0.95) -> Estimate:
        """Share of held-out pairs whose winner has the higher probability; 1/2 counts half."""
        if not len(self.heldout_y):
            return Estimate.undefined("no rows were held out")
        p = self.predict(self.heldout_x)
        right = np.where(np.isclose(p, 0.5, atol=1e-12), 0.5, (p > 0.5) == (self.heldout_y == 1))
        return t_interval(right.astype(float), level)

    def calibration(self, bins: int = 10) -> pd.DataFrame:
        """Held-out pairs in `bins` of equal size by prediction: predicted, observed, interval, n."""
        import pandas as pd

        p = self.predict(self.heldout_x)
        order = np.argsort(p, kind="stable")
        rows = []
        for part in np.array_split(order, bins):
            if part.size:
                seen = wilson(int(self.heldout_y[part].sum()), int(part.size))
                rows.append(
                    {
                        "predicted": float(p[part].mean()),
                        "observed": seen.value,
                        "low": seen.low,
                        "high": seen.high,
                        "n": seen.n,
                    }
                )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per feature: alpha, probability, intervals, VIF, R-hat and effective draws."""
        import pandas as pd

        effects, chances = self.effects(), self.effect_probability()
        return pd.DataFrame(
            [
                {
                    "feature": name, "alpha": effects[name].value, "alpha_low": effects[name].low,
                    "alpha_high": effects[name].high, "probability": chances[name].value,
                    "low": chances[name].low, "high": chances[name].high, "vif": self.vif[k],
                    "rhat": self.rhat[k], "ess": self.ess[k],
                }
                for k, name in enumerate(self.names)
            ]
        )  # fmt: skip

    def plot(self) -> Any:
        """Win probability of each feature with its interval, strongest first (plotly)."""
        import plotly.graph_objects as go

        frame = self.to_frame().sort_values("probability")
        dots = go.Scatter(
            x=frame.probability, y=frame.feature, mode="markers",
            error_x={"array": frame.high - frame.probability, "arrayminus": frame.probability - frame.low},
        )  # fmt: skip
        figure = go.Figure(dots).add_vline(x=0.5, line_dash="dot")
        return figure.update_layout(
            xaxis_title="probability that the reply with the feature wins, all else equal"
        )

    def save(self, folder: Path | str) -> Path:
        """Write `posterior.safetensors` and `posterior.json` into `folder`."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        files.write_bytes(Path(folder) / "posterior.safetensors", save(arrays))
        about = {"format": _FORMAT, "names": list(self.names), "b": self.b, "prior": self.prior, "n": self.n}
        files.write_json(Path(folder) / "posterior.json", about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Posterior:
        """Read what `save` wrote. Raises InputError for a folder that is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            about = files.read_json(Path(folder) / "posterior.json")
            arrays = load_file(Path(folder) / "posterior.safetensors")
            return cls(
                arrays.pop("draws"), tuple(about["names"]), b=about["b"], prior=about["prior"], n=about["n"],
                **{name: arrays[name] for name in _ARRAYS if name != "draws"},
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"it holds no readable posterior ({error})", where=str(folder), fix="fit and save again"
            ) from error

    def _summaries(self, values: Floats, level: float) -> dict[str, Estimate]:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return {
            name: Estimate(float(values[:, k].mean()), float(low[k]), float(high[k]), level, self.n,
                           f"posterior, {self.prior} prior b={self.b:g}, {len(values)} draws")
            for k, name in enumerate(self.names)
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(found))}</td></tr>"
            for name, found in self.effect_probability().items()
        )
        return f"<table><tr><th>feature</th><th>wins, all else equal</th></tr>{rows}</table>"

    def __repr__(self) -> str:
        return f"Posterior({len(self.names)} features, {self.n} pairs, b={self.b:g}, {len(self.flat)} draws)"


_ARRAYS = ("draws", "heldout_x", "heldout_y", "vif", "correlations")
