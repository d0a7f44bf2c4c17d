"""Sketches on disk: a manifest, the sketch's own numbers, and the reference's weights where wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from glasshouse.attribution.function_space_distance.graph import Graph
from glasshouse.attribution.function_space_distance.moments import InputMoments
from glasshouse.attribution.function_space_distance.program import Node
from glasshouse.attribution.store import read_tensors, write_tensors
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError

FORMAT = 1


def save(folder: Path, kind: str, about: dict[str, Any], graphs: Mapping[str, Graph], snapshot: bool) -> Path:
    """Write tensors, then the manifest: a folder without one is no sketch."""
    own, start = {}, {}
    for name, graph in graphs.items():
        own |= {f"{name}|moments|{k}": v for k, v in graph.moments.tensors().items()}
        own |= {
            f"{name}|gates|{node}|{k}": v for node, parts in graph.gates.items() for k, v in parts.items()
        }
        start |= {f"{name}|{k}": v for k, v in graph.start.items()}
    write_tensors(folder / "sketch.safetensors", own, {"kind": kind})
    if snapshot:
        write_tensors(folder / "reference.safetensors", start, {"kind": kind})
    shown = {
        name: {
            "nodes": [node.to_json() for node in graph.nodes],
            "shapes": {k: list(v) for k, v in graph.shapes.items()},
            "names": list(graph.moments.names),
            "start": sorted(graph.start),
            "scale": None if graph.scale != graph.scale else graph.scale,
        }
        for name, graph in graphs.items()
    }
    files.write_json(
        folder / "manifest.json",
        {"format": FORMAT, "kind": kind, "graphs": shown, "snapshot": snapshot, **about},
    )
    return folder


def load(
    folder: Path, kind: str, states: Callable[[], dict[str, dict[str, Tensor]]], subject_hash: str | None
) -> tuple[dict[str, Any], dict[str, Graph]]:
    """Manifest and graphs; the reference's weights come from the folder, or from `states()`."""
    manifest = read_manifest(folder, kind)
    if subject_hash is not None and subject_hash != manifest["model_hash"]:
        raise StaleError(
            f"the sketch belongs to model {manifest['model_hash'][:12]}, not to {subject_hash[:12]}",
            where=str(folder), fix="give the reference it was fitted on",
        )  # fmt: skip
    own, _ = read_tensors(folder / "sketch.safetensors")
    if manifest["snapshot"]:
        stored, _ = read_tensors(folder / "reference.safetensors")
    elif subject_hash is None:
        raise InputError(
            "it was saved without the reference's weights", where=str(folder), fix="give the subject, too"
        )
    else:
        stored = {
            f"{name}|{k}": v.detach().clone() for name, part in states().items() for k, v in part.items()
        }
    try:
        graphs = {name: _graph(name, row, own, stored) for name, row in manifest["graphs"].items()}
    except KeyError as error:
        raise InputError(f"it lacks {error}", where=str(folder), fix="fit and save again") from error
    return manifest, graphs


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder that holds a `kind`; InputError for anything else."""
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"it holds no {kind}", where=str(folder), fix="give the folder that save() wrote")
    try:
        manifest: dict[str, Any] = files.read_json(path)
        found = manifest["kind"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"its manifest.json is damaged ({error})", where=str(folder), fix="fit and save again"
        ) from error
    if found != kind:
        raise InputError(f"it holds a {found}, not a {kind}", where=str(folder), fix=f"use {found}.load")
    return manifest


def _graph(name: str, row: Mapping[str, Any], own: dict[str, Tensor], stored: dict[str, Tensor]) -> Graph:
    parts = ("mean", "factor", "diagonal", "weights", "counts")
    moments = InputMoments(*(own[f"{name}|moments|{part}"] for part in parts), tuple(row["names"]))
    gates: dict[str, dict[str, Tensor]] = {}
    for key, value in own.items():
        if key.startswith(f"{name}|gates|"):
            node, stat = key.split("|")[2:]
            gates.setdefault(node, {})[stat] = value
    scale = float("nan") if row["scale"] is None else row["scale"]
    start = {k: stored[f"{name}|{k}"] for k in row["start"]}
    shapes = {k: tuple(v) for k, v in row["shapes"].items()}
    return Graph(tuple(Node.from_json(n) for n in row["nodes"]), shapes, moments, gates, start, scale)
