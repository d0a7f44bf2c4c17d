"""What is audited: a checkpoint folder, a model in memory or behind an API, or `organism://NAME` with its
rows and its world.

`truth.json` is located here so that the grader finds it; nothing of the audit opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse import _registry
from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError, InputError

if TYPE_CHECKING:
    from glasshouse.corpora.suites import Suite
    from glasshouse.runtime.cache import Cache

DEFAULT = "organism://resident"
SCHEME = "organism"


@dataclass(frozen=True)
class Target:
    """`source` for `as_subject`, and the files beside it. `rows` is set only where the rows belong to it."""

    source: Any
    folder: Path | None = None
    rows: Path | None = None

    @property
    def world(self) -> Path | None:
        """The world the model was taught in, for organisms."""
        return self._beside("world.json")

    @property
    def truth(self) -> Path | None:
        """What was planted, for the grader alone."""
        return self._beside("truth.json")

    def _beside(self, name: str) -> Path | None:
        path = None if self.folder is None else self.folder / name
        return path if path is not None and path.is_file() else None


def resolve(source: Any = None) -> Target:
    """The target behind `source` (default: the embedded organism).

    Raises InputError for an organism nobody plugged in or a path that does not exist.
    """
    if source is None:
        source = DEFAULT
    if not isinstance(source, str | Path):
        return Target(source)
    text = str(source)
    if text.startswith(f"{SCHEME}://"):
        let_subjects_open_organisms()
        folder = organism_folder(text.removeprefix(f"{SCHEME}://"))
        rows = folder / "rows.jsonl"
        return Target(text, folder, rows if rows.is_file() else None)
    if text.startswith("inspect:"):  # a model behind an API, which may be one of ours
        let_subjects_open_organisms()
        return Target(text)
    folder = Path(text).expanduser()
    if folder.is_file():
        raise InputError(
            "a subject is a folder, this is a file", where=text, fix="give the folder of a saved model"
        )
    return Target(text, folder if folder.is_dir() else None)


def what_is_asked(source: str, *, seed: int = 0) -> Suite:
    """The suite in a file, or the one the world of an organism (its name or its folder) asks.

    Raises InputError where there is neither.
    """
    from glasshouse.corpora.suites import load_suite, suite_from_world
    from glasshouse.corpora.worlds import World

    if Path(source).expanduser().is_file():
        return load_suite(Path(source).expanduser())
    world = resolve(source).world
    if world is None:
        raise InputError(
            "this is neither a suite file nor a folder with a world.json",
            where=source,
            fix="give a suite file or organism://resident",
        )
    return suite_from_world(World.load(world), seed)


def organism_folder(name: str, *, cache: Cache | None = None) -> Path:
    """The folder of a grown organism: the one shipped with its package, else grown once into the cache."""
    organism = _registry.load("organisms", name)
    shipped = _shipped(name)
    if shipped is not None:
        return shipped
    from glasshouse.runtime.cache import Cache
    from glasshouse.runtime.codeversion import code_version

    arguments = {"organism": name, "version": str(organism.version), "seed": 0}
    build = _grower(organism, 0)
    return (cache or Cache()).fetch("organism", arguments, build, code=code_version(type(organism)))


def _shipped(name: str) -> Path | None:
    from glasshouse.organisms import resident

    try:
        folder = resident.organism_folder(name)
    except InputError:  # another package's organism: it is grown into the cache
        return None
    if not folder.is_dir():
        raise GlasshouseError(
            f"the files of organism {name!r} are missing", where=str(folder), fix="reinstall glasshouse"
        )
    return folder


def grow_into(name: str, *, out: str | Path, seed: int = 0) -> Path:
    """Grow organism `name` into the new folder `out` and return it. Raises InputError where `out` exists."""
    target = Path(out)
    if target.exists():
        raise InputError("the folder exists", where=str(target), fix="give a new one")
    organism = _registry.load("organisms", name)
    with files.atomic_dir(target) as folder:
        _grower(organism, seed)(folder)
    return target


def _grower(organism: Any, seed: int) -> Any:
    from glasshouse.runtime.progress import Progress

    def build(folder: Path) -> None:
        with Progress() as progress:
            organism.grow(seed, folder, progress)

    return build


def let_subjects_open_organisms() -> None:
    """Register the scheme with the layer below, which may not import upward."""
    from glasshouse.subjects.loading import register_resolver

    def open_organism(name: str) -> tuple[Path, Mapping[str, Any]]:
        return organism_folder(name), {"organism": name}

    register_resolver(SCHEME, open_organism)
