"""Tensors and settings of lenses on disk; whatever is damaged is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Write tensors atomically as safetensors."""
    from safetensors.torch import save

    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    # One entry: safetensors writes several in any order, and the same lens should be the same bytes.
    files.write_bytes(path, save(plain, {"about": json.dumps(meta, sort_keys=True)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises RunError for a missing or damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            about = json.loads((handle.metadata() or {}).get("about", "{}"))
            return {key: handle.get_tensor(key) for key in handle.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise RunError(f"it is damaged or missing ({error})", where=str(path), fix="make it again") from error


def read_settings(path: Path, *, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object that holds `keys`. Raises InputError for a file that is missing, cut, or not one."""
    try:
        found = files.read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"it is no readable settings file ({type(error).__name__})", where=str(path), fix="save again"
        ) from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing or not isinstance(found, dict):
        raise InputError(f"it lacks {', '.join(missing)}", where=str(path), fix="give a saved lens")
    return found
