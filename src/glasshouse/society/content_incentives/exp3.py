"""EXP3: the platform sees only what it showed. Expected exposures by simulation, paths batched.

Exposure is averaged over the platform's probabilities, not its draws (one source of noise less), and all
profiles that are compared run on the same draws. Best responses are searched in classes of content sequences
q_t = a phi(t), phi being the shape that Hedge induces, an early burst, or a constant; the certificate says so
and carries its simulation error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.content_incentives.costs import Floats, cost_of
from glasshouse.society.content_incentives.theory import pull

if TYPE_CHECKING:
    from glasshouse.society.content_incentives.equilibria import ContentEquilibrium
    from glasshouse.society.content_incentives.scenario import ContentMarket

SEARCH = "common-random-number search over a phi(t): Hedge's shape, early bursts, constants, nothing"
_STEP = 0.2
"""Half-width, in log a, of the difference quotient."""


def exp3_exposures(
    market: ContentMarket, q: Floats, *, paths: int = 2000, seed: int = 0, device: str | None = None
) -> Floats:
    """Chance of each producer in each round, per path [B, paths, P, T], for quality q [B, P, T] or [P, T].

    All B profiles run on the same draws. One-dimensional quality. `device` None computes with numpy, a torch
    device with torch. Raises InputError for users of more than one type.
    """
    if market.users is not None:
        raise InputError("EXP3 is simulated for one-dimensional quality", fix="leave users out")
    q = np.asarray(q, dtype=np.float64)
    if q.ndim == 2:
        q = q[None]
    if q.shape[1:] != (market.P, market.T):
        raise InputError(f"q has shape {q.shape}", fix=f"give [B, {market.P}, {market.T}]")
    uniforms = rng(seed, "exp3").random((market.T, paths))
    if device is not None:
        return _on_torch(market, q, uniforms, device)
    scores = np.zeros((len(q), paths, market.P))  # estimated cumulative quality
    out = np.empty((len(q), paths, market.P, market.T))
    for t in range(market.T):
        logits = market.rates[t] * scores
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        chance = weights / weights.sum(-1, keepdims=True)
        chance = (1 - market.gamma) * chance + market.gamma / market.P
        out[..., t] = chance
        # Who is shown: the first producer whose cumulative chance exceeds the draw.
        shown = (chance.cumsum(-1)[..., :-1] < uniforms[t][None, :, None]).sum(-1)  # (B, paths)
        seen = np.take_along_axis(chance, shown[..., None], -1)[..., 0]
        earned = np.take_along_axis(q[:, :, t], shown, -1) / seen
        np.put_along_axis(
            scores, shown[..., None], np.take_along_axis(scores, shown[..., None], -1) + earned[..., None], -1
        )
    return out


def exp3_utilities(market: ContentMarket, q: Floats, x: Floats, j: int = 0) -> Floats:
    """Discounted earnings less costs of producer j on each path [B, paths]; x from `exp3_exposures`."""
    weights = market.beta ** np.arange(1, market.T + 1)
    paid = cost_of(market).value(np.asarray(q)[:, j]) @ weights  # (B,)
    return np.asarray(x[:, :, j] @ weights - paid[:, None])


def shapes(market: ContentMarket) -> dict[str, Floats]:
    """phi(t) [T] of the policy classes, largest value 1."""
    hedge = cost_of(market).quality_at_slope(pull(market))
    rounds = np.arange(market.T)
    ones = np.where(rounds < market.T - 1, 1.0, 0.0)
    return {
        "hedge": hedge / hedge.max(),
        "constant": ones,
        "first half": ones * (rounds < market.T // 2),
        "first fifth": ones * (rounds < max(1, market.T // 5)),
    }


def solve_exp3(
    market: ContentMarket, *, tol: float = 1e-3, seed: int = 0, paths: int = 4000
) -> ContentEquilibrium:
    """The symmetric profile a phi(t), phi Hedge's shape, from which no small change of a pays; certified.

    The certificate searches scales and shapes on fresh draws; `eps_error` is its simulation error.
    """
    from glasshouse.society.content_incentives.equilibria import ContentEquilibrium

    phi = shapes(market)["hedge"]
    a = _symmetric_scale(market, phi, paths, seed)
    q = np.tile(a * phi, (market.P, 1))
    eps, error, found = _certificate(market, q, paths, seed)
    x = exp3_exposures(market, q, paths=paths, seed=seed + 1)[0]
    exposure = x.mean(0)
    result = ContentEquilibrium(
        scenario=market.to_json(), p=q[:, :, None], exposure=exposure, welfare=(exposure * q).sum(0),
        utility=np.array([exp3_utilities(market, q[None], x[None], j).mean() for j in range(market.P)]),
        eps_nash=eps, eps_error=error, certificate_method=f"{SEARCH} ({paths} paths; best: {found})", tol=tol,
        cycle=0, rounds=0, visited=q[None, :, :, None],
    )  # fmt: skip
    if not result.converged:
        warnings.warn(f"exp3: a deviation gains {eps:.3g} +- {error:.1g}, tolerance {tol:g}", stacklevel=3)
    return result


def marginal_gain(market: ContentMarket, a: float, phi: Floats, *, paths: int, seed: int) -> float:
    """D U_1 / d log a where all producers offer a phi(t): a central difference on common draws."""
    q = np.tile(a * phi, (2, market.P, 1))
    q[0, 0] *= np.exp(-_STEP)
    q[1, 0] *= np.exp(_STEP)
    x = exp3_exposures(market, q, paths=paths, seed=seed)
    low, high = exp3_utilities(market, q, x).mean(1)
    return float((high - low) / (2 * _STEP))


def _symmetric_scale(market: ContentMarket, phi: Floats, paths: int, seed: int) -> float:
    """A at which the marginal gain changes sign, by bisection in log a; draws are common to all a."""
    share = 1 / market.P
    guess = float(cost_of(market).quality_at_slope(share * (1 - share) * pull(market)).max())
    low, high = np.log(max(guess, 1e-9)) - 3.0, np.log(max(guess, 1e-9)) + 2.0
    if marginal_gain(market, float(np.exp(low)), phi, paths=paths, seed=seed) <= 0:
        return float(np.exp(low))
    for _ in range(10):
        middle = (low + high) / 2
        rises = marginal_gain(market, float(np.exp(middle)), phi, paths=paths, seed=seed) > 0
        low, high = (middle, high) if rises else (low, middle)
    return float(np.exp((low + high) / 2))


def _certificate(market: ContentMarket, q: Floats, paths: int, seed: int) -> tuple[float, float, str]:
    """Largest mean gain of producer 1 over the search, its standard error, and the deviation.

    The best is chosen on some draws and measured on others, so that choosing does not inflate it.
    """
    top = float(q[0].max())
    scales = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
    deviations: list[tuple[str, Floats]] = [("nothing", np.zeros(market.T))]
    deviations += [(f"{name} x {s:g}", s * top * phi) for name, phi in shapes(market).items() for s in scales]
    batch = np.tile(q, (len(deviations) + 1, 1, 1))
    for at, (_, mine) in enumerate(deviations, start=1):
        batch[at, 0] = mine
    chosen = _gains(market, batch, paths // 2, seed + 2).mean(1)
    best = int(chosen.argmax())
    measured = _gains(market, batch[[0, best + 1]], paths, seed + 3)[0]
    error = float(measured.std(ddof=1) / np.sqrt(len(measured)))
    return max(0.0, float(measured.mean())), error, deviations[best][0]


def _gains(market: ContentMarket, batch: Floats, paths: int, seed: int) -> Floats:
    """Gain of producer 1 in profiles 1.. over profile 0, per path [B - 1, paths], a few at a time."""
    base = exp3_utilities(market, batch[:1], exp3_exposures(market, batch[:1], paths=paths, seed=seed))
    parts = []
    for start in range(1, len(batch), 5):
        part = batch[start : start + 5]
        parts.append(
            exp3_utilities(market, part, exp3_exposures(market, part, paths=paths, seed=seed)) - base
        )
    return np.concatenate(parts)


def _on_torch(market: ContentMarket, q: Floats, uniforms: Floats, device: str) -> Floats:
    import torch

    from glasshouse.runtime.devices import pick_device

    where = pick_device(device)
    quality: Any = torch.as_tensor(q, device=where)
    draws: Any = torch.as_tensor(uniforms, device=where)
    rates: Sequence[float] = market.rates.tolist()
    scores = torch.zeros((len(q), uniforms.shape[1], market.P), dtype=torch.float64, device=where)
    out = []
    for t in range(market.T):
        chance = (1 - market.gamma) * torch.softmax(rates[t] * scores, -1) + market.gamma / market.P
        out.append(chance)
        shown = (chance.cumsum(-1)[..., :-1] < draws[t][None, :, None]).sum(-1)
        seen = chance.gather(-1, shown[..., None])
        earned = quality[:, :, t].gather(-1, shown)[..., None] / seen
        scores.scatter_add_(-1, shown[..., None], earned)
    return torch.stack(out, -1).cpu().numpy()
