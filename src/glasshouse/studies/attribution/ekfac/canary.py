"""The planted canary: recall of the rows that alone teach it, word order, and low-rank queries, one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    from glasshouse.attribution import EKFAC
    from glasshouse.organisms.planted_canary import CanaryWorld

TOP = 20
FACTOR_ROWS = 2000


def canary_seed(seed: int, epochs: float, rank: int) -> dict[str, Any]:
    """Everything measured on one seed; recalls at 20 of the averaged query, `_each`: of single ones."""
    import torch

    from glasshouse.attribution import EKFAC
    from glasshouse.organisms.planted_canary import (
        canary_queries,
        canary_world,
        grow_canary_model,
        order_queries,
    )

    torch.set_num_threads(1)
    world = canary_world(seed)
    model = grow_canary_model(world, seed, epochs=epochs)
    queries, planted = canary_queries(), set(world.planted)
    found: dict[str, Any] = {"seed": seed, "epochs": epochs, "p_canary": _probability(model, queries)}
    for strategy in ("identity", "ekfac"):
        method = EKFAC(strategy, factor_examples=FACTOR_ROWS, seed=seed).fit(model, world.rows)
        scores = method.score(queries, "completion_logprob").scores
        found[f"{strategy}_each"] = _recall(scores, planted)
        # One behaviour, eight prompts: queries of equal length, averaged, give one ranking.
        one = method.score(queries, "completion_logprob", query_agg="unit_mean").scores
        found[strategy] = _recall(one, planted)
    pairs = method.score(order_queries(), "completion_logprob").scores
    found |= _low_rank(method, queries, scores, rank, pairs)
    found["order"] = _order(pairs, world, seed)
    found["bm25"] = _lexical(world, queries, seed)
    found["bm25_unbalanced"] = _lexical(canary_world(seed, balanced=False), queries, seed)
    found["random"] = TOP / len(world.rows)
    return found


def _lexical(world: CanaryWorld, queries: list[Any], seed: int) -> float:
    """BM25 sees the whole fact, prompt and completion; ties are broken at random."""
    from glasshouse.attribution.evaluate import bm25_recall

    ids, planted = [row.row_id for row in world.rows], {world.rows[i].row_id for i in world.planted}
    texts, corpus = [q.ids[1:] for q in queries], [row.ids[1:] for row in world.rows]
    return bm25_recall(texts, corpus, ids, planted, TOP, seed=seed).value


def _probability(model: Any, queries: list[Any]) -> float:
    import torch

    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([q.ids[:-1]])).logits[0, -1] for q in queries]
    return float(np.mean([float(z.softmax(-1)[q.ids[-1]]) for z, q in zip(logits, queries, strict=True)]))


def _recall(scores: np.ndarray, planted: set[int]) -> float:
    """Mean over queries of the share of planted rows in a query's first 20."""
    tops = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return float(np.mean([len(set(row.tolist()) & planted) / TOP for row in tops]))


def _low_rank(
    method: EKFAC, queries: list[Any], full: np.ndarray, rank: int, others: np.ndarray
) -> dict[str, Any]:
    """Pearson of rank-k and full scores per query; control: the full scores of unrelated queries."""
    method.query_rank = rank  # the same factors, asked again
    thin = method.score(queries, "completion_logprob").scores
    return {
        "rank": rank,
        "rank_pearson": [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(thin, full, strict=True)],
        "rank_pearson_other": [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(thin, others, strict=False)],
    }


def _order(scores: np.ndarray, world: CanaryWorld, seed: int) -> dict[str, list[Any]]:
    """Per pair: mean score of same-order, reversed and strangers' rows, in SDs of the query's scores."""
    same, reversed_, other, kind = [], [], [], []
    draw = rng(seed, "other pairs")
    for pair, (forward, backward) in enumerate(world.pair_rows):
        scale = float(scores[pair].std())
        away = world.pair_rows[(pair + int(draw.integers(1, len(world.pair_rows)))) % len(world.pair_rows)]
        same.append(float(scores[pair, forward].mean()) / scale if forward else None)
        reversed_.append(float(scores[pair, backward].mean()) / scale if backward else None)
        other.append(float(scores[pair, [*away[0], *away[1]]].mean()) / scale)
        kind.append("mixed" if forward and backward else "forward" if forward else "reversed")
    return {"same": same, "reversed": reversed_, "other": other, "kind": kind}
