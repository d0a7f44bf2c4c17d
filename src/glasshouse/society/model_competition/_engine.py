"""The market at work: exact payoffs in float64, candidate predictors searched in one batch.

The searched candidates of a best response are named here once, so that a certificate can say what it covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition import _maths
from glasshouse.society.model_competition._maths import Array, Task
from glasshouse.society.model_competition._users import Floats, Users
from glasshouse.society.model_competition.market import CompetitionMarket

Search = Literal["multi-start", "warm-start"]
SEARCHES = ("multi-start", "warm-start")


@dataclass(frozen=True)
class Options:
    """How a best response is searched: Adam from several starts at once, the best exact payoff kept."""

    starts: int = 12
    """Candidates of the first steps: current, minus current, mean of the others, each other provider, minus
    each, the Bayes predictor and minus it, zero, and random ones until the number is full."""
    steps: int = 120
    lr: float = 0.05
    keep: int = 4
    """Candidates that go on after the first 25 steps."""
    search: Search = "multi-start"

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or self.keep < 1 or not self.lr > 0:
            raise InputError(f"the search is {self}", fix="give positive starts, steps, keep and lr")
        if self.search not in SEARCHES:
            raise InputError(f"there is no search {self.search!r}", fix="use one of " + ", ".join(SEARCHES))

    @property
    def told(self) -> str:
        """The search in words, for certificates."""
        if self.search == "warm-start":
            return f"gradient ascent from the current predictor only, {self.steps} Adam steps"
        return f"gradient ascent from {self.starts} starts, at most {self.steps} Adam steps"


class Engine:
    """Payoffs and searches on one set of users and one market; `device` moves the searches to a GPU."""

    def __init__(
        self, users: Users, market: CompetitionMarket, options: Options, device: str = "cpu"
    ) -> None:
        self.users, self.market, self.options = users, market.for_gradients(), options
        self.binary = market.loss == "l1_sigmoid"
        if self.binary and users.K > 2:
            raise InputError(f"the labels are 0 to {users.K - 1}", fix="use the loss 'l1_softmax'")
        self.exact = _task(users, market, np, np.float64, "cpu")
        on_cpu = device == "cpu"
        self.xp: Any = np if on_cpu else _torch()
        self.fast = _task(users, market, self.xp, np.float32 if on_cpu else self.xp.float32, device)
        self.log_w = np.log(np.array(market.reputations))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one predictor: (d,) or (d, K)."""
        d = self.users.X.shape[1]
        return (d,) if self.binary else (d, self.users.K)

    def losses(self, W: Floats) -> Floats:
        """(n, candidates), exact."""
        return np.asarray(_maths.losses(self.exact, W))

    def choice(self, loss: Floats) -> Floats:
        """(n, m): whom each user chooses."""
        return np.asarray(_maths.choice(self.exact, loss, self.log_w))

    def others(self, loss: Floats, j: int) -> Floats:
        """(n, 1): what provider j competes with."""
        return np.asarray(_maths.log_sum_others(self.exact, loss, self.log_w, j))

    def shares_of(self, W: Floats, others: Floats, j: int) -> Floats:
        """Exact market share of provider j under each candidate."""
        chosen = _maths.share(self.exact, self.losses(W), self.log_w[j], others)
        return np.asarray((self.exact.mass * chosen).sum(0))

    def best_response(self, starts: Floats, others: Floats, j: int) -> tuple[Floats, float]:
        """The best predictor found for provider j from `starts` (S, ...), and its exact market share."""
        gradient = _maths.payoff(self.fast, float(self.log_w[j]), self._send(others))
        found = self._ascend(gradient, starts, self.options.steps, self.options.keep)
        candidates = np.concatenate([found, starts])
        values = self.shares_of(candidates, others, j)
        best = int(values.argmax())
        return candidates[best], float(values[best])

    def bayes(self, starts: Floats, steps: int) -> tuple[Floats, float]:
        """The predictor of least mean loss found from `starts`, and its exact mean loss."""
        found = self._ascend(_maths.accuracy(self.fast), starts, steps, self.options.keep)
        candidates = np.concatenate([found, starts])
        values = self.users.mass @ self.losses(candidates)
        best = int(values.argmin())
        return candidates[best], float(values[best])

    def predictions(self, W: Floats) -> Any:
        """Predicted labels (n, candidates)."""
        if self.binary:
            return (self.users.X @ W.T > 0).astype(np.int64)
        S, d, K = W.shape
        return (self.users.X @ np.swapaxes(W, 0, 1).reshape(d, S * K)).reshape(-1, S, K).argmax(2)

    def _ascend(self, gradient: Any, starts: Floats, steps: int, keep: int) -> Floats:
        best, _ = _maths.maximise(
            gradient, self._send(starts), xp=self.xp, steps=steps, lr=self.options.lr, keep=keep
        )
        return np.asarray(best if self.xp is np else best.cpu(), dtype=np.float64)

    def _send(self, array: Floats) -> Array:
        if self.xp is np:
            return array.astype(np.float32)
        return self.xp.as_tensor(array, dtype=self.xp.float32, device=self.fast.X.device)


def _task(users: Users, market: CompetitionMarket, xp: Any, dtype: Any, device: str) -> Task:
    def send(array: Any) -> Array:
        return np.asarray(array, dtype) if xp is np else xp.as_tensor(array, dtype=dtype, device=device)

    binary = market.loss == "l1_sigmoid"
    sign = send((1 - 2 * users.y)[:, None]) if binary else None
    hot = None if binary else send(np.eye(users.K)[users.y][:, None, :])
    return Task(xp, send(users.X), sign, hot, send(users.mass[:, None]), market.T, market.c)


def _torch() -> Any:
    import torch

    return torch
