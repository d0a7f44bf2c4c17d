"""`EntryMarket`: an incumbent, a newcomer, the safety limits they face, and the exponents that follow."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import field_validator, model_validator

from glasshouse.runtime.errors import InputError
from glasshouse.society._scenario import Scenario

ASSUMPTIONS = (
    "Inputs are Gaussian with eigenvalues i^-(1+gamma); both companies fit a linear model by ridge "
    "regression.",
    "There are two linear targets, performance and safety, with squared coefficients i^-delta and "
    "correlation rho; a company labels each point by one or the other, with a probability that it chooses.",
    "Labels carry no other noise, and data of both companies come from one distribution.",
    "A company's safety limit binds its predictor of infinitely many points (constraint 'population'), or "
    "the predictor it can fit (constraint 'finite_sample').",
    "Each company uses the best penalty for its own number of points; users go to the better performer.",
)


class EntryMarket(Scenario):
    """A market in the model of arXiv 2409.03734, section 2.

    `tau_I`, `tau_E` are the largest safety losses allowed to incumbent and newcomer, in the unit `tau_unit`:
    shares of L*, the distance of the two objectives, or losses. None is no limit. `N_I` is the incumbent's
    number of data points, None for infinitely many.
    """

    gamma: float = 0.5
    """Decay of the spectrum: eigenvalue i is i^-(1+gamma)."""
    delta: float = 0.5
    """Decay of the targets: squared coefficient i is i^-delta."""
    rho: float = 0.5
    """Correlation of the two targets, in [0, 1)."""
    tau_I: float | None = 0.98
    tau_E: float | None = None
    N_I: float | None = None
    constraint: Literal["population", "finite_sample"] = "population"
    tau_unit: Literal["L*", "loss"] = "L*"
    P: float = 1e16
    """Number of features; the default stands for infinitely many."""
    finite_size: bool = True
    """Whether the variance carries the terms of order 1/N that its limit lacks."""

    @field_validator("tau_I", "tau_E", "N_I", mode="before")
    @classmethod
    def _infinite_is_none(cls, value: Any) -> Any:
        return None if isinstance(value, float) and value == math.inf else value

    @model_validator(mode="after")
    def _check(self) -> EntryMarket:
        numbers = {"gamma": self.gamma, "delta": self.delta, "rho": self.rho, "P": self.P}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}: give a finite number")
        if self.gamma <= 0:
            raise ValueError(f"gamma is {self.gamma:g}: the spectrum is not summable; give gamma > 0")
        if self.delta < 0:
            raise ValueError(f"delta is {self.delta:g}: nu could be <= 0; give delta >= 0")
        if self.rho == 1:
            raise ValueError("rho is 1: the objectives are identical, L* = 0, no constraint can bind")
        if not 0 <= self.rho < 1:
            raise ValueError(f"rho is {self.rho:g}: give a correlation in [0, 1)")
        if self.P < 100:
            raise ValueError(f"P is {self.P:g}: give at least 100 features")
        if self.N_I is not None and not self.N_I >= 1:
            raise ValueError(f"N_I is {self.N_I:g}: give at least one point, or nothing for infinitely many")
        for name, tau in (("tau_I", self.tau_I), ("tau_E", self.tau_E)):
            if tau is not None and not self._share(tau) >= 0.25:
                least = 0.25 * (1.0 if self.tau_unit == "L*" else self.L_star)
                raise ValueError(
                    f"{name} is {tau:g}: the constraint is infeasible for alpha >= 0.5; the smallest "
                    f"feasible value is {least:.6g}"
                )
        return self

    @property
    def L_star(self) -> float:
        """The distance of the two objectives, E[(b1 - b2)' Sigma (b1 - b2)] = 2 (1 - rho) sum i^-(1+g+d)."""
        from glasshouse.society.market_entry.spectrum import tables

        return 2 * (1 - self.rho) * tables(self.gamma, self.delta, self.P).total

    @property
    def nu(self) -> float:
        """The exponent of a single objective: min(2 (1 + gamma), delta + gamma)."""
        return min(2 * (1 + self.gamma), self.delta + self.gamma)

    @property
    def nu_prime(self) -> float:
        """The exponent that limits the last regime: min(1 + gamma, delta + gamma)."""
        return min(1 + self.gamma, self.delta + self.gamma)

    @property
    def alpha_I(self) -> float:
        """Share of the incumbent's points labelled for performance: min(1, sqrt(tau_I / L*))."""
        return self._alpha(self.tau_I)

    @property
    def alpha_E(self) -> float:
        """Share of the newcomer's points labelled for performance."""
        return self._alpha(self.tau_E)

    @property
    def G_I(self) -> float:
        """What the incumbent loses with infinitely many points: (1 - alpha_I)^2 L*."""
        return (1 - self.alpha_I) ** 2 * self.L_star

    @property
    def G_E(self) -> float:
        """What the newcomer loses with infinitely many points."""
        return (1 - self.alpha_E) ** 2 * self.L_star

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know about this market, in sentences."""
        if self.alpha_E < self.alpha_I:
            return ("tau_E lies below tau_I: the newcomer is held to more than the incumbent, so the model's "
                    "premise is reversed.",)  # fmt: skip
        return ()

    def _share(self, tau: float) -> float:
        return tau if self.tau_unit == "L*" else tau / self.L_star

    def _alpha(self, tau: float | None) -> float:
        return 1.0 if tau is None else min(1.0, math.sqrt(self._share(tau)))


def check_alpha(alpha: float) -> float:
    """A share of points labelled for performance, in [0.5, 1]. Raises InputError outside."""
    if not 0.5 <= alpha <= 1:
        raise InputError(f"alpha is {alpha:g}", fix="give a share in [0.5, 1]")
    return float(alpha)
