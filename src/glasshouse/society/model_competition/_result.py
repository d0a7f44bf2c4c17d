"""What the dynamics leave behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition._users import Floats

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Round:
    """One round of best responses: social loss and market shares after it, the largest gain seen in it."""

    SL: float
    shares: tuple[float, ...]
    largest_gain: float


@dataclass(frozen=True)
class Equilibrium:
    """A profile of predictors and how far from an equilibrium it is.

    `weights` [m, d] (or [m, d, K]); `SL` mean loss of users at the provider they chose, in [0, 1]; `shares`
    [m] market shares, sum 1; `individual_losses` [m] mean loss over all users; `bayes` least loss of a single
    provider; `eps_nash` the largest gain of any searched unilateral deviation, in market share; `k_hetero`
    providers outside the largest group that predicts alike; `agreement` share of users on whom two providers
    give the same label, averaged over pairs; `cycle` its period where best responses cycle (SL and shares are
    then averages along it and no equilibrium is claimed), else None.
    """

    weights: Floats
    SL: float
    shares: Floats
    individual_losses: Floats
    bayes: float
    eps_nash: float
    trajectory: tuple[Round, ...]
    k_hetero: int
    agreement: float
    cycle: int | None
    converged: bool
    tol: float
    search: str
    users: int

    @property
    def value(self) -> float:
        """SL."""
        return self.SL

    @property
    def regime(self) -> str:
        """'one prediction', 'both offered', or 'cycle'."""
        if self.cycle is not None:
            return "cycle"
        return "one prediction" if self.k_hetero == 0 else "both offered"

    def summary(self) -> list[str]:
        """A few lines for a person."""
        status = "equilibrium" if self.converged else "NO equilibrium"
        return [
            f"{status} ({self.regime}): largest gain of a searched deviation {self.eps_nash:.1e} "
            f"(tolerance {self.tol:g}; {self.search})",
            f"users' loss {self.SL:.4f}; a single provider's {self.bayes:.4f}",
            "market shares " + ", ".join(f"{share:.3f}" for share in self.shares),
            "providers' mean losses " + ", ".join(f"{loss:.3f}" for loss in self.individual_losses),
            f"providers give the same label to {self.agreement:.1%} of the users",
        ]

    def __repr__(self) -> str:
        return f"Equilibrium(SL={self.SL:.4f}, eps_nash={self.eps_nash:.1e}, {self.regime})"

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))

    def to_frame(self) -> pd.DataFrame:
        """One line per provider: share, mean loss; and the market's numbers repeated."""
        import pandas as pd

        return pd.DataFrame({
            "provider": range(len(self.shares)), "share": self.shares, "loss": self.individual_losses,
            "SL": self.SL, "bayes": self.bayes, "eps_nash": self.eps_nash, "converged": self.converged,
            "agreement": self.agreement,
        })  # fmt: skip

    def plot(self) -> go.Figure:
        """Social loss after each round, the Bayes loss beside it."""
        import plotly.graph_objects as go

        rounds = list(range(1, len(self.trajectory) + 1))
        symbol = "circle" if self.converged else "circle-open"
        figure = go.Figure(
            go.Scatter(
                x=rounds, y=[r.SL for r in self.trajectory], mode="lines+markers", name="users' loss",
                marker={"symbol": symbol},
            )
        )  # fmt: skip
        figure.add_hline(y=self.bayes, line_dash="dot", annotation_text="one provider")
        return figure.update_layout(
            title="Best responses", xaxis_title="round", yaxis={"title": "mean loss", "rangemode": "tozero"}
        )

    def save(self, folder: Path | str) -> Path:
        """`equilibrium.json` and `weights.npy` in `folder`; each file whole or absent, the JSON last."""
        path = Path(folder)
        with files.atomic_path(path / "weights.npy") as temporary, open(temporary, "wb") as handle:
            np.save(handle, self.weights, allow_pickle=False)
        told = {k: v for k, v in asdict(self).items() if k != "weights"}
        told |= {"shares": self.shares.tolist(), "individual_losses": self.individual_losses.tolist()}
        return files.write_json(path / "equilibrium.json", {"schema_version": 1, **told})

    @classmethod
    def load(cls, folder: Path | str) -> Equilibrium:
        """What `save` wrote. Raises InputError for a folder that holds no whole equilibrium."""
        path = Path(folder)
        try:
            told: dict[str, Any] = files.read_json(path / "equilibrium.json")
            weights = np.load(path / "weights.npy", allow_pickle=False)
            told.pop("schema_version")
            told["trajectory"] = tuple(
                Round(r["SL"], tuple(r["shares"]), r["largest_gain"]) for r in told["trajectory"]
            )
            told |= {name: np.array(told[name]) for name in ("shares", "individual_losses")}
            return cls(weights=weights, **told)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"there is no whole equilibrium ({error})", where=str(path)) from error
