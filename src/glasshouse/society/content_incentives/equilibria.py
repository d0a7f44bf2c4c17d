"""Producers' equilibria: best-response dynamics with a certificate, cycles told apart from equilibria."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.content_incentives.costs import Floats, cost_of
from glasshouse.society.content_incentives.platforms import exposures, utilities, welfare
from glasshouse.society.content_incentives.responses import best_response
from glasshouse.society.content_incentives.scenario import ASSUMPTIONS, ContentMarket

if TYPE_CHECKING:
    import pandas as pd

Start = Literal["zero", "random", "closed form"]


@dataclass(frozen=True)
class ContentEquilibrium:
    """Content p [P, T, D] at which the dynamics ended, and what follows from it.

    `exposure` [P, T] is averaged over users, `welfare` [T], `utility` [P]. `eps_nash` is the largest gain of
    any searched deviation (`certificate_method` names the search). Where it exceeds `tol`, `converged` is
    False: no equilibrium is claimed. `cycle` is the length of a cycle of best responses (0: none); p is then
    the average over the cycle.
    """

    scenario: dict[str, Any]
    p: Floats
    exposure: Floats
    welfare: Floats
    utility: Floats
    eps_nash: float
    eps_error: float
    """Standard error of eps_nash (0 for exact searches)."""
    certificate_method: str
    tol: float
    cycle: int
    rounds: int
    visited: Floats
    """Every profile of the cycle [k, P, T, D] (k = 1 for none)."""

    @property
    def converged(self) -> bool:
        """Whether the certificate is within its tolerance."""
        return self.cycle == 0 and self.eps_nash <= self.tol

    @property
    def quality(self) -> Floats:
        """Length of content [P, T]."""
        return np.asarray(np.linalg.norm(self.p, axis=-1))

    @property
    def value(self) -> float:
        """Mean quality over producers and rounds."""
        return float(self.quality.mean())

    @property
    def regime(self) -> str:
        """'equilibrium', 'cycle' or 'undecided'."""
        return "equilibrium" if self.converged else ("cycle" if self.cycle else "undecided")

    def summary(self) -> list[str]:
        """A few lines for a person."""
        q = self.quality
        said = f"a cycle of {self.cycle} best responses; its average is shown" if self.cycle else self.regime
        return [
            f"{said}: mean quality {self.value:.4f} (first round {q[:, 0].mean():.4f}, last "
            f"{q[:, -1].mean():.4f})",
            f"users' utility per round {self.welfare.mean():.4f}",
            f"certificate: no searched deviation gains more than {self.eps_nash:.2e} (tolerance "
            f"{self.tol:g}; {self.certificate_method})",
            *ContentMarket.parse(self.scenario).warnings,
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row per producer and round: quality, exposure, welfare of the round."""
        import pandas as pd

        P, T = self.exposure.shape
        return pd.DataFrame({
            "producer": np.repeat(np.arange(1, P + 1), T), "t": np.tile(np.arange(1, T + 1), P),
            "quality": self.quality.ravel(), "exposure": self.exposure.ravel(),
            "welfare": np.tile(self.welfare, P),
        })  # fmt: skip

    def plot(self) -> Any:
        """Quality of each producer over rounds; dashed where no equilibrium is claimed (plotly)."""
        import plotly.graph_objects as go

        t = np.arange(1, self.exposure.shape[1] + 1)
        dash = "solid" if self.converged else "dot"
        figure = go.Figure([
            go.Scatter(x=t, y=q, name=f"producer {j}", line={"dash": dash})
            for j, q in enumerate(self.quality, start=1)
        ])  # fmt: skip
        return figure.update_layout(xaxis_title="round", yaxis_title="quality", title=self.regime)

    def save(self, folder: Path | str) -> Path:
        """Write `content.npy` [P, T, D], `visited.npy`, `rounds.npy` and `equilibrium.json`."""
        import io

        outcome = np.concatenate([self.exposure, self.welfare[None]])
        for name, array in (("content", self.p), ("visited", self.visited), ("rounds", outcome)):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            files.write_bytes(Path(folder) / f"{name}.npy", buffer.getvalue())
        told = {
            "scenario": self.scenario, "utility": self.utility.tolist(), "eps_nash": self.eps_nash,
            "eps_error": self.eps_error, "certificate_method": self.certificate_method, "tol": self.tol,
            "cycle": self.cycle, "rounds": self.rounds, "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip
        files.write_json(Path(folder) / "equilibrium.json", told)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> ContentEquilibrium:
        """Read what `save` wrote."""
        told = files.read_json(Path(folder) / "equilibrium.json")
        content, visited, outcome = (
            np.load(Path(folder) / f"{name}.npy", allow_pickle=False)
            for name in ("content", "visited", "rounds")
        )
        return cls(
            told["scenario"], content, outcome[:-1], outcome[-1], np.array(told["utility"]), told["eps_nash"],
            told["eps_error"], told["certificate_method"], told["tol"], told["cycle"], told["rounds"],
            visited,
        )  # fmt: skip


def solve(
    market: ContentMarket, *, tol: float = 1e-3, start: Start | Floats = "zero", seed: int = 0,
    rounds: int = 30,
) -> ContentEquilibrium:  # fmt: skip
    """Best responses in turn until nobody moves, a cycle is revisited, or `rounds` are over; then certified.

    `start` is a named profile or content [P, T, D]. The certificate is computed at the last profile by a
    fresh search for every producer. A cycle, or a certificate above `tol`, warns and claims no equilibrium.
    """
    if market.algo == "exp3":
        from glasshouse.society.content_incentives.exp3 import solve_exp3

        return solve_exp3(market, tol=tol, seed=seed)
    p = _start(market, start, seed)
    seen: dict[bytes, int] = {_state(p): 0}
    history = [p.copy()]
    cycle = done = 0
    for done in range(1, rounds + 1):
        before = p.copy()
        for j in range(market.P):
            present = float(utilities(market, p, exposures(market, p))[j])
            found = best_response(market, p, j, seed=seed)
            if found.utility >= present - 1e-12:
                p[j] = found.p
        if float(np.abs(p - before).max()) < 1e-7:
            break
        history.append(p.copy())
        state = _state(p)
        if state in seen and done - seen[state] > 1:
            cycle = done - seen[state]
            break
        seen[state] = done
    return certify(market, p, tol=tol, cycle=cycle, rounds=done, history=history, seed=seed)


def certify(
    market: ContentMarket, p: Floats, *, tol: float = 1e-3, cycle: int = 0, rounds: int = 0,
    history: list[Floats] | None = None, seed: int = 0,
) -> ContentEquilibrium:  # fmt: skip
    """The result object of a profile p [P, T, D]: outcomes, and the largest gain any producer can find."""
    if cycle and history is not None:
        visited = np.stack(history[-cycle:])
        p = visited.mean(0)
    else:
        visited = p[None].copy()
    x = exposures(market, p)
    present = utilities(market, p, x)
    same = all(np.array_equal(p[0], other) for other in p[1:]) and market.algo != "punish-user-utility"
    found = [best_response(market, p, j, seed=seed) for j in range(1 if same else market.P)]
    eps = max(max(0.0, one.utility - float(present[j])) for j, one in enumerate(found))
    result = ContentEquilibrium(
        scenario=market.to_json(), p=p, exposure=x @ market.shares, welfare=welfare(market, p, x),
        utility=present, eps_nash=eps, eps_error=0.0, certificate_method=found[0].method, tol=tol,
        cycle=cycle, rounds=rounds, visited=visited,
    )  # fmt: skip
    if not result.converged:
        warnings.warn(
            f"{market.algo}: no equilibrium found after {rounds} rounds of best responses ({result.regime}; "
            f"a deviation gains {eps:.3g}, tolerance {tol:g})", stacklevel=3,
        )  # fmt: skip
    return result


def _start(market: ContentMarket, start: Start | Floats, seed: int) -> Floats:
    shape = (market.P, market.T, market.U.shape[1])
    if isinstance(start, np.ndarray):
        if start.shape != shape or not np.isfinite(start).all() or (start < 0).any():
            raise InputError(f"the start has shape {start.shape}", fix=f"give nonnegative content {shape}")
        return start.astype(np.float64).copy()
    if start == "zero":
        return np.zeros(shape)
    if start == "random":
        most = float(cost_of(market).quality(1.0))
        return most * rng(seed, "start").random(shape) / np.sqrt(shape[2])
    if start == "closed form":
        from glasshouse.society.content_incentives.theory import symmetric_foc

        return np.tile(symmetric_foc(market)[None, :, None], (market.P, 1, 1))
    raise InputError(f"start is {start!r}", fix="give 'zero', 'random', 'closed form' or content [P, T, D]")


def _state(p: Floats) -> bytes:
    """A profile to three digits, so that a cycle that is revisited is recognised."""
    return np.round(p, 3).tobytes()
