"""`PreferenceRegression`: what do annotators pay for, all listed features else equal?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import glasshouse.behaviour.sycophancy.design as design
from glasshouse.behaviour.sycophancy.gibbs import Collapsed, Prior, sample
from glasshouse.behaviour.sycophancy.posterior import Posterior
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng

GRID = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Scales of the prior that `b="cv"` chooses from."""
_OPTIONS = ("prior", "b", "heldout", "chains", "draws", "warmup", "seed")
WORST_RHAT, LEAST_ESS = 1.01, 400


class EdgeWarning(UserWarning):
    """The chosen scale is at the end of its grid."""


class ConvergenceWarning(UserWarning):
    """The chains disagree, or are worth too few draws."""


class PreferenceRegression:
    """Bayesian logistic regression of preferences on features of pairs (Sharma et al. 2023, section 4.1).

    P(A preferred) = sigmoid(sum_f alpha_f x_f), without intercept: a pair and its swap say the same, so the
    order of A and B plays no part. `prior` is "laplace" (scale `b`) or "normal" (standard deviation `b`);
    `b="cv"` chooses from `GRID` by log-likelihood on a fifth of the training rows. A share `heldout` of rows
    is never fitted. `draws` per chain after `warmup`.

    Choose b for prediction; with b = .01 the intervals cover the true effects far too rarely.

    >>> x = np.array([[1.0], [-1.0], [0.0], [1.0]] * 50); y = np.array([1, 0, 1, 0] * 50)
    >>> PreferenceRegression(b=0.3).fit(x, y).posterior_.draws.shape
    (4, 500, 1)
    """

    def __init__(
        self,
        prior: Prior = "laplace",
        *,
        b: float | Literal["cv"] = "cv",
        heldout: float = 0.2,
        chains: int = 4,
        draws: int = 500,
        warmup: int = 150,
        seed: int = 0,
    ) -> None:
        self.prior = prior
        self.b = b
        self.heldout = heldout
        self.chains = chains
        self.draws = draws
        self.warmup = warmup
        self.seed = seed

    def fit(self, x: Any, y: Any, *, names: Sequence[str] | None = None) -> PreferenceRegression:
        """Sample the posterior of pairs `x` [N, K] (in [-1, 1], + for A) and `y` [N] (1 where A won).

        Learned: `posterior_` (`Posterior`), `b_`, `log_likelihoods_` (per b of the grid, nats a row, when
        chosen). Row order does not matter. Raises InputError for what cannot be fitted (NaN, a constant or
        doubled column, y outside {0, 1}, options out of range); warns at the end of the grid and when the
        chains have not mixed.
        """
        self._check_options()
        x, y, named = design.checked(x, y, names)
        order = np.lexsort([y, *x.T[::-1]])
        x, y = x[order], y[order]
        train = self._split(len(x), "held out", self.heldout)
        self.b_ = self._choose(x[train], y[train]) if self.b == "cv" else float(self.b)
        draws = self._sample(Collapsed.of(x[train], y[train]), self.b_, "fit", self.chains, self.draws)
        self.posterior_ = Posterior(
            draws, named, b=self.b_, prior=self.prior, n=int(train.sum()), heldout_x=x[~train],
            heldout_y=y[~train], vif=design.vif(x[train]), correlations=design.correlations(x[train]),
        )  # fmt: skip
        self._warn()
        return self

    def save(self, folder: Path | str) -> Path:
        """Write options and posterior into `folder` and return it. Raises InputError before `fit`."""
        if not hasattr(self, "posterior_"):
            raise InputError("the regression is not fitted", fix="call fit first")
        self.posterior_.save(folder)
        scores = getattr(self, "log_likelihoods_", None)
        told = None if scores is None else [[b, value] for b, value in scores.items()]
        options = {name: getattr(self, name) for name in _OPTIONS}
        files.write_json(Path(folder) / "regression.json", {"options": options, "log_likelihoods": told})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> PreferenceRegression:
        """Read what `save` wrote. Raises InputError for a folder that is missing or damaged."""
        posterior = Posterior.load(folder)
        try:
            about = files.read_json(Path(folder) / "regression.json")
            found = cls(**about["options"])
            scores = about["log_likelihoods"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"it holds no readable regression ({error})", where=str(folder), fix="fit and save again"
            ) from error
        found.posterior_, found.b_ = posterior, posterior.b
        if scores is not None:
            found.log_likelihoods_ = {b: value for b, value in scores}
        return found

    def _choose(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> float:
        """The b with the best log-likelihood of the mean prediction on a fifth of the rows."""
        train = self._split(len(x), "choose", 0.2)
        rows = Collapsed.of(x[train], y[train])
        self.log_likelihoods_ = {}
        for b in GRID:
            draws = self._sample(rows, b, "choose", 1, max(100, self.draws // 2))
            p = np.clip(_mean_prediction(draws.reshape(-1, x.shape[1]), x[~train]), 1e-12, 1 - 1e-12)
            self.log_likelihoods_[b] = float(np.log(np.where(y[~train] == 1, p, 1 - p)).mean())
        best = max(self.log_likelihoods_, key=lambda b: self.log_likelihoods_[b])
        if best in (GRID[0], GRID[-1]):
            warnings.warn(
                f"b = {best:g} is at the end of the grid {GRID}: good for prediction, but its intervals "
                "are no intervals of effects; refit with b=0.1 for those",
                EdgeWarning,
                stacklevel=3,
            )
        return best

    def _sample(self, rows: Collapsed, b: float, what: str, chains: int, draws: int) -> NDArray[np.float64]:
        return np.stack(
            [
                sample(
                    rows, b=b, prior=self.prior, draws=draws, warmup=self.warmup,
                    stream=rng(self.seed, what, f"{b:g}", chain),
                )
                for chain in range(chains)
            ]
        )  # fmt: skip

    def _split(self, n: int, name: str, share: float) -> NDArray[np.bool_]:
        """True for the rows that are fitted."""
        out = np.ones(n, bool)
        out[rng(self.seed, name).permutation(n)[: round(share * n)]] = False
        if not out.any() or (share and out.all()):
            raise InputError(f"{n} rows cannot be split", fix="give more pairs, or heldout=0")
        return out

    def _check_options(self) -> None:
        if self.prior not in ("laplace", "normal"):
            raise InputError(f"prior is {self.prior!r}", fix="choose 'laplace' or 'normal'")
        if self.b != "cv" and not (isinstance(self.b, int | float) and 0 < self.b < np.inf):
            raise InputError(f"b is {self.b!r}", fix="give a positive scale, or 'cv'")
        if not 0 <= self.heldout < 1:
            raise InputError(f"heldout is {self.heldout}", fix="give a share from 0 up to, not including, 1")
        if self.chains < 2 or self.draws < 50 or self.warmup < 0:
            raise InputError(
                f"{self.chains} chains of {self.draws} draws after {self.warmup}",
                fix="give at least 2 chains of 50 draws, and no negative warm-up",
            )

    def _warn(self) -> None:
        found = self.posterior_
        if found.rhat.max() > WORST_RHAT or found.ess.min() < LEAST_ESS:
            warnings.warn(
                f"R-hat up to {found.rhat.max():.3f}, {found.ess.min():.0f} effective draws or more (want "
                f"{WORST_RHAT} and {LEAST_ESS}): raise draws",
                ConvergenceWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        fitted = f", fitted with b = {self.b_:g}" if hasattr(self, "b_") else ""
        return f"PreferenceRegression(prior={self.prior!r}, b={self.b!r}{fitted})"


def _mean_prediction(draws: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(A preferred) of each row, averaged over draws [S, K]."""
    from scipy.special import expit

    return np.mean([expit(x @ part.T).mean(1) for part in np.array_split(draws, 8)], axis=0)
