"""A model's folder as the hub keeps it, read without loading a tensor or running a line of what it holds.

`training_args.bin` is a pickle: its name is noted, it is never opened. Of safetensors files only the
header is read (8 bytes of length, then JSON). Nothing is guessed: what is not there stays unknown.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Source, Subject
from glasshouse.governance._errors import CardError
from glasshouse.governance._markdown import split_readme
from glasshouse.governance._plain import parse_json, read_text
from glasshouse.governance._sources import file_source
from glasshouse.runtime.errors import InputError

JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json",
    "trainer_state.json", "training_args.json", "preprocessor_config.json",
)  # fmt: skip
LICENSE_NAMES = ("license", "licence", "copying", "unlicense")
HEADER_LIMIT = 100_000_000
HEADER_SPARE = 5_000_000
"""Headers up to here are parsed; a larger one is refused rather than held in memory as objects."""


@dataclass(frozen=True)
class Weights:
    """What safetensors headers tell: files, parameters, and parameters by dtype."""

    files: tuple[str, ...]
    parameters: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class HubFolder:
    """What can be read of a model's folder."""

    path: Path
    names: frozenset[str]
    front: Mapping[str, Any] = field(default_factory=dict)
    body: str = ""
    json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File name -> its content, for those of `JSON_FILES` that are there."""
    licenses: Mapping[str, str] = field(default_factory=dict)
    """File name -> text of licence files."""
    weights: Weights | None = None
    revision: str | None = None

    @property
    def card_path(self) -> Path:
        """The README."""
        return self.path / "README.md"

    def source(self, name: str, quote: str = "", *, hashed: bool = True) -> Source:
        """A source for one of its files; the README is quoted, since writing a card into it changes it."""
        return file_source(
            self.path / name, base=self.path, quote=quote, hashed=hashed and name != "README.md"
        )

    def said(self, key: str) -> Source:
        """A source for a key of the front matter: the line that says it."""
        readme = self.card_path.read_text(encoding="utf-8", errors="replace")
        line = next((line for line in readme.splitlines() if line.startswith(f"{key}:")), "")
        return self.source("README.md", quote=line.strip())

    def subject(self) -> Subject:
        """Name, base models and revision as the folder tells them."""
        bases = _names(self.front.get("base_model")) or _names(
            self.json.get("adapter_config.json", {}).get("base_model_name_or_path")
        )
        named = self.front.get("model_name")
        return Subject(
            name=named if isinstance(named, str) and named else self.path.resolve().name or "model",
            revision=self.revision,
            base_models=[base[:300] for base in bases],
        )


def read_folder(path: Path | str, *, revision: str | None = None) -> HubFolder:
    """What a local folder tells. Raises CardError naming file and line for what cannot be read."""
    root = Path(path)
    if not root.is_dir():
        raise CardError.of("E-READ", "there is no such folder", where=str(path), fix="give a model's folder")
    names = frozenset(child.name for child in root.iterdir())
    front, body = _readme(root) if "README.md" in names else ({}, "")
    found = {}
    for name in JSON_FILES:
        if name in names:
            data = parse_json(read_text(root / name, limit=50_000_000), where=str(root / name))
            found[name] = data if isinstance(data, dict) else {}
    texts = {
        name: read_text(root / name)
        for name in sorted(names)
        if name.lower().split(".")[0].split("-")[0] in LICENSE_NAMES and (root / name).is_file()
    }
    return HubFolder(root, names, front, body, found, texts, read_weights(root), revision)


def open_repo(source: Path | str, *, revision: str | None = None, online: bool = False) -> HubFolder:
    """A folder, or a hub id out of the local cache; the hub itself only when `online` asks for it.

    Weights are not downloaded. Raises CardError when the id is not in the cache and `online` is off.
    """
    if Path(source).is_dir():
        return read_folder(source, revision=revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.md", "*.json", "LICENSE*", "LICENCE*", "COPYING*"]
    try:
        place = snapshot_download(
            str(source), revision=revision, allow_patterns=wanted, local_files_only=not online
        )  # fmt: skip
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise CardError.of(
            "E-READ", "it is no folder, and not in the local cache of the hub" if not online else str(error),
            where=str(source), fix="give a folder, or ask for the hub with --online",
        ) from error  # fmt: skip
    return read_folder(place, revision=Path(place).name if len(Path(place).name) == 40 else revision)


def read_weights(root: Path) -> Weights | None:
    """Parameter counts from the headers of every *.safetensors in a folder; None where there is none."""
    paths = sorted(root.glob("*.safetensors"))
    if not paths:
        return None
    dtypes: dict[str, int] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name != "__metadata__":
                dtype, count = _tensor(path, name, entry)
                dtypes[dtype] = dtypes.get(dtype, 0) + count
    return Weights(tuple(path.name for path in paths), sum(dtypes.values()), dtypes)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises CardError for a file that is none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            start = handle.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise CardError.of("E-PARSE", "this is no safetensors file", where=str(path))
            if length > HEADER_SPARE:
                raise CardError.of("E-SIZE", f"its header has {length:,} bytes", where=str(path))
            text = handle.read(length).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError.of("E-READ", f"its header cannot be read ({error})", where=str(path)) from error
    data = _header_json(text, path)
    if not isinstance(data, dict):
        raise CardError.of("E-PARSE", "its header is no map", where=str(path))
    return data


def _header_json(text: str, path: Path) -> Any:
    import json

    # Tens of thousands of tensors are usual, so the bounds of cards do not apply; it is flat by format.
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError.of("E-PARSE", "its header is no JSON", where=str(path)) from error


def _tensor(path: Path, name: str, entry: Any) -> tuple[str, int]:
    count = 1
    try:
        for axis in entry["shape"]:
            if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < 2**63:
                raise ValueError
            count *= axis
        dtype = entry["dtype"]
        if not isinstance(dtype, str) or len(dtype) > 20:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise CardError.of("E-PARSE", f"the tensor {name[:60]!r} has no shape", where=str(path)) from error
    return dtype, count


def _readme(root: Path) -> tuple[Mapping[str, Any], str]:
    path = root / "README.md"
    try:
        readme = split_readme(read_text(path))
        return readme.data, readme.body
    except InputError as error:
        code = error.code if isinstance(error, CardError) else "E-PARSE"
        raise CardError.of(code, error.what, where=str(path), fix="repair the front matter") from error


def _names(value: Any) -> list[str]:
    if isinstance(value, str) and value:
        return [value]
    return [item for item in value if isinstance(item, str) and item] if isinstance(value, list) else []
