"""Best-response dynamics with a certificate: nobody gains more than `eps_nash` by a searched deviation.

Round-robin best responses from random predictors, as in arXiv 2306.14670. A response is searched from many
starts, since gradient ascent from the current predictor alone is local: the sigmoid saturates, a provider
that sits on the minority label cannot cross, and mixed profiles that are no equilibria appear.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np

from glasshouse.runtime.devices import pick_device
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.model_competition._engine import Engine, Options, Search
from glasshouse.society.model_competition._result import Equilibrium, Round
from glasshouse.society.model_competition._users import Floats, Users
from glasshouse.society.model_competition.bayes import best_predictor
from glasshouse.society.model_competition.market import CompetitionMarket

TOLERANCE = 1e-3
"""The largest gain at which a profile is called an equilibrium."""
LEAST_GAIN = 1e-4
"""A provider moves only for more than this; rounds end when nobody does."""
SAME_LABELS = 0.99
"""Two providers predict alike when their labels agree on this share of the users."""


def equilibrium(
    X: Any,
    y: Any,
    market: CompetitionMarket | None = None,
    *,
    mass: Any = None,
    seed: int = 0,
    starts: int = 12,
    steps: int = 120,
    lr: float = 0.05,
    search: Search = "multi-start",
    init_std: float = 0.5,
    max_rounds: int = 40,
    least_gain: float = LEAST_GAIN,
    tol: float = TOLERANCE,
    bayes: tuple[float, Any] | None = None,
    device: str = "cpu",
) -> Equilibrium:
    """A (pure) Nash equilibrium of the market-share game on features X [n, d] and labels y [n].

    Providers start at random weights (standard deviation `init_std`; `seed`) and respond in turn; a provider
    moves when it gains more than `least_gain`. In the last round nobody did, and `eps_nash` is the largest
    gain that was found in it. `mass` [n] weighs users. `search='warm-start'` is the local search of the
    reference implementation; its certificate still comes from the full search. `bayes` is a (loss, weights)
    pair that was computed before. For a constant feature use `with_bias`.

    A profile that was met before is reported as a cycle, with time averages. Without convergence the result
    says so (`converged` is False) and warns. `device` is where responses are searched (DeviceError when it is
    not there).
    Raises InputError for c below 0.02 (use `closed_form`), labels that are not 0 .. K-1, one class, lengths
    that differ, NaN rows (numbered); warns about d > n and unscaled features.
    """
    market = market or CompetitionMarket()
    options = Options(starts=starts, steps=steps, lr=lr, search=search)
    if max_rounds < 1 or not 0 < least_gain <= tol:
        raise InputError("give max_rounds >= 1 and 0 < least_gain <= tol")
    place = device if device == "cpu" else pick_device(device)
    engine = Engine(Users.of(X, y, mass=mass), market, options, place)
    opt = best_predictor(engine, seed=seed) if bayes is None else bayes
    game = _Game(engine, np.asarray(opt[1], dtype=np.float64), seed, init_std, least_gain)
    cycle = game.play(max_rounds)
    eps = game.rounds[-1].largest_gain if search == "multi-start" and game.settled else game.certify()
    found = game.result(float(opt[0]), eps, cycle, tol)
    if not found.converged:
        _warn(found)
    return found


class _Game:
    """The state of the dynamics: weights and exact losses of all providers, and what happened so far."""

    def __init__(self, engine: Engine, opt: Floats, seed: int, init_std: float, least_gain: float) -> None:
        self.engine, self.opt, self.least_gain = engine, opt, least_gain
        self.draws = rng(seed, "competition")
        self.W = self.draws.normal(0, init_std, (engine.market.m, *engine.shape))
        self.loss = engine.losses(self.W)  # (n, m)
        self.rounds: list[Round] = []
        self.states: list[str] = []
        self.settled = False

    def play(self, max_rounds: int) -> list[int] | None:
        """Rounds until nobody moves, a state returns, or the rounds are used up; the rounds of a cycle."""
        for _ in range(max_rounds):
            moved, gain = self._round()
            self._record(gain)
            if not moved:
                self.settled = True
                return None
            state = self._state()
            # Twice the same in a row is slow progress, not a cycle.
            if state in self.states and state != self.states[-1]:
                first = self.states.index(state)
                return list(range(first + 1, len(self.states) + 1))
            self.states.append(state)
        return None

    def certify(self) -> float:
        """The largest gain any provider can get by the full search from where things stand."""
        full = Options(starts=max(self.engine.options.starts, 12), steps=max(self.engine.options.steps, 120))
        before, self.engine.options = self.engine.options, full
        try:
            return max(self._gain(j)[1] for j in range(len(self.W)))
        finally:
            self.engine.options = before

    def result(self, bayes: float, eps: float, cycle: list[int] | None, tol: float) -> Equilibrium:
        choice = self.engine.choice(self.loss)
        mass = self.engine.users.mass
        losses, shares = mass @ self.loss, mass @ choice
        social = float(mass @ (choice * self.loss).sum(1))
        if cycle is not None:  # no equilibrium: what users met on average along the cycle
            turns = [self.rounds[i] for i in cycle]
            social = float(np.mean([turn.SL for turn in turns]))
            shares = np.mean([turn.shares for turn in turns], 0)
        return Equilibrium(
            weights=self.W, SL=social, shares=shares, individual_losses=losses, bayes=bayes, eps_nash=eps,
            trajectory=tuple(self.rounds), k_hetero=self._others_than_most(), agreement=self._agreement(),
            cycle=None if cycle is None else len(cycle), converged=cycle is None and eps <= tol, tol=tol,
            search=self.engine.options.told, users=self.engine.users.given,
        )  # fmt: skip

    def _round(self) -> tuple[bool, float]:
        moved, largest = False, 0.0
        for j in range(len(self.W)):
            W, gain = self._gain(j)
            largest = max(largest, gain)
            if gain > self.least_gain:
                self.W[j], moved = W, True
                self.loss[:, j] = self.engine.losses(W[None])[:, 0]
        return moved, largest

    def _gain(self, j: int) -> tuple[Floats, float]:
        others = self.engine.others(self.loss, j)
        now = float(self.engine.shares_of(self.W[j][None], others, j)[0])
        W, then = self.engine.best_response(self._starts(j), others, j)
        return W, max(then - now, 0.0)

    def _starts(self, j: int) -> Floats:
        here, count = self.W[j], self.engine.options.starts
        if self.engine.options.search == "warm-start":
            return here[None]
        rest = [self.W[k] for k in range(len(self.W)) if k != j]
        named = [here, -here, self.opt, -self.opt, 0 * here, np.mean(rest, 0)]
        named += [sign * one for one in rest[:count] for sign in (1, -1)]
        named = named[: max(count, 6)]
        scale = max(float(np.sqrt((here**2).mean())), 0.5)
        random = self.draws.normal(0, scale, (max(count - len(named), 2), *here.shape))
        return np.concatenate([np.stack(named), random])

    def _record(self, gain: float) -> None:
        choice, mass = self.engine.choice(self.loss), self.engine.users.mass
        self.rounds.append(
            Round(float(mass @ (choice * self.loss).sum(1)), tuple(map(float, mass @ choice)), gain)
        )

    def _state(self) -> str:
        """Equal for profiles whose losses are equal to two digits."""
        return hashlib.sha256(np.round(self.loss, 2).tobytes()).hexdigest()

    def _alike(self) -> Floats:
        """(m, m): share of users on whom two providers predict the same label."""
        labels = self.engine.predictions(self.W)
        same = labels[:, :, None] == labels[:, None, :]
        return np.asarray(np.tensordot(self.engine.users.mass, same, 1))

    def _others_than_most(self) -> int:
        return len(self.W) - int((self._alike() >= SAME_LABELS).sum(0).max())

    def _agreement(self) -> float:
        m = len(self.W)
        return float((self._alike().sum() - m) / (m * (m - 1)))


def _warn(found: Equilibrium) -> None:
    if found.cycle is not None:
        said = f"best responses cycle with period {found.cycle}; averages over the cycle are given"
    else:
        said = f"a provider still gains {found.eps_nash:.2g} after {len(found.trajectory)} rounds"
    warnings.warn(f"no equilibrium was reached: {said}", stacklevel=3)
