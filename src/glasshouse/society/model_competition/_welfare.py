"""Users' welfare along a ladder of representations: the result object and its test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

COLUMNS = ("bayes", "SL", "agreement")


def resampled(value: float, draws: Any, units: int, level: float = 0.95) -> Estimate:
    """A number on all `units`, with an interval from a few bootstrap draws of it: value -+ t sd(draws).

    Few draws give no percentiles; their standard deviation estimates the standard error, with as many degrees
    of freedom as draws less one. Fewer than two draws give the whole line.
    """
    from scipy.special import stdtrit

    spread = np.asarray(draws, dtype=np.float64)
    label = f"bootstrap standard error, {len(spread)} resamples of users, t"
    if len(spread) < 2:
        return Estimate(value, -math.inf, math.inf, level, units, f"{label}: too few")
    half = float(stdtrit(len(spread) - 1, (1 + level) / 2)) * float(spread.std(ddof=1))
    return Estimate(value, value - half, value + half, level, units, label)


@dataclass(frozen=True)
class WelfareCurve:
    """One row per rung and bootstrap draw (draw 0: everybody).

    Rows hold name, draw, bayes and SL (mean losses in [0, 1]), agreement (share of users on whom two
    providers give the same label), k_hetero, eps_nash (market share), converged, rounds.
    """

    rows: tuple[dict[str, Any], ...]
    m: int
    users: int

    @property
    def names(self) -> list[str]:
        """Rungs in the order they were given."""
        return list(dict.fromkeys(row["name"] for row in self.rows))

    @property
    def eps_nash(self) -> float:
        """The worst certificate."""
        return max(row["eps_nash"] for row in self.rows)

    def values(self, name: str, column: str) -> np.ndarray:
        """One column of a rung by draw. Raises InputError for an unknown name or column."""
        found = [row[column] for row in self.rows if row["name"] == name] if column in self.rows[0] else []
        if not found:
            raise InputError(f"there is no {column!r} of {name!r}", fix="names are " + ", ".join(self.names))
        return np.array(found, dtype=np.float64)

    def estimate(self, name: str, column: str = "SL") -> Estimate:
        """A rung's number with its bootstrap interval over users."""
        found = self.values(name, column)
        return resampled(float(found[0]), found[1:], self.users)

    def difference(self, a: str, b: str, column: str = "SL") -> Estimate:
        """Rung a minus rung b on the same users, draw by draw."""
        gap = self.values(a, column) - self.values(b, column)
        return resampled(float(gap[0]), gap[1:], self.users)

    def ratio(self, a: str, b: str, column: str = "SL") -> Estimate:
        """Rung a over rung b on the same users; the interval is made on the log scale."""
        logs = np.log(self.values(a, column) / self.values(b, column))
        found = resampled(float(logs[0]), logs[1:], self.users)
        return Estimate(
            math.exp(found.value), math.exp(found.low), math.exp(found.high), found.level, found.n,
            f"log {found.method}",
        )  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """One line per rung: bayes, SL and agreement with intervals, the worst eps_nash, converged."""
        import pandas as pd

        lines = []
        for name in self.names:
            line: dict[str, Any] = {"name": name}
            for column in COLUMNS:
                found = self.estimate(name, column)
                line |= {column: found.value, f"{column}_low": found.low, f"{column}_high": found.high}
            line["eps_nash"] = float(self.values(name, "eps_nash").max())
            line["converged"] = bool(self.values(name, "converged").all())
            lines.append(line)
        return pd.DataFrame(lines)

    def plot(self) -> go.Figure:
        """Users' loss against Bayes loss, the line of a single provider beside it; hollow: no certificate."""
        import plotly.graph_objects as go

        frame = self.to_frame()
        limit = float(frame["bayes"].max())
        figure = go.Figure(
            [
                go.Scatter(
                    x=frame["bayes"], y=frame["SL"], text=frame["name"], mode="markers+lines+text",
                    textposition="top center", name=f"{self.m} providers",
                    marker={"symbol": ["circle" if ok else "circle-open" for ok in frame["converged"]]},
                    error_y={
                        "array": frame["SL_high"] - frame["SL"], "arrayminus": frame["SL"] - frame["SL_low"],
                    },
                ),
                go.Scatter(x=[0, limit], y=[0, limit], mode="lines", name="one provider"),
            ]
        )  # fmt: skip
        return figure.update_layout(
            xaxis_title="Bayes loss of the representation", yaxis_title="users' loss at equilibrium"
        )

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))

    def save(self, folder: Path | str) -> Path:
        """`welfare.parquet` and `welfare.json` in `folder`, the JSON last."""
        import pandas as pd

        path = Path(folder)
        with files.atomic_path(path / "welfare.parquet") as temporary:
            pd.DataFrame(list(self.rows)).to_parquet(temporary, index=False)
        return files.write_json(
            path / "welfare.json", {"schema_version": 1, "m": self.m, "users": self.users}
        )

    @classmethod
    def load(cls, folder: Path | str) -> WelfareCurve:
        """What `save` wrote. Raises InputError for a folder that holds no whole curve."""
        import pandas as pd

        path = Path(folder)
        try:
            told = files.read_json(path / "welfare.json")
            rows = pd.read_parquet(path / "welfare.parquet").to_dict("records")
            return cls(tuple(rows), told["m"], told["users"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"there is no whole welfare curve ({error})", where=str(path)) from error


@dataclass(frozen=True)
class Nonmonotone:
    """A pair of rungs: the better representation has a lower Bayes loss, and users a higher loss."""

    worse: str
    better: str
    bayes: Estimate
    """Bayes loss of `better` minus `worse`: below 0."""
    SL: Estimate
    """Users' loss at `better` minus `worse`: above 0."""


def nonmonotone_test(curve: WelfareCurve) -> list[Nonmonotone]:
    """Pairs where the Bayes loss falls and users' loss rises, both 95 % bootstrap intervals excluding 0.

    Largest rise first; an empty list says that none was found. Pairs are not corrected for how many there
    are: with r rungs there are r (r - 1) / 2.
    """
    found = []
    for a, b in combinations(curve.names, 2):
        worse, better = (
            (a, b) if curve.estimate(a, "bayes").value >= curve.estimate(b, "bayes").value else (b, a)
        )
        bayes, loss = curve.difference(better, worse, "bayes"), curve.difference(better, worse, "SL")
        if bayes.high < 0 < loss.low:
            found.append(Nonmonotone(worse, better, bayes, loss))
    return sorted(found, key=lambda pair: -pair.SL.value)
