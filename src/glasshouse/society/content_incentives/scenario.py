"""`ContentMarket`: producers who commit to content, and the rule by which a platform recommends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from glasshouse.society._scenario import Scenario

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Algorithm = Literal[
    "hedge", "exp3", "punish-hedge", "punish-direction", "punish-user-utility", "uniform",
    "follow-the-leader", "static-contest",
]  # fmt: skip
LEARNING = ("hedge", "exp3")
PUNISHING = ("punish-hedge", "punish-direction", "punish-user-utility")
LEAST_PROBABILITY = 1e-6

ASSUMPTIONS = (
    "Producers commit to their whole sequence of content in advance (open loop) and know the platform's "
    "rule.",
    "A producer earns one per recommendation, discounted from round 1 on, and pays ||p||^c for content p.",
    "A user's utility of content p is <u, p>, with u nonnegative of length 1; users are drawn from one "
    "distribution in every round.",
    "The platform commits to its rule first. In the last round content earns nothing any more, so its "
    "quality is zero.",
)


class ContentMarket(Scenario):
    """A platform and its producers in the model of arXiv 2306.07479.

    `eta` times t^-decay is the learning rate in round t, or `eta_schedule` gives it round by round.
    `q` is the threshold of the punishing rules (None: the largest that producers accept, times 1 - eps).
    `users` [n, D] are nonnegative vectors (None: one-dimensional quality), `weights` [n] their shares.
    `cost_curve` lists (quality, cost) points of a convex increasing cost in place of quality^c.
    """

    P: int = 4
    T: int = 60
    beta: float = 0.9
    c: float = 2.0
    algo: Algorithm = "hedge"
    eta: float = 0.1
    decay: float = 0.0
    eta_schedule: tuple[float, ...] | None = None
    gamma: float = 0.1
    """Share of uniform exploration in EXP3."""
    q: float | None = None
    eps: float = 0.01
    users: tuple[tuple[float, ...], ...] | None = None
    weights: tuple[float, ...] | None = None
    criteria: tuple[tuple[float, ...], ...] | None = None
    """What each producer must give every user, [P, D] (punish-user-utility; None: the best)."""
    cost_curve: tuple[tuple[float, float], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> ContentMarket:
        if self.P < 2:
            raise ValueError(f"P is {self.P}: give at least two producers")
        if self.T < 2:
            raise ValueError(f"T is {self.T}: give at least two rounds")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is {self.beta:g}: give a discount between 0 and 1")
        if not (self.c >= 1 and math.isfinite(self.c)):
            raise ValueError(f"c is {self.c:g}: the cost is not convex; give c >= 1")
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps is {self.eps:g}: give a share in [0, 1)")
        self._check_rates()
        self._check_users()
        if self.q is not None and not self.q > 0:
            raise ValueError(f"q is {self.q:g}: give a positive threshold")
        if self.cost_curve is not None:
            from glasshouse.society.content_incentives.costs import check_points

            check_points(self.cost_curve)
        return self

    def _check_rates(self) -> None:
        rates = self.eta_schedule if self.eta_schedule is not None else (self.eta,)
        if not all(rate >= 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"a learning rate is {min(rates):g}: give numbers >= 0")
        if self.eta_schedule is not None and len(self.eta_schedule) != self.T:
            raise ValueError(f"eta_schedule has {len(self.eta_schedule)} rates for T = {self.T} rounds")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma:g}: give a share in [0, 1]")
        if self.algo == "exp3" and self.gamma / self.P < LEAST_PROBABILITY:
            raise ValueError(
                f"gamma is {self.gamma:g}: probabilities may fall below {LEAST_PROBABILITY:g} and the "
                "importance weights overflow; give a larger gamma"
            )

    def _check_users(self) -> None:
        if self.users is None:
            if self.weights is not None:
                raise ValueError("weights are given without users")
            return
        width = {len(user) for user in self.users}
        if len(width) != 1 or 0 in width:
            raise ValueError(f"users have {sorted(width)} dimensions: give vectors of one length")
        for row, user in enumerate(self.users, start=1):
            if not all(x >= 0 and math.isfinite(x) for x in user) or not any(user):
                raise ValueError(f"user {row} is {list(user)}: give nonnegative numbers, not all zero")
        if self.weights is not None:
            wrong = len(self.weights) != len(self.users) or not all(w > 0 for w in self.weights)
            if wrong:
                raise ValueError("weights must be positive, one per user")
        of_width = self.criteria is None or {len(row) for row in self.criteria} == width
        if self.criteria is not None and not (of_width and len(self.criteria) == self.P):
            raise ValueError(f"criteria must be {self.P} vectors of the users' {width.pop()} dimensions")

    @property
    def U(self) -> Floats:
        """Users [n, D], each of length 1."""
        import numpy as np

        users = np.array(self.users if self.users is not None else ((1.0,),), dtype=np.float64)
        return users / np.linalg.norm(users, axis=1, keepdims=True)

    @property
    def shares(self) -> Floats:
        """Weight of each user [n], summing to 1."""
        import numpy as np

        n = 1 if self.users is None else len(self.users)
        weights = np.array(self.weights if self.weights is not None else (1.0,) * n, dtype=np.float64)
        return weights / weights.sum()

    @property
    def rates(self) -> Floats:
        """Learning rate of rounds 1 .. T, [T]."""
        import numpy as np

        if self.eta_schedule is not None:
            return np.array(self.eta_schedule, dtype=np.float64)
        return self.eta * np.arange(1, self.T + 1, dtype=np.float64) ** -self.decay

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know about this market, in sentences."""
        import numpy as np

        found = []
        if self.algo in LEARNING and self.c == 1 and self.cost_curve is None:
            found.append(
                "c = 1: the upper bound's exponent 1/(c-1) is undefined; only simulation is offered."
            )
        if (np.diff(self.rates) > 1e-15).any():
            found.append(
                "The learning rate increases: the upper bound takes the rates of later rounds as they are."
            )
        if self.algo in ("punish-hedge", "punish-direction") and self.q is not None:
            from glasshouse.society.content_incentives.theory import break_even

            limit = break_even(self)
            if self.q > limit * (1 + 1e-12):
                found.append(
                    f"The threshold {self.q:g} is not incentive compatible: above {limit:.6g} producers "
                    "prefer to quit."
                )
        return tuple(found)
