"""Reading the `manifest.json` of a saved method: in one sentence what is wrong with it, or what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

NEEDED = ("options", "model_hash", "data_hash")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest that a method's `save` wrote. Raises InputError where there is none, or a damaged one."""
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError("it holds no saved method", where=str(folder), fix="give the folder save() wrote")
    try:
        found: dict[str, Any] = files.read_json(path)
        for name in NEEDED:
            found[name]
    except (ValueError, KeyError, TypeError) as error:  # JSON and Unicode errors are ValueErrors
        raise InputError(
            f"its manifest.json is damaged ({error})", where=str(folder), fix="fit and save again"
        ) from error
    return found
