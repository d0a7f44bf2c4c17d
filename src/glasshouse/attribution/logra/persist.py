"""A fitted log on disk, beside its shards: `manifest.json` and one safetensors file of curvature a block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from glasshouse.attribution.logra.curvature import Curvature, Fisher
from glasshouse.attribution.logra.layout import Layout
from glasshouse.attribution.logra.projection import Projection, Projections
from glasshouse.attribution.objectives import ClassLoss, Objective, SquaredLoss, TokenLoss
from glasshouse.attribution.stages.curvature import Factor
from glasshouse.attribution.store import read_tensors, write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError

FORMAT = 1
_OBJECTIVES: tuple[Objective, ...] = (TokenLoss(), ClassLoss(), SquaredLoss())


class LoggedRows:
    """Rows known by their names only: what a log can say about them without the data."""

    def __init__(self, ids: tuple[str, ...], sizes: list[int], sha256: str) -> None:
        self.ids, self.sizes, self.sha256 = ids, sizes, sha256

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Any) -> Any:
        """Raises InputError: the rows themselves are not here."""
        raise InputError("the log was loaded without its rows", fix="pass train_data to load()")


def objective_of(manifest: dict[str, Any]) -> Objective:
    """The training loss by its stored name; InputError for one that is not the house's."""
    name = manifest["objective"]
    found = next((o for o in _OBJECTIVES if o.name == name), None)
    if found is None:
        raise InputError(f"the log was made with the loss {name!r}", fix="pass objective= to load()")
    return found


def save(
    folder: Path,
    layout: Layout,
    factors: dict[str, Curvature],
    projections: Projections | None,
    manifest: dict[str, Any],
) -> Path:
    """Write curvature, measured projections and, last, the manifest."""
    blocks = []
    for k, block in enumerate(layout.blocks):
        one = factors[block.name]
        if isinstance(one, Fisher):
            parts = {"F": one.F}
        elif isinstance(one, Factor):
            parts = {
                key: v for key in ("Lambda", "Qa", "Qs") if (v := getattr(one, key)) is not None
            } | one.extra
        else:
            parts = {"none": torch.zeros(1)}
        blocks.append(f"{k:04d}")
        write_tensors(folder / "factors" / f"{k:04d}.safetensors", parts, {"block": block.name})
    if projections is not None:
        both = {f"{side}/{n}": getattr(p, side) for n, p in projections.items() for side in ("Po", "Pi")}
        write_tensors(folder / "projections.safetensors", both, {})
    names = [block.name for block in layout.blocks]
    about = {"format": FORMAT, "blocks": names, "measured": projections is not None}
    files.write_json(folder / "manifest.json", {**manifest, **about})
    return folder


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Curvature], Projections | None]:
    """Manifest, curvature by block, and projections where they were measured."""
    if not (folder / "manifest.json").exists():
        raise InputError("it holds no fitted log", where=str(folder), fix="give the folder that save() wrote")
    try:
        manifest = files.read_json(folder / "manifest.json")
        names, measured = list(manifest["blocks"]), bool(manifest["measured"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"its manifest.json is damaged ({error})", where=str(folder), fix="fit and save again"
        ) from error
    factors = {}
    for k, name in enumerate(names):
        path = folder / "factors" / f"{k:04d}.safetensors"
        parts, meta = read_tensors(path)
        if meta.get("block") != name:
            raise RunError(f"it belongs to block {meta.get('block')!r}, not {name!r}", where=str(path))
        factors[name] = _curvature(name, parts)
    projections = None
    if measured:
        both, _ = read_tensors(folder / "projections.safetensors")
        names = [key[3:] for key in both if key.startswith("Po/")]
        kept = {n: Projection(n, both[f"Po/{n}"], both[f"Pi/{n}"]) for n in names}
        projections = {n: kept[n] for n in manifest["modules"]}
    return manifest, factors, projections


def _curvature(name: str, parts: dict[str, torch.Tensor]) -> Curvature:
    if "F" in parts:
        return Fisher(name, parts["F"])
    if "Lambda" in parts:
        extra = {key: v for key, v in parts.items() if key in ("la", "ls")}
        return Factor(name, parts["Lambda"], parts.get("Qa"), parts.get("Qs"), extra)
    return None
