"""Factors on disk: `manifest.json` and one safetensors file per module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.store import read_tensors, write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

FORMAT = 1


def save(folder: Path, factors: dict[str, Factor], manifest: dict[str, Any]) -> Path:
    """Write factors, then the manifest: a folder without one is not a fit."""
    for name, factor in factors.items():
        parts = {k: v for k in ("Lambda", "Qa", "Qs") if (v := getattr(factor, k)) is not None}
        write_tensors(folder / "factors" / f"{name}.safetensors", {**parts, **factor.extra}, {"module": name})
    files.write_json(folder / "manifest.json", {"format": FORMAT, **manifest})
    return folder


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Factor]]:
    """Manifest and factors. Raises InputError for a folder that holds no finished fit."""
    if not (folder / "manifest.json").exists():
        raise InputError(
            "it holds no fitted factors", where=str(folder), fix="give the folder that save() wrote"
        )
    try:
        manifest = files.read_json(folder / "manifest.json")
        names = manifest["modules"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"its manifest.json is damaged ({error})", where=str(folder), fix="fit and save again"
        ) from error
    factors = {}
    for name in names:
        parts, _ = read_tensors(folder / "factors" / f"{name}.safetensors")
        extra = {k: v for k, v in parts.items() if k in ("la", "ls")}
        factors[name] = Factor(name, parts.get("Lambda"), parts.get("Qa"), parts.get("Qs"), extra)
    return manifest, factors
