"""A competition scenario: market, users and representation, as a YAML or JSON file says them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glasshouse.society._scenario import Scenario
from glasshouse.society.model_competition.market import CompetitionMarket
from glasshouse.society.model_competition.settings import (
    Labelled,
    digits,
    gaussians,
    no_information,
    read_features,
    subpopulations,
)

_REPRESENTATION = re.compile(r"all|(?:pca|randproj):\d{1,6}|noise:\d{1,6}(?:\.\d{1,12})?")
Users = Literal["no-information", "gaussians", "subpopulations", "digits", "features"]
LADDERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "no-information": ("alpha", (0.1, 0.2, 0.3, 0.33, 0.36, 0.4, 0.45)),
    "gaussians": ("sigma", (10.0, 3.0, 2.0, 1.5, 1.0, 0.75)),
    "subpopulations": ("dimensions", (1, 2, 3, 4, 5)),
    "digits": ("representation", ("pca:0", "pca:1", "pca:2", "pca:4", "pca:8", "pca:16", "pca:32")),
    "features": ("representation", ("pca:0", "pca:1", "pca:2", "pca:4", "pca:8")),
}
"""Users -> the field that makes their representation better, and its values from poor to rich."""


class CompetitionScenario(Scenario):
    """Providers who share a representation compete for users.

    `representation` is one of `representation_ladder`'s kinds, or 'all' features as they are; it is used with
    users 'digits' and 'features' only, as `alpha`, `sigma` and `dimensions` with the settings of their name.
    """

    providers: Annotated[int, Field(ge=2, le=50, description="m, how many providers compete")] = 3
    noise: Annotated[float, Field(ge=0.02, le=10, description="c, how often users choose worse")] = 0.3
    temperature: Annotated[
        float | None,
        Field(gt=0, description="T of the predictors; the paper's 0.1 for synthetic users, else 0.2"),
    ] = None
    reputations: Annotated[
        tuple[float, ...] | None, Field(description="w, one positive number per provider; none: equal")
    ] = None
    users: Annotated[Users, Field(description="who the users are")] = "digits"
    alpha: Annotated[float, Field(gt=0, lt=1, description="share of label 1 (no-information)")] = 0.4
    sigma: Annotated[float, Field(gt=0, description="standard deviation (gaussians)")] = 1.5
    dimensions: Annotated[int, Field(ge=1, le=5, description="coordinates seen + 1 (subpopulations)")] = 4
    representation: Annotated[
        str, Field(description="pca:k, randproj:k, noise:s or all (digits, features)")
    ] = "pca:1"
    features: Annotated[
        str | None, Field(description="an .npz file with arrays X (n, d) and y (n,) (features)")
    ] = None
    size: Annotated[int, Field(ge=20, le=1_000_000, description="users of a synthetic setting")] = 2000
    starts: Annotated[int, Field(ge=1, le=200, description="starts of a best response")] = 12
    device: Annotated[str, Field(description="where responses are searched: cpu, cuda, cuda:0")] = "cpu"

    @model_validator(mode="after")
    def _fits(self) -> CompetitionScenario:
        if not _REPRESENTATION.fullmatch(self.representation):
            raise ValueError(
                f"the representation is {self.representation!r}; write pca:K, randproj:K, noise:S or all"
            )
        if self.reputations is not None and len(self.reputations) != self.providers:
            raise ValueError(f"there are {len(self.reputations)} reputations for {self.providers} providers")
        if self.users == "features" and self.features is None:
            raise ValueError("users 'features' need a file; give the field features: FILE.npz")
        if self.features is not None and self.users != "features":
            raise ValueError(
                f"the field features is of no use with users {self.users!r}; set users: features"
            )
        return self

    @property
    def synthetic(self) -> bool:
        """Whether the users come from one of the paper's settings."""
        return self.users in ("no-information", "gaussians", "subpopulations")

    @property
    def T(self) -> float:
        """The temperature in use."""
        return self.temperature or (0.1 if self.synthetic else 0.2)

    def market(self, *, classes: int = 2) -> CompetitionMarket:
        """The market; more than two labels are served by softmax predictors."""
        loss = "l1_sigmoid" if classes == 2 else "l1_softmax"
        return CompetitionMarket(self.providers, self.noise, self.T, self.reputations, loss)  # type: ignore[arg-type]

    def labelled(self, seed: int) -> Labelled:
        """Features and labels; `seed` draws synthetic users (digits and features stay as they are).

        Raises InputError for a features file that cannot be used.
        """
        if self.users == "no-information":
            return no_information(self.alpha, n=self.size)
        if self.users == "gaussians":
            return gaussians(self.sigma, n=self.size, seed=seed)
        if self.users == "subpopulations":
            return subpopulations(self.dimensions, n=self.size, seed=seed)
        return _represented(self.features, self.representation)


def _represented(path: str | None, representation: str) -> Labelled:
    from glasshouse.society.model_competition._users import with_bias
    from glasshouse.society.model_competition.ladder import representation_ladder

    X, y = digits() if path is None else read_features(path)
    if representation == "all":
        return Labelled(with_bias(X), y)
    return Labelled(representation_ladder(X, [representation])[0][1], y)
