"""From training rows to curvature: which rows, in which shards, through which passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from glasshouse.attribution.stages import guards
from glasshouse.attribution.stages.curvature import Factor, eigenbasis
from glasshouse.attribution.stages.passes import covariance_shard, lambda_shard, mirrored
from glasshouse.attribution.stages.steps import Job
from glasshouse.attribution.store import Mapper, Store, summed
from glasshouse.attribution.units import Units
from glasshouse.runtime.seeds import rng

Factors = dict[str, Factor]


def factor_rows(n: int, most: int, seed: int) -> list[int]:
    """The rows that curvature is estimated on: all `n`, or `most` of them drawn by `seed`."""
    if n <= most:
        return list(range(n))
    drawn = rng(seed, "factor rows").choice(n, most, replace=False)
    return sorted(int(i) for i in drawn)


def split(units: Units, indices: list[int], shards: int | None, tokens: int) -> list[list[int]]:
    """`shards` contiguous pieces, or as many as pieces of about `tokens` need."""
    lengths = units.sizes  # a property: asked once, not once a row
    sizes = [lengths[i] for i in indices] if shards is None else []
    pieces = shards or max(1, -(-sum(sizes) // tokens))
    size = -(-len(indices) // min(pieces, len(indices)))
    return [indices[k : k + size] for k in range(0, len(indices), size)]


def covariances(job: Job, shards: list[list[int]], mapper: Mapper, kept: Store | None) -> dict[str, Tensor]:
    """Sums of a a^T and g g^T of every module (see `covariance_shard`)."""
    total = summed("covariance", partial(covariance_shard, job), shards, mapper, kept)
    _refuse_nan(total, job, shards)
    return total


def bases(total: dict[str, Tensor], names: tuple[str, ...], strategy: str, kept: Store | None) -> Factors:
    """Eigenvectors of A and S; K-FAC is then complete. Kept on disk, since their signs are arbitrary."""
    factors = {}
    for name in names:
        found = kept.read(f"basis-{name}") if kept is not None else None
        if found is not None:
            parts = found[0]
        else:
            count = float(total[f"count/{name}"])
            la, Qa = eigenbasis(mirrored(total[f"A/{name}"]) / count, f"module {name!r}, inputs")
            ls, Qs = eigenbasis(mirrored(total[f"S/{name}"]) / count, f"module {name!r}, gradients")
            parts = {"la": la, "ls": ls, "Qa": Qa, "Qs": Qs}
            if kept is not None:
                kept.write(f"basis-{name}", parts)
        values = {"la": parts["la"], "ls": parts["ls"]}
        Lambda = torch.outer(parts["ls"], parts["la"]) if strategy == "kfac" else None
        factors[name] = Factor(name, Lambda, parts["Qa"], parts["Qs"], values)
    return factors


def corrected(
    job: Job, factors: Factors, shards: list[list[int]], mapper: Mapper, kept: Store | None
) -> Factors:
    """The same bases with the mean squared layer gradient of a row as eigenvalues."""
    bare = {n: Factor(n, None, f.Qa, f.Qs) for n, f in factors.items()}
    total = summed("lambda", partial(lambda_shard, job, bare), shards, mapper, kept)
    _refuse_nan(total, job, shards)
    rows = sum(len(shard) for shard in shards)
    return {n: Factor(n, total[f"Lambda/{n}"] / rows, f.Qa, f.Qs, f.extra) for n, f in factors.items()}


@contextmanager
def clocked(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note this process's CPU seconds of a stage."""
    start = time.process_time()
    try:
        yield
    finally:
        seconds[stage] = time.process_time() - start


def _refuse_nan(total: dict[str, Tensor], job: Job, shards: list[list[int]]) -> None:
    """Sums that are not finite send us back over the rows to name the culprit."""
    for value in total.values():
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(torch.triu(value)).all()):
            guards.locate_nan(job, [i for shard in shards for i in shard])
