"""LoGra on images: agreement with retraining (LDS) by rank and by initialisation, beside its rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng
from glasshouse.studies.attribution.fashion import Recipe, queries, train_mlp, train_rows

if TYPE_CHECKING:
    from glasshouse.attribution.evaluate import RetrainBank

RANKS = (8, 16, 32)
INITS = ("random", "pca")


def lds_by_rank(recipe: Recipe, bank: RetrainBank, models: int) -> dict[str, list[float]]:
    """LDS per query: mean over single models; with "ensemble " before a name, of the models' mean score."""
    from glasshouse.attribution.evaluate.lds import lds_by_query

    tables: list[dict[str, np.ndarray]] = [_scores(recipe, seed) for seed in range(models)]
    found = {}
    for name in tables[0]:
        single = [lds_by_query(table[name], bank) for table in tables]
        found[name] = np.mean(single, 0).tolist()
        joint = np.mean([table[name] for table in tables], 0)
        found[f"ensemble {name}"] = lds_by_query(joint, bank).tolist()
    return found


def _scores(recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """Scores [Q, N] of every method on one model."""
    from glasshouse.attribution import EKFAC, LoGra
    from glasshouse.attribution.evaluate import randomised

    rows, _ = train_rows(recipe)
    asked, model = queries(), train_mlp(*rows, seed, recipe)
    found = {}
    for init in INITS:
        for rank in RANKS:
            log = quietly(LoGra(rank, init=init, seed=seed).fit, model, rows)  # type: ignore[arg-type]
            found[f"{init} {rank}"] = log.score(asked, "margin").scores
            if (init, rank) == ("random", RANKS[-1]):
                cosine = log.score(asked, "margin", mode="cosine").scores
                plain = quietly(LoGra(rank, curvature=None, seed=seed).fit, model, rows)
    found[f"random {RANKS[-1]}, cosine"] = cosine
    found[f"random {RANKS[-1]}, no curvature"] = plain.score(asked, "margin").scores
    for strategy in ("ekfac", "identity"):
        method = EKFAC(strategy, seed=seed).fit(model, rows)  # type: ignore[arg-type]
        found[strategy] = method.score(asked, "margin").scores
    shuffled = quietly(LoGra(RANKS[-1], seed=seed).fit, randomised(model), rows)
    found[f"random {RANKS[-1]}, shuffled weights"] = shuffled.score(asked, "margin").scores
    order = rng(seed, "permuted rows").permutation(len(rows[0]))
    for rank in (RANKS[0], RANKS[-1]):
        found[f"random {rank}, rows permuted"] = found[f"random {rank}"][:, order]
    return found


def quietly(act: Any, *args: Any) -> Any:
    """`act(*args)` without the warning that a rank is larger than a layer's side: here it is known."""
    import warnings

    from glasshouse.attribution.logra import RankWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        return act(*args)
