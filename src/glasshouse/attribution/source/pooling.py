"""Rows of several stages side by side, each row once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glasshouse.attribution.units import TensorUnits, TokenUnits, Units
from glasshouse.runtime.errors import InputError


def pooled(stages: Mapping[str, Units]) -> Units:
    """All rows of all stages, each once.

    Raises InputError for an id that names different rows in two stages, and for kinds of rows that cannot be
    put side by side.
    """
    parts = list(stages.values())
    if len(parts) == 1:
        return parts[0]
    seen: dict[str, tuple[str, int]] = {}
    for stage, units in stages.items():
        for i, name in enumerate(units.ids):
            first, j = seen.setdefault(name, (stage, i))
            if first != stage and _content(units, i) != _content(stages[first], j):
                raise InputError(
                    f"the id {name!r} names one row in stage {first!r} and another in {stage!r}",
                    where="stage_data", fix="give rows ids that are their own in all stages",
                )  # fmt: skip
    fresh = [[i for i, n in enumerate(u.ids) if seen[n][0] == stage] for stage, u in stages.items()]
    return _joined(parts, fresh)


def _joined(parts: list[Any], fresh: list[list[int]]) -> Units:
    kept = [part.subset(rows) for part, rows in zip(parts, fresh, strict=True) if rows]
    if all(isinstance(part, TokenUnits) for part in kept):
        rows = [row for part in kept for row in part.rows]
        return TokenUnits(rows, side=kept[0].side, pad_id=kept[0].pad_id)
    if all(isinstance(part, TensorUnits) for part in kept):
        ids = [name for part in kept for name in part.ids]
        inputs, targets = ([getattr(part, key) for part in kept] for key in ("inputs", "targets"))
        return TensorUnits(torch.cat(inputs), torch.cat(targets), ids)
    raise InputError("stages hold different kinds of rows", where="stage_data", fix="give all of one kind")


def _content(units: Any, i: int) -> Any:
    if isinstance(units, TokenUnits):
        return units.rows[i].ids, units.rows[i].labels
    if isinstance(units, TensorUnits):
        return units.inputs[i].tolist(), units.targets[i].tolist()
    raise InputError("rows of this kind cannot come in stages", fix="give TokenUnits or TensorUnits")
