"""The curvature of a segment: averaged A and S, one eigenbasis, Lambda refitted at each checkpoint in it.

Eigenvalues of different checkpoints live in different bases and must not be averaged; A and S may be
(Bae et al. 2024, section 4). One checkpoint is in memory at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.checkpoints import Checkpoint, put
from glasshouse.attribution.source.moments import step_sizes
from glasshouse.attribution.source.spectral import rank_one_root
from glasshouse.attribution.stages import fitting
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Store

Tensors = dict[str, Tensor]


class Working:
    """One copy of the model that takes the weights of a checkpoint when they are needed."""

    def __init__(self, model: nn.Module, checkpoints: Sequence[Checkpoint]) -> None:
        self._final, self._checkpoints = model, checkpoints
        self.model = copy.deepcopy(model).eval()
        self._holds: int | None = None

    def load(self, k: int) -> nn.Module:
        """The copy with the weights of checkpoint `k`."""
        if self._holds != k:
            checkpoint = self._checkpoints[k]
            if checkpoint.weights is None:  # the subject's own, which the copy may have lost
                checkpoint = replace(checkpoint, weights=self._final)
            put(self.model, checkpoint)
            self._holds = k
        return self.model

    def at(self, k: int, mapper: Mapper) -> Mapper:
        """`mapper`, loading checkpoint `k` only when there is work to do."""
        return _Loading(self, k, mapper)


@dataclass(frozen=True)
class _Loading:
    working: Working
    k: int
    mapper: Mapper

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        self.working.load(self.k)
        yield from self.mapper.map(fn, shards)


@dataclass(frozen=True)
class SegmentFit:
    """What fitting one segment needs besides its jobs."""

    working: Working
    mapper: Mapper
    shards: list[list[int]]
    jobs: dict[int, Job]
    stores: dict[int, Store | None]
    basis: Store | None
    clock: Callable[[str], Any]


def averaged(fit: SegmentFit) -> Tensors:
    """Sums of a a^T and g g^T over all checkpoints of the segment; counts add up with them."""
    total: Tensors | None = None
    for k, job in fit.jobs.items():
        with fit.clock("covariance"):
            part = fitting.covariances(job, fit.shards, fit.working.at(k, fit.mapper), fit.stores[k])
        total = part if total is None else {key: value.add_(part[key]) for key, value in total.items()}
    assert total is not None
    return total


def segment_factors(fit: SegmentFit, names: tuple[str, ...]) -> dict[str, Factor]:
    """Eigenbasis of the averaged A and S, with Lambda in it averaged over checkpoints (and rows)."""
    total = averaged(fit)
    with fit.clock("eigen"):
        factors = fitting.bases(total, names, "ekfac", fit.basis)
    return _refitted(fit, factors)


def metric_factors(
    fit: SegmentFit, names: tuple[str, ...], roots: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Factor]:
    """The same for gradients scaled by `left right^T`; `Qa`, `Qs` hold the scale times eigenvectors.

    Scaling pairs scales A and S, so no pass over the data is added.
    """
    total = averaged(fit)
    for name, (left, right) in roots.items():
        total[f"A/{name}"] *= torch.outer(right, right)
        total[f"S/{name}"] *= torch.outer(left, left)
    with fit.clock("eigen"):
        plain = fitting.bases(total, names, "ekfac", fit.basis)
    scaled = {}
    for name, f in plain.items():
        assert f.Qa is not None and f.Qs is not None
        left, right = roots[name]
        scaled[name] = Factor(name, None, right[:, None] * f.Qa, left[:, None] * f.Qs)
    return _refitted(fit, scaled)


def mean_step_sizes(
    checkpoints: Sequence[Checkpoint], members: Sequence[int], model: nn.Module, names: tuple[str, ...]
) -> Tensors:
    """Adam's P of each module, averaged over the segment's checkpoints."""
    total: Tensors = {}
    for k in members:
        for name, P in step_sizes(checkpoints[k], model, names).items():
            total[name] = P / len(members) + total.get(name, 0)
    return total


def roots_of(P: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Rank-one square roots of every module's P."""
    return {name: rank_one_root(value) for name, value in P.items()}


def _refitted(fit: SegmentFit, factors: dict[str, Factor]) -> dict[str, Factor]:
    share: float = 1 / len(fit.jobs)
    total: Tensors = {}
    for k, job in fit.jobs.items():
        with fit.clock("lambda"):
            mapper = fit.working.at(k, fit.mapper)
            found = fitting.corrected(job, factors, fit.shards, mapper, fit.stores[k])
        for name, factor in found.items():
            assert factor.Lambda is not None
            total[name] = factor.Lambda * share + total.get(name, 0)
    return {n: replace(f, Lambda=total[n]) for n, f in factors.items()}


@contextmanager
def added(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add this process's CPU seconds of the block to those of the stage."""
    found: dict[str, float] = {}
    with fitting.clocked(found, stage):
        yield
    seconds[stage] = seconds.get(stage, 0.0) + found[stage]
