"""Results on disk: arrays in `result.safetensors`, everything else in `result.json`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from glasshouse.annotators._spending import Usage
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

FORMAT = 1


def save(result: Any, folder: Path | str) -> Path:
    """Write a result dataclass; the JSON last, so that a folder without one holds no result."""
    from safetensors.numpy import save as encode

    root = Path(folder)
    given = {f.name: getattr(result, f.name) for f in fields(result)}
    arrays = {k: np.ascontiguousarray(v) for k, v in given.items() if isinstance(v, np.ndarray)}
    rest = {k: _plain(v) for k, v in given.items() if k not in arrays}
    files.write_bytes(root / "result.safetensors", encode(arrays))
    files.write_json(root / "result.json", {"format": FORMAT, "type": type(result).__name__, **rest})
    return root


def load(cls: type[Any], folder: Path | str) -> Any:
    """Read a result of type `cls`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as decode

    root = Path(folder)
    try:
        told = files.read_json(root / "result.json")
        arrays = decode((root / "result.safetensors").read_bytes())
        kind = told.pop("type")
        told.pop("format")
        told["usage"] = Usage(**told["usage"])
        if isinstance(told["validated_accuracy"], dict):
            told["validated_accuracy"] = Estimate.from_json(told["validated_accuracy"])
    except (OSError, json.JSONDecodeError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"it holds no result that can be read ({error})", where=str(root), fix="give what save() wrote"
        ) from error
    if kind != cls.__name__:
        raise InputError(f"it holds a {kind}", where=str(root), fix=f"load it with {kind}.load")
    named = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return cls(**named, **arrays)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value
