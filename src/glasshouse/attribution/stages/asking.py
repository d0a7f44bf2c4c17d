"""From a question to a table: queries, their measurement, the names and numbers of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.scores import ScoreTable
from glasshouse.attribution.stages.scoring import QueryAgg
from glasshouse.attribution.units import TokenUnits, Units, as_units
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, NumericalError


class OneRow:
    """One row of some units, for naming its tokens."""

    def __init__(self, rows: Units, at: int) -> None:
        self.ids, self.sizes = (rows.ids[at],), [rows.sizes[at]]


def asked_units(queries: Any, unwanted: Any, query_agg: QueryAgg, tokenizer: Any) -> Units:
    """The queries as units; for "contrast" the unwanted completions follow the wanted ones."""
    asked = as_units(queries, tokenizer=tokenizer)
    if (unwanted is not None) != (query_agg == "contrast"):
        raise InputError('unwanted= and query_agg="contrast" belong together', fix="give both or neither")
    return asked if unwanted is None else _stacked(asked, as_units(unwanted, tokenizer=tokenizer))


def usual_measurement(asked: Units) -> str:
    """What "auto" means for these queries."""
    if isinstance(asked, TokenUnits):
        return "completion_logprob"
    batch = asked.batch([0])
    if hasattr(batch, "labels"):
        return "completion_logprob"
    return "output" if batch.targets.is_floating_point() else "margin"


def name_of(f: Any) -> str:
    """What a measurement or loss calls itself."""
    return str(getattr(f, "name", None) or getattr(f, "__name__", type(f).__name__))


def position(key: int | str, names: Sequence[str], what: str) -> int:
    """The index of a row or query given by index or name."""
    if isinstance(key, int):
        return key
    if key not in names:
        raise InputError(f"no {what} is called {key!r}")
    return names.index(key)


def table(
    parts: list[dict[str, Tensor]],
    rows: Units | OneRow,
    ids: tuple[str, ...],
    *,
    n: int,
    tokens: bool,
    meta: dict[str, Any],
) -> ScoreTable:
    """Shards joined, divided by the number of training rows `n` and by the rows' norms where asked for."""
    norms = torch.cat([p["norms"] for p in parts]) if "norms" in parts[0] else torch.ones(())
    joined = {
        key: (torch.cat([p[key] for p in parts], 1) / n / norms.clamp_min(1e-30)).numpy()
        for key in parts[0]
        if key != "norms"
    }
    scores = finite(joined.pop("scores"), "scores")
    modules = {key.removeprefix("module/"): part for key, part in joined.items()}
    names = tuple(_token_names(rows)) if tokens else tuple(rows.ids)
    return ScoreTable(scores, ids, names, meta, per_module=modules)


def finite(values: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """`values`, or NumericalError."""
    if not np.isfinite(values).all():
        raise NumericalError(f"{what} hold NaN or infinity", fix="raise the damping")
    return values


def _token_names(rows: Units | OneRow) -> list[str]:
    return [f"{name}#{t}" for name, size in zip(rows.ids, rows.sizes, strict=True) for t in range(size)]


def _stacked(wanted: Units, unwanted: Units) -> Units:
    if len(wanted) != len(unwanted):
        raise InputError(f"{len(wanted)} wanted but {len(unwanted)} unwanted completions", fix="give pairs")
    if not isinstance(wanted, TokenUnits) or not isinstance(unwanted, TokenUnits):
        raise InputError("contrast is for token rows", fix="use logprob_difference for classes")
    rows = [TokenRow(r.ids, r.labels, i) for r, i in zip(wanted.rows, wanted.ids, strict=True)]
    rows += [TokenRow(r.ids, r.labels, f"not {i}") for r, i in zip(unwanted.rows, wanted.ids, strict=True)]
    return TokenUnits(rows, side=wanted.side, pad_id=wanted.pad_id)
