"""Controls that a broken method fails: scores must depend on the model and on the query."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, seeded
from glasshouse.statistics.estimate import Estimate


def randomised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy whose weights were shuffled within each tensor: same statistics, nothing learned."""
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            generator = torch.Generator().manual_seed(derive(seed, "randomise", name))
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return fresh


def randomised_agreement(trained: ScoreTable, random: ScoreTable, *, seed: int = 0) -> Estimate:
    """Mean Spearman per query between a trained and a randomised model's scores; should lie near 0."""
    from glasshouse.attribution.evaluate.lds import _mean, _spearman_columns

    if trained.train_ids != random.train_ids or trained.query_ids != random.query_ids:
        raise InputError("the two tables score different rows or queries")
    a, b = trained.dense(0.0).astype(np.float64), random.dense(0.0).astype(np.float64)
    return _mean(_spearman_columns(a.T, b.T), seed)


def top_overlap(table: ScoreTable, k: int = 20) -> float:
    """Mean share of the top k that two queries have in common; a method that ignores the query gives 1."""
    tops = [{row for row, _ in table.top(q, k)} for q in range(len(table.query_ids))]
    pairs = list(combinations(tops, 2))
    if not pairs:
        raise InputError("overlap needs at least two queries")
    return float(np.mean([len(a & b) / min(len(a), len(b)) for a, b in pairs]))


def seeded_init(build: Any, seed: int = 0) -> nn.Module:
    """A freshly built model under a named seed: the other way to randomise."""
    with seeded(seed, "init"):
        model: nn.Module = build()
    return model.eval()
