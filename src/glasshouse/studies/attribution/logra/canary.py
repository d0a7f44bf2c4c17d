"""The planted canary for LoGra: recall of the rows that alone teach it, with and without gibberish lines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    from glasshouse.organisms.planted_canary import CanaryWorld

TOP = 20
FACTOR_ROWS = 2000
LOW = 1e-3
"""The share of the mean eigenvalue that damps the Fisher matrix of the claims; chosen on seeds 7 and 8."""


def canary_seed(seed: int, rank: int, outliers: int) -> dict[str, Any]:
    """Recall at 20 of the averaged query, by method, without and with `outliers` gibberish rows."""
    import torch

    from glasshouse.attribution import EKFAC
    from glasshouse.organisms.planted_canary import canary_queries, canary_world, grow_canary_model

    torch.set_num_threads(1)
    world = canary_world(seed)
    noisy = replace(world, rows=[*world.rows, *gibberish(seed, outliers)])
    asked, planted = canary_queries(), set(world.planted)
    found: dict[str, Any] = {"seed": seed, "random": TOP / len(world.rows)}
    for arm, one in (("clean", world), ("outliers", noisy)):
        model = grow_canary_model(one, seed)
        found[arm] = _recalls(model, one, asked, planted, seed, rank)
        if arm == "clean":
            method = EKFAC(factor_examples=FACTOR_ROWS, seed=seed).fit(model, world.rows)
            scores = method.score(asked, "completion_logprob", query_agg="unit_mean").scores[0]
            found["ekfac"] = _recall(scores, planted)[0]
    return found


def gibberish(seed: int, count: int) -> list[TokenRow]:
    """Lines of eleven random words: high loss and, at the end of training, the largest gradients."""
    from glasshouse.organisms.planted_canary import LENGTH, VOCABULARY

    draw = rng(seed, "gibberish")
    rows = []
    for i in range(count):
        words = draw.integers(7, len(VOCABULARY), LENGTH - 1).tolist()
        rows.append(TokenRow((0, *words), (IGNORE, *words), f"gibberish {i}"))
    return rows


def _recalls(
    model: Any, world: CanaryWorld, asked: list[Any], planted: set[int], seed: int, rank: int
) -> dict[str, Any]:
    from glasshouse.attribution import LoGra

    known = len(world.kinds)
    found: dict[str, Any] = {}
    for name, r, curvature in (
        (f"raw {rank}", rank, "raw"),
        (f"ekfac {rank}", rank, "ekfac"),
        (f"raw {2 * rank}", 2 * rank, "raw"),
    ):
        log = LoGra(r, curvature=curvature, seed=seed).fit(model, world.rows)  # type: ignore[arg-type]
        for share in (0.1, LOW) if curvature == "raw" else (0.1,):
            log.damping_share = share
            for mode in ("dot", "cosine"):
                scores = log.score(
                    asked,
                    "completion_logprob",
                    query_agg="unit_mean",
                    mode=mode,  # type: ignore[arg-type]
                ).scores[0]
                recall, top = _recall(scores, planted)
                key = f"{name}, damping {share:g}, {mode}"
                found[key], found[f"{key}: gibberish"] = recall, int((top >= known).sum())
    return found


def _recall(scores: np.ndarray, planted: set[int]) -> tuple[float, np.ndarray]:
    """The share of planted rows among the first 20, and these."""
    top = np.argsort(-scores, kind="stable")[:TOP]
    return len(set(top.tolist()) & planted) / TOP, top
