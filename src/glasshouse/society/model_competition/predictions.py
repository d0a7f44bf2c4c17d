"""A market of real providers: what users get, from the probabilities they gave. No game is solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.society.model_competition._result import Equilibrium
from glasshouse.society.model_competition._users import Floats
from glasshouse.society.model_competition.market import CompetitionMarket
from glasshouse.statistics import Estimate, bootstrap, bootstrap_paired

if TYPE_CHECKING:
    import pandas as pd

SUMS_TO = 1e-3


@dataclass(frozen=True)
class MarketOutcome:
    """What users of given providers get. Arrays per user: `loss` [n, m], `choice` [n, m] (rows sum to 1).

    Everything below is an `Estimate` with a bootstrap interval over users.
    """

    loss: Floats
    choice: Floats
    labels: Any
    """Predicted labels [n, m]."""

    @property
    def social_loss(self) -> Estimate:
        """Mean loss of users at the provider they chose."""
        return bootstrap((self.loss * self.choice).sum(1))

    @property
    def shares(self) -> list[Estimate]:
        """Market share of each provider."""
        return [bootstrap(column) for column in self.choice.T]

    @property
    def individual_losses(self) -> list[Estimate]:
        """Mean loss of each provider over all users."""
        return [bootstrap(column) for column in self.loss.T]

    @property
    def best_of(self) -> Estimate:
        """The counterfactual: every user served by whichever provider is best for them."""
        return bootstrap(self.loss.min(1))

    @property
    def best_single(self) -> Estimate:
        """The counterfactual: everybody served by the one provider of least mean loss."""
        return bootstrap(self.loss[:, int(self.loss.mean(0).argmin())])

    @property
    def gain_of_choice(self) -> Estimate:
        """How much lower users' loss is than at the best single provider (paired over users)."""
        single = self.loss[:, int(self.loss.mean(0).argmin())]
        return bootstrap_paired(single, (self.loss * self.choice).sum(1))

    @property
    def agreement(self) -> Estimate:
        """Share of users on whom two providers give the same label, averaged over pairs: homogeneity."""
        m = self.labels.shape[1]
        same = (self.labels[:, :, None] == self.labels[:, None, :]).sum((1, 2)) - m
        return bootstrap(same / (m * (m - 1)))

    @property
    def all_wrong(self) -> Estimate:
        """Share of users whom every provider fails (loss above one half): no choice helps them."""
        return bootstrap((self.loss > 0.5).all(1).astype(float))

    def to_frame(self) -> pd.DataFrame:
        """One line per quantity, with its interval."""
        import pandas as pd

        named = {
            "social loss": self.social_loss, "best single provider": self.best_single,
            "best of m": self.best_of, "gain of choice": self.gain_of_choice, "agreement": self.agreement,
            "all wrong": self.all_wrong,
            **{f"share of provider {j}": e for j, e in enumerate(self.shares)},
            **{f"loss of provider {j}": e for j, e in enumerate(self.individual_losses)},
        }  # fmt: skip
        rows = [
            {"quantity": name, "value": e.value, "low": e.low, "high": e.high} for name, e in named.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))


def from_predictions(probs: Any, y: Any, *, market: CompetitionMarket | None = None) -> MarketOutcome:
    """What users get from providers who gave `probs` [m, n, K] (or [m, n]: those of label 1); labels `y`.

    A user's loss is one minus the probability of the right label (of 0/1 columns: correctness tables). With
    noise c = 0 users go to the best provider, ties broken by reputation. Raises InputError for shapes that do
    not fit, probabilities outside [0, 1] or not summing to 1, labels outside 0 .. K-1, or one provider.

    >>> outcome = from_predictions([[0.9, 0.2], [0.4, 0.8]], [1, 1], market=CompetitionMarket(m=2, c=0.0))
    >>> round(outcome.social_loss.value, 3)
    0.15
    """
    table = _probabilities(probs)
    m, n, K = table.shape
    rules = market or CompetitionMarket(m=m)
    if rules.m != m:
        raise InputError(f"{m} providers gave probabilities", fix=f"give a market with m={m}")
    labels = np.asarray(y)
    if labels.shape != (n,) or not np.isin(labels, np.arange(K)).all():
        raise InputError(f"y has shape {labels.shape}", fix=f"give {n} labels between 0 and {K - 1}")
    right = np.take_along_axis(table, labels.astype(np.int64)[None, :, None], 2)[:, :, 0].T  # (n, m)
    return MarketOutcome(1 - right, choose(1 - right, rules), table.argmax(2).T)


def evaluate(found: Equilibrium, X: Any, y: Any, market: CompetitionMarket) -> MarketOutcome:
    """What other users get at an equilibrium: held-out ones, on whom nobody was fitted.

    X [n, d] has the features of the fit, the constant included. Raises InputError for another width.
    """
    features, labels = np.asarray(X, dtype=np.float64), np.asarray(y).astype(np.int64)
    width = found.weights.shape[1]
    if features.ndim != 2 or features.shape[1] != width or len(features) != len(labels):
        raise InputError(
            f"X has shape {features.shape} and y {labels.shape}",
            fix=f"give {width} features and one label per row",
        )
    z = np.tensordot(found.weights, features, (1, 1)) / market.T  # (m, n), or (m, K, n)
    if z.ndim == 2:
        z = np.stack([0 * z, z], 1)
    z = np.moveaxis(z, 1, 2)  # (m, n, K)
    p = np.exp(z - z.max(2, keepdims=True))
    return from_predictions(p / p.sum(2, keepdims=True), labels, market=market)


def choose(loss: Floats, market: CompetitionMarket) -> Floats:
    """Chance that each user chooses each provider [n, m], for losses [n, m]; c = 0: the best, ties by w."""
    w = np.array(market.reputations)
    if market.c == 0:
        weight = w * (loss <= loss.min(1, keepdims=True) + 1e-12)
    else:
        weight = w * np.exp(-(loss - loss.min(1, keepdims=True)) / market.c)
    return weight / weight.sum(1, keepdims=True)


def _probabilities(probs: Any) -> Floats:
    try:
        table = np.asarray(probs, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("the probabilities are not one array", fix="give shape (m, n, K)") from None
    if table.ndim == 2:
        table = np.stack([1 - table, table], 2)
    if table.ndim != 3 or table.shape[0] < 2 or table.shape[1] < 1 or table.shape[2] < 2:
        raise InputError(
            f"the probabilities have shape {table.shape}", fix="give (m, n, K) with two or more providers"
        )
    if not np.isfinite(table).all() or (table < -SUMS_TO).any() or (table > 1 + SUMS_TO).any():
        raise InputError("the probabilities do not lie in [0, 1]", fix="give probabilities, not scores")
    bad = np.argwhere(np.abs(table.sum(2) - 1) > SUMS_TO)
    if len(bad):
        j, i = (int(x) for x in bad[0])
        raise InputError(
            f"the probabilities of provider {j} for user {i} sum to {table[j, i].sum():.3f}",
            fix="normalise them",
        )
    return table
