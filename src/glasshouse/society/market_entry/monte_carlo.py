"""Simulated ridge regression on mixed labels: what the deterministic equivalent is checked against.

X is drawn in the eigenbasis of Sigma (X = Z sqrt(lambda): no P x P matrix is ever made) and solved in dual
form. One eigendecomposition of the N x N Gram matrix per draw gives every penalty; predictors are linear in
the labels, so three of them give every alpha on the same data.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, rng
from glasshouse.society.market_entry.scenario import EntryMarket, check_alpha
from glasshouse.society.market_entry.spectrum import Floats
from glasshouse.statistics import Estimate, t_interval


@dataclass(frozen=True)
class Targets:
    """Two linear targets in the eigenbasis: coefficients `one`, `two` [P] over eigenvalues `lam` [P]."""

    lam: Floats
    one: Floats
    two: Floats

    @classmethod
    def draw(
        cls, market: EntryMarket, P: int, seed: int, signs: Literal["rademacher", "gaussian"] = "rademacher"
    ) -> Targets:
        """Random targets with the market's second moments.

        Rademacher signs agree with probability (1 + rho) / 2 and keep all squares exact; Gaussian
        coefficients need thousands of draws, because the first coordinates dominate.
        """
        if signs not in ("rademacher", "gaussian"):
            raise InputError(f"signs is {signs!r}", fix="give 'rademacher' or 'gaussian'")
        i, generator = np.arange(1, P + 1, dtype=np.float64), rng(seed, "targets")
        scale = i ** (-market.delta / 2)
        if signs == "rademacher":
            first = generator.choice([-1.0, 1.0], P)
            second = np.where(generator.random(P) < (1 + market.rho) / 2, first, -first)
        else:
            first, other = generator.standard_normal((2, P))
            second = market.rho * first + np.sqrt(1 - market.rho**2) * other
        return cls(i ** -(1 + market.gamma), scale * first, scale * second)

    def theory(self, alpha: float, N: float, lam: float) -> dict[str, float]:
        """The deterministic equivalent for these targets: L1 (`L1_limit` without 1/N terms), L2, bias."""
        kappa = _kappa(self.lam, N, lam)
        ratio = self.lam / (self.lam + kappa)
        g2 = float((ratio**2).sum()) / N
        D, mix = self.two - self.one, alpha * self.one + (1 - alpha) * self.two
        L = float(D**2 @ self.lam)
        drift = kappa * float((D * mix) @ ratio)
        bias = kappa**2 * float(mix**2 @ (ratio**2 / self.lam)) / (1 - g2)
        spread = alpha * (1 - alpha) / (1 - g2)
        finite = 2 / N * float(D**2 @ (ratio**2 * self.lam))
        leverage = 1 + 4 / N * float(D**2 @ (ratio * self.lam)) / L if L > 0 else 1.0
        plain = (1 - alpha) ** 2 * L - 2 * (1 - alpha) * drift + bias
        return {
            "L1": plain + spread * (L * g2 / leverage + finite), "L1_limit": plain + spread * L * g2,
            "L2": alpha**2 * L + 2 * alpha * drift + bias + spread * (L * g2 / leverage + finite),
            "bias": plain, "kappa": kappa, "L1_half": plain + spread * (L * g2 + finite),
        }  # fmt: skip


@dataclass(frozen=True)
class SimulatedLoss:
    """Losses of each draw: arrays [draws, penalties]; `bias` is the loss of the fit to the mean label.

    `theory` [penalties] and `theory_bias` are the deterministic equivalent on the same truncated spectrum,
    for the same targets where these were fixed.
    """

    scenario: dict[str, Any]
    alpha: float
    N: int
    P: int
    lam: Floats
    L1: Floats
    L2: Floats
    bias: Floats
    theory: Floats
    theory_bias: Floats
    theory_limit: Floats

    def estimate(self, what: Literal["L1", "L2", "bias"] = "L1", at: int = 0) -> Estimate:
        """Mean over draws with Student's interval, at penalty number `at`."""
        return t_interval({"L1": self.L1, "L2": self.L2, "bias": self.bias}[what][:, at])

    def gap(self, what: Literal["L1", "bias"] = "L1", at: int = 0) -> Estimate:
        """(simulation - theory) / theory, with its interval."""
        theory = float((self.theory if what == "L1" else self.theory_bias)[at])
        return t_interval(((self.L1 if what == "L1" else self.bias)[:, at] - theory) / theory)

    def to_frame(self) -> Any:
        """One row per penalty: theory, simulation and interval."""
        import pandas as pd

        rows = []
        for at, lam in enumerate(self.lam):
            e = self.estimate("L1", at)
            rows.append({
                "lambda": lam, "theory": self.theory[at], "theory_limit": self.theory_limit[at],
                "L1": e.value,
                "L1_low": e.low, "L1_high": e.high, "L2": self.L2[:, at].mean(),
                "bias": self.bias[:, at].mean(), "theory_bias": self.theory_bias[at], "draws": e.n,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """Theory as a line, simulation as points, over the penalty (plotly)."""
        import plotly.graph_objects as go

        frame = self.to_frame()
        error = {"array": frame["L1_high"] - frame["L1"], "arrayminus": frame["L1"] - frame["L1_low"]}
        figure = go.Figure(go.Scatter(name="theory", x=frame["lambda"], y=frame["theory"]))
        figure.add_trace(
            go.Scatter(name="simulated", x=frame["lambda"], y=frame["L1"], mode="markers", error_y=error)
        )
        return figure.update_layout(
            xaxis={"type": "log", "title": "lambda"}, yaxis={"type": "log", "title": "L1"}
        )

    def save(self, folder: Path | str) -> Path:
        """Write `losses.npy` [3, draws, penalties], `theory.npy` [4, penalties] and `simulated.json`."""
        import io

        for name, array in (
            ("losses", np.stack([self.L1, self.L2, self.bias])),
            ("theory", np.stack([self.lam, self.theory, self.theory_bias, self.theory_limit])),
        ):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            files.write_bytes(Path(folder) / f"{name}.npy", buffer.getvalue())
        told = {"scenario": self.scenario, "alpha": self.alpha, "N": self.N, "P": self.P}
        files.write_json(Path(folder) / "simulated.json", told)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> SimulatedLoss:
        """Read what `save` wrote."""
        told = files.read_json(Path(folder) / "simulated.json")
        losses = np.load(Path(folder) / "losses.npy", allow_pickle=False)
        lam, theory, bias, limit = np.load(Path(folder) / "theory.npy", allow_pickle=False)
        return cls(told["scenario"], told["alpha"], told["N"], told["P"], lam, *losses, theory, bias, limit)


def simulate_loss(
    market: EntryMarket,
    alpha: float,
    N: int,
    lam: float | Sequence[float],
    *,
    P: int,
    draws: int = 200,
    seed: int = 0,
    signs: Literal["rademacher", "gaussian"] = "rademacher",
    targets: Literal["fixed", "redrawn"] = "redrawn",
    labels: Literal["integrated", "drawn"] = "integrated",
    device: str | None = None,
) -> SimulatedLoss:
    """Losses of ridge regression fitted to `draws` data sets of N points with P features, for every penalty.

    `targets` fixes one pair for all draws or draws one for each. `labels` "integrated" takes the expectation
    over which target labels which point exactly, given X; "drawn" draws them. `device` None computes with
    numpy; a torch device ("cpu", "cuda") with torch in float64.
    Raises InputError for sizes that cannot be; warns where P < 10 N truncates the spectrum.
    """
    alpha, lams = check_alpha(alpha), np.atleast_1d(np.asarray(lam, dtype=np.float64))
    _check_sizes(N, P, draws, lams)
    if labels not in ("integrated", "drawn") or targets not in ("fixed", "redrawn"):
        raise InputError(
            f"labels is {labels!r}, targets {targets!r}",
            fix="give 'integrated' or 'drawn', 'fixed' or 'redrawn'",
        )
    if P < 10 * N:
        warnings.warn(
            f"P = {P} is below 10 N = {10 * N}: the spectrum is truncated and the power-law regime not "
            "reached; the theory is evaluated on the same spectrum", stacklevel=2,
        )  # fmt: skip
    engine = _Numpy() if device is None else _Torch(device)
    fixed = Targets.draw(market, P, derive(seed, "fixed"), signs)
    found = np.empty((draws, 3, len(lams)))
    theory = np.zeros((3, len(lams)))
    for draw in range(draws):
        pair = fixed if targets == "fixed" else Targets.draw(market, P, derive(seed, "pair", draw), signs)
        choice = None
        if labels == "drawn":
            choice = rng(seed, "labels", draw).random(N) >= alpha  # True: labelled by the second target
        found[draw] = _one_draw(
            engine, pair, alpha, lams, engine.normal(derive(seed, "X", draw), (N, P)), choice
        )
        if targets == "redrawn" or draw == 0:
            told = [pair.theory(alpha, N, float(v)) for v in lams]
            theory += np.array([[t[k] for t in told] for k in ("L1", "bias", "L1_limit")])
    if targets == "redrawn":
        theory /= draws
    return SimulatedLoss(
        market.to_json(),
        alpha,
        N,
        P,
        lams,
        found[:, 0],
        found[:, 1],
        found[:, 2],
        theory[0],
        theory[1],
        theory[2],
    )


def _one_draw(engine: Any, pair: Targets, alpha: float, lams: Floats, Z: Any, choice: Any) -> Floats:
    """Losses (L1, L2, bias) x penalties of one data set; Z [N, P] standard normal."""
    N, root = Z.shape[0], engine.array(np.sqrt(pair.lam))
    X = Z * root  # (N, P)
    b = engine.array(np.stack([pair.one, pair.two], axis=1))  # (P, 2)
    values, U = engine.eigh(X @ X.T)
    labels = X @ b  # (N, 2), what each target says
    scaled = X * root  # X Sigma^(1/2)
    half = b * root[:, None]  # Sigma^(1/2) (b1, b2)
    noise = None if choice is not None else U.T @ (scaled @ scaled.T) @ U  # X Sigma X' in U's basis
    out = np.empty((3, len(lams)))
    for at, lam in enumerate(lams):
        inverse = 1 / (values + N * float(lam))
        solve = lambda y, inverse=inverse: U @ (inverse[:, None] * (U.T @ y))  # noqa: E731
        fitted = scaled.T @ solve(labels)  # Sigma^(1/2) of the fits to each target (P, 2)
        mean = alpha * fitted[:, 0] + (1 - alpha) * fitted[:, 1]
        bias_1, bias_2 = (float(((mean - half[:, k]) ** 2).sum()) for k in (0, 1))
        if choice is not None:
            y = engine.where(choice, labels[:, 1], labels[:, 0])
            drawn = scaled.T @ solve(y[:, None])[:, 0]
            losses = [float(((drawn - half[:, k]) ** 2).sum()) for k in (0, 1)]
        else:
            # Label i has variance alpha (1-alpha) (D'x_i)^2 about its mean, carried by row i of the fit.
            rows = U * inverse
            carried = ((rows @ noise) * rows).sum(1)
            variance = alpha * (1 - alpha) * float((carried * (labels[:, 1] - labels[:, 0]) ** 2).sum())
            losses = [bias_1 + variance, bias_2 + variance]
        out[:, at] = (*losses, bias_1)
    return out


class _Numpy:
    """float64 on the CPU, one stream per draw."""

    def normal(self, seed: int, shape: tuple[int, int]) -> Any:
        return np.random.default_rng(seed).standard_normal(shape)

    def array(self, x: Floats) -> Any:
        return x

    def eigh(self, x: Any) -> Any:
        return np.linalg.eigh(x)

    def where(self, choice: Any, a: Any, b: Any) -> Any:
        return np.where(choice, a, b)


class _Torch:
    """The same on a torch device; imported only when a device is named."""

    def __init__(self, device: str) -> None:
        import torch

        from glasshouse.runtime.devices import pick_device

        self.torch, self.device = torch, pick_device(device)

    def normal(self, seed: int, shape: tuple[int, int]) -> Any:
        if self.device == "cpu":  # the numbers of the numpy path
            return self.array(np.random.default_rng(seed).standard_normal(shape))
        generator = self.torch.Generator(device=self.device).manual_seed(seed)
        return self.torch.randn(shape, generator=generator, device=self.device, dtype=self.torch.float64)

    def array(self, x: Floats) -> Any:
        return self.torch.as_tensor(x, dtype=self.torch.float64, device=self.device)

    def eigh(self, x: Any) -> Any:
        return self.torch.linalg.eigh(x)

    def where(self, choice: Any, a: Any, b: Any) -> Any:
        return self.torch.where(self.torch.as_tensor(choice, device=self.device), a, b)


def _kappa(eigenvalues: Floats, N: float, lam: float) -> float:
    """The root of lam / kappa + (1/N) sum lam_i / (lam_i + kappa) = 1."""
    from scipy.optimize import brentq

    def surplus(log: float) -> float:
        kappa = np.exp(log)
        return float(lam / kappa + (eigenvalues / (eigenvalues + kappa)).sum() / N - 1)

    # At kappa = lam the first term alone is 1; far above both the sum is below.
    high = np.log(lam + eigenvalues.sum() / N) + 1
    return float(np.exp(brentq(surplus, np.log(lam), high, xtol=1e-13)))


def _check_sizes(N: int, P: int, draws: int, lams: Floats) -> None:
    if N < 1 or P < 1 or draws < 1:
        raise InputError(f"N is {N}, P {P}, draws {draws}", fix="give positive whole numbers")
    if lams.ndim != 1 or not (np.isfinite(lams) & (lams > 0)).all():
        raise InputError("lam holds a penalty that is not positive", fix="give positive penalties")
