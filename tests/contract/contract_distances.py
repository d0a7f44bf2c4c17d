"""Function-space distances as `Case`s: each says how far a few moved copies of the subject are."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from check_method import Case
from contract_baselines import _units
from contract_scenes import FAMILIES, Scene, poisoned

from glasshouse.attribution import (
    CoresetDistance,
    EWCDistance,
    FSDSketch,
    GGNDistance,
    L2Distance,
    NTKDistance,
)

SIZES = (0.005, 0.01, 0.02, 0.04)
NO_FINDING = {"a_clean_subject_gives_no_finding": "a distance of two networks is a number, not a finding"}
NO_BATCHES = {"batch_size_changes_nothing": "its rows go through the network at once"}
EKFACS = {
    f"{check} {family}": "its curvature is EK-FAC's, whose cases stand in this table for every family"
    for check in ("disturbed", "bf16")
    for family in FAMILIES
}
NO_DATA = {
    f"{check} {family}": "it knows nothing of the data and compares parameters as they are"
    for check in ("disturbed", "bf16")
    for family in FAMILIES
}


def _case(
    kind: Any, options: dict[str, Any], own: dict[str, Any], apart: dict[str, str], **asked: Any
) -> Case:
    def make() -> Any:
        return kind(**own)

    def fit(method: Any, one: Scene, count: int = 24) -> Any:
        if one.batch and "batch_rows" in options:
            method.batch_rows = one.batch
        return method.fit(one.subject, _units(one, count))

    def answer(method: Any, one: Scene) -> np.ndarray:
        return np.array([method.distance(other, **asked).item() for other in _moved(one)])

    return Case(
        kind.__name__, kind, make, fit, answer, options=options, own=own,
        other=lambda m, one: answer(fit(m, one, 9), one),
        uses=(
            lambda m, one, at: m.distance(one.subject), lambda m, one, at: m.breakdown(one.subject),
            lambda m, one, at: m.numbers(), lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: kind.load(at),
        empty=(lambda one: make().fit(one.subject, []),),
        nan=(
            lambda one: fit(make(), poisoned()),
            lambda one: fit(make(), one).distance(poisoned().subject, **asked),
        ),
        apart={**NO_FINDING, **apart},
    )  # fmt: skip


def _moved(one: Scene) -> list[torch.nn.Module]:
    """Copies of the subject's model at four distances."""
    found = []
    for k, size in enumerate(SIZES):
        model, stream = copy.deepcopy(one.subject.model), torch.Generator().manual_seed(k)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(size * torch.randn(p.shape, generator=stream).to(p))
        found.append(model)
    return found


def distances() -> tuple[Case, ...]:
    """The sketch and its rivals."""
    passes = {"seed": 3, "batch_rows": 7}
    return (
        _case(
            FSDSketch, {"per_class": True, "cov": 5, "approx": True, **passes},
            {"per_class": False, "approx": True, "cov": 8}, {},
        ),
        _case(CoresetDistance, {"size": 11, "seed": 2}, {}, NO_BATCHES, rho="kl"),
        _case(NTKDistance, {"size": 11, "seed": 2}, {}, NO_BATCHES, rho="kl"),
        _case(GGNDistance, {"strategy": "kfac", "rho": "kl", **passes}, {"rho": "kl"}, EKFACS),
        _case(
            EWCDistance, {"fisher": "empirical", **passes}, {}, {**EKFACS, **NO_BATCHES},
        ),
        _case(L2Distance, {}, {}, {**NO_DATA, **NO_BATCHES}),
    )  # fmt: skip
