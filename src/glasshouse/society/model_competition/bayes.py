"""The Bayes baseline: the least mean loss that one provider can reach with the same predictors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glasshouse.runtime.devices import pick_device
from glasshouse.runtime.seeds import rng
from glasshouse.society.model_competition._engine import Engine, Options
from glasshouse.society.model_competition._users import Floats, Users
from glasshouse.society.model_competition.market import CompetitionMarket

SCALES = (0.3, 3.0, 30.0)


def bayes_loss(
    X: Any,
    y: Any,
    *,
    market: CompetitionMarket | None = None,
    steps: int = 400,
    starts: int = 8,
    seed: int = 0,
    warm: Sequence[Any] = (),
    device: str = "cpu",
) -> tuple[float, Floats]:
    """Least mean loss over linear predictors on X [n, d], and its weights [d] (or [d, K]).

    Searched as hard as the providers are: zero, the least-squares direction at three scales, `warm` (weights
    of a smaller representation, padded with zeros: then the loss cannot rise with the representation), and
    random starts, in one batch. `market` gives the loss and its temperature.

    Raises InputError as `equilibrium` does.
    """
    users = Users.of(X, y)
    place = device if device == "cpu" else pick_device(device)
    engine = Engine(users, market or CompetitionMarket(), Options(), place)
    return best_predictor(engine, seed=seed, steps=steps, starts=starts, warm=warm)


def best_predictor(
    engine: Engine, *, seed: int, steps: int = 400, starts: int = 8, warm: Sequence[Any] = ()
) -> tuple[float, Floats]:
    """`bayes_loss` on an engine that exists."""
    direction = _least_squares(engine)
    random = rng(seed, "bayes").normal(0, 0.5, (starts, *engine.shape))
    padded = [_pad(np.asarray(one, dtype=np.float64), engine.shape) for one in warm]
    first = np.stack([np.zeros(engine.shape), *(s * direction for s in SCALES), *padded, *random])
    W, value = engine.bayes(first, steps)
    return value, W


def _least_squares(engine: Engine) -> Floats:
    users, root = engine.users, np.sqrt(engine.users.mass)[:, None]
    target = (2 * users.y - 1)[:, None] if engine.binary else np.eye(users.K)[users.y] - 1 / users.K
    found = np.linalg.lstsq(root * users.X, root * target, rcond=None)[0]
    return np.asarray(found[:, 0] if engine.binary else found) * engine.market.T * 3


def _pad(weights: Floats, shape: tuple[int, ...]) -> Floats:
    """Weights of d' features (the last one the bias) as weights of more features, bias last."""
    grown = np.zeros(shape)
    grown[: len(weights) - 1], grown[-1] = weights[:-1], weights[-1]
    return grown
