"""Which methods the tables compare, and what each needs of a training run. Add a row to add a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glasshouse.studies.attribution.fashion import Recipe, train_mlp, train_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from glasshouse.attribution.checkpoints import Checkpoint

    Labelled = tuple[torch.Tensor, torch.Tensor]

CHECKPOINTS = 6
MEMBERS = 5


@dataclass
class Trained:
    """One training run: the model, six checkpoints of its path, its rows; other models when asked for."""

    recipe: Recipe
    seed: int
    model: nn.Module
    path: list[Checkpoint]
    rows: Labelled
    _members: list[nn.Module] = field(default_factory=list)

    @property
    def members(self) -> list[nn.Module]:
        """This model and four more of the same recipe, for TRAK's ensemble."""
        if not self._members:
            more = range(1000 + 10 * self.seed, 1000 + 10 * self.seed + MEMBERS - 1)
            self._members = [self.model, *(train_mlp(*self.rows, seed, self.recipe) for seed in more)]
        return self._members


def trained(recipe: Recipe, seed: int) -> Trained:
    """A model of the recipe on all rows, with the ends of six equal parts of its training."""
    from glasshouse.attribution.checkpoints import Checkpoint

    rows, _ = train_rows(recipe)
    steps = recipe.epochs * -(-recipe.rows // recipe.batch)
    at = {round(steps * (k + 1) / CHECKPOINTS) for k in range(CHECKPOINTS)}
    path: list[Checkpoint] = []

    def keep(model: nn.Module, step: int) -> None:
        if step in at:
            path.append(Checkpoint(model, step, recipe.rate))

    return Trained(recipe, seed, train_mlp(*rows, seed, recipe, keep), path, rows)


def _ekfac(strategy: str) -> Callable[[Trained], Any]:
    def build(run: Trained) -> Any:
        from glasshouse.attribution import EKFAC

        return EKFAC(strategy, seed=run.seed)  # type: ignore[arg-type]

    return build


def _trak(run: Trained) -> Any:
    from glasshouse.attribution import TRAK

    return TRAK(seed=run.seed)


def _trak_ensemble(run: Trained) -> Any:
    from glasshouse.attribution import TRAK

    return TRAK(run.members, seed=run.seed)


def _tracin(run: Trained) -> Any:
    from glasshouse.attribution import TracIn

    return TracIn(run.path)


def _tracin_last(run: Trained) -> Any:
    from glasshouse.attribution import TracIn

    return TracIn(run.path, layers="last")


def _logra(run: Trained) -> Any:
    from glasshouse.attribution.logra import LoGra

    return LoGra(32, seed=run.seed)


def _source(run: Trained) -> Any:
    from glasshouse.attribution.source import SOURCE

    return SOURCE(
        run.path, segments=3, momentum=run.recipe.momentum, weight_decay=run.recipe.decay, seed=run.seed
    )


def _alike(run: Trained) -> Any:
    from glasshouse.attribution import RepresentationSimilarity

    return RepresentationSimilarity()


def _alike_signed(run: Trained) -> Any:
    from glasshouse.attribution import RepresentationSimilarity

    return RepresentationSimilarity(labels="sign")


ROSTER: dict[str, Callable[[Trained], Any]] = {
    "gradient dot": _ekfac("identity"),
    "diagonal": _ekfac("diagonal"),
    "K-FAC": _ekfac("kfac"),
    "EK-FAC": _ekfac("ekfac"),
    "LoGra, rank 32": _logra,
    "SOURCE, 6 checkpoints": _source,
    "TracIn, 6 checkpoints": _tracin,
    "TracIn, last layer": _tracin_last,
    "TRAK, 1 model": _trak,
    "TRAK, 5 models": _trak_ensemble,
    "representation": _alike,
    "representation, by label": _alike_signed,
}
"""Name in the tables, and how the method is built for one run."""

REMOVED = (
    "EK-FAC", "SOURCE, 6 checkpoints", "TracIn, 6 checkpoints", "TRAK, 1 model", "representation, by label",
)  # fmt: skip
"""Methods whose top rows are taken away: a few, since every removal is a retraining."""
