"""Small documents that people write by hand: one mapping in YAML or JSON, read without executing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glasshouse.runtime.errors import InputError

MOST_BYTES = 1_000_000
"""A longer file is not one that a person wrote by hand."""

DEEPEST = 50
"""YAML is read in time that grows with the square of its depth."""


def read_document(path: Path | str) -> dict[str, Any]:
    """The mapping in a `.json`, `.yaml` or `.yml` file.

    Raises InputError for a file that is missing, longer than a megabyte, not UTF-8, malformed (with its
    line), or that holds anything but one mapping. YAML is read by its safe loader; anchors are refused, since
    a few of them can stand for a file of any size.
    """
    file = Path(path).expanduser()
    try:
        with open(file, "rb") as handle:
            data = handle.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("the file is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise InputError(
            f"the file cannot be read ({error.strerror})", where=str(path), fix="give a YAML or JSON file"
        ) from None
    if len(data) > MOST_BYTES:
        raise InputError("the file is longer than 1 MB", where=str(path), fix="give only the fields needed")
    found = _json(text, path) if file.suffix.lower() == ".json" else _yaml(text, path)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError("the file is not one mapping of names to values", where=str(path))
    return found


def _json(text: str, path: Path | str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InputError(f"this is not JSON ({said})", where=f"{path}{line}") from None


def _yaml(text: str, path: Path | str) -> Any:
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError("the file uses YAML anchors", where=str(path), fix="write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError(f"the file nests deeper than {DEEPEST} levels", where=str(path))
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        said = getattr(error, "problem", None) or "nested too deeply"
        raise InputError(f"this is not YAML ({said})", where=f"{path}{line}") from None
