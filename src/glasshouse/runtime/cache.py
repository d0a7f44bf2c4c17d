"""The cache: folders addressed by what made them, built once across processes, verified when read.

    <root>/entries/<kind>/<key>/    what `build` wrote, and .manifest.json with sizes and checksums
    <root>/work/<key>/              where a build may keep its own checkpoints; gone once it has succeeded
    <root>/locks/<key>.lock         one builder at a time; the kernel frees it when a process dies
    <root>/index.sqlite             what is there and when it was used; rebuilt from the manifests if lost

An entry is never changed in place: do not write into a folder that `fetch` returned.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError
from glasshouse.runtime.index import Index
from glasshouse.runtime.locks import Lock
from glasshouse.runtime.progress import notice

MANIFEST = ".manifest.json"

_held: set[Path] = set()
_verified: dict[Path, tuple[object, ...]] = {}


def home() -> Path:
    """`GLASSHOUSE_HOME`, or `~/.cache/glasshouse`; not created here."""
    return Path(os.environ.get("GLASSHOUSE_HOME") or "~/.cache/glasshouse").expanduser().absolute()


@dataclass(frozen=True)
class CacheEntry:
    """One entry: `bytes` on disk, `created` and `used` in seconds since the epoch, `args` that made it."""

    key: str
    kind: str
    bytes: int
    created: float
    used: float
    args: Mapping[str, Any]


class Cache:
    """The cache under `root` (default: `home()`)."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root).absolute() if root is not None else home()
        self._index = Index(self.root / "index.sqlite")

    def key(self, kind: str, args: Mapping[str, Any], inputs: Sequence[str] = (), code: str = "") -> str:
        """The address (40 hex characters) of `kind` made from `args`, input hashes and a code version.

        Pinned versions of torch and transformers are part of it. Raises InputError for arguments that are
        not plain JSON (NaN included) or a `kind` that is no simple name.
        """
        if not kind or not all(char.isalnum() or char in "-_" for char in kind):
            raise InputError(f"{kind!r} is not a kind of cache entry", fix="use letters, digits, - and _")
        recipe = {"kind": kind, "args": dict(args), "inputs": list(inputs), "code": code} | _versions()
        try:
            return files.sha256_json(recipe)[:40]
        except (TypeError, ValueError) as error:
            raise InputError(f"the arguments of a {kind!r} entry are not plain JSON ({error})") from error

    def fetch(
        self,
        kind: str,
        args: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        inputs: Sequence[str] = (),
        code: str = "",
    ) -> Path:
        """The folder of the entry; `build(folder)` fills it if it is not there yet.

        `build` runs once however many processes ask, in a temporary folder that is renamed when complete. A
        damaged entry is said aloud and built again. Raises what `build` raises, leaving no entry.
        """
        key = self.key(kind, args, inputs, code)
        folder = self._folder(kind, key)
        if not _intact(folder):
            with self._building(key):
                if not _intact(folder):
                    self._clear(folder)
                    self._build(folder, kind, args, inputs, code, build)
        self._remember(folder, used=time.time())
        return folder

    def find(
        self, kind: str, args: Mapping[str, Any], *, inputs: Sequence[str] = (), code: str = ""
    ) -> Path | None:
        """The folder of the entry if it is there and undamaged, else None."""
        folder = self._folder(kind, self.key(kind, args, inputs, code))
        if not _intact(folder):
            return None
        self._remember(folder, used=time.time())
        return folder

    def work(self, key: str) -> Path:
        """A folder in which the build of `key` may keep checkpoints; it survives a kill, not a success."""
        folder = self.root / "work" / key
        _make(folder)
        return folder

    def ls(self) -> list[CacheEntry]:
        """All entries, the most recently used first."""
        used = self._index.used()
        entries = [_entry(folder, used) for folder in self._folders()]
        self._index.keep_only([entry.key for entry in entries])
        return sorted(entries, key=lambda entry: (-entry.used, entry.key))

    def gc(
        self,
        max_bytes: int | None = None,
        older_than_days: float | None = None,
        kind: str | None = None,
        everything: bool = False,
    ) -> list[CacheEntry]:
        """Remove entries and return them; leftovers of killed builds always go.

        `kind` narrows to one kind. Of those goes `everything`, or what was not used for `older_than_days`, or
        the least recently used until `max_bytes` remain. Entries being built are never touched.
        """
        entries = [entry for entry in self.ls() if kind in (None, entry.kind)]
        oldest = None if older_than_days is None else time.time() - 86400 * older_than_days
        doomed, total = [], 0
        for entry in entries:
            total += entry.bytes
            too_old = oldest is not None and entry.used < oldest
            too_much = max_bytes is not None and total > max_bytes
            if everything or too_old or too_much:
                doomed.append(entry)
        removed = [entry for entry in doomed if self._remove(entry)]
        self._sweep()
        return removed

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / "entries" / kind / key

    def _folders(self) -> list[Path]:
        found = self.root.glob(f"entries/*/*/{MANIFEST}")
        return sorted(path.parent for path in found if not path.parent.name.startswith("."))

    @contextmanager
    def _building(self, key: str) -> Iterator[None]:
        path = self.root / "locks" / f"{key}.lock"
        if path in _held:
            raise RunError(f"the build of cache entry {key} asks for itself", fix="break the circle")
        _make(path.parent)
        lock = Lock(path)
        if not lock.acquire(wait=False):
            notice(f"waiting for process {lock.holder()}, which is building the same result")
            lock.acquire()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            lock.release(remove=True)

    def _clear(self, folder: Path) -> None:
        """Remove a damaged entry and what killed builds of it left (we hold its lock, so they are dead)."""
        if folder.exists():
            notice(f"the cache entry {folder} is damaged ({_damage(folder)}); it is removed and built again")
            shutil.rmtree(folder)
        for leftover in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _build(
        self,
        folder: Path,
        kind: str,
        args: Mapping[str, Any],
        inputs: Sequence[str],
        code: str,
        build: Callable[[Path], None],
    ) -> None:
        _make(folder.parent)
        with files.atomic_dir(folder) as temporary:
            build(temporary)
            recipe = {"kind": kind, "args": dict(args), "inputs": list(inputs), "code": code} | _versions()
            manifest = {**recipe, "created": time.time(), "files": _checksums(temporary)}
            files.write_json(temporary / MANIFEST, manifest)
        _verified[folder] = _signature(folder)
        shutil.rmtree(self.root / "work" / folder.name, ignore_errors=True)

    def _remember(self, folder: Path, *, used: float) -> None:
        if os.access(self.root, os.W_OK):  # a cache on a read-only disk serves, but cannot say when
            self._index.touch(folder.name, folder.parent.name, used)

    def _remove(self, entry: CacheEntry) -> bool:
        lock = Lock(self.root / "locks" / f"{entry.key}.lock")
        if not lock.acquire(wait=False):
            return False
        try:
            folder = self._folder(entry.kind, entry.key)
            files.fault_point("before", folder)
            trash = folder.with_name(f".{entry.key}.gone.part")
            shutil.rmtree(trash, ignore_errors=True)
            folder.rename(trash)  # first out of sight, so that a kill leaves no half-deleted entry
            shutil.rmtree(trash)
            files.fault_point("after", folder)
            self._index.forget(entry.key)
            _verified.pop(folder, None)
        finally:
            lock.release(remove=True)
        return True

    def _sweep(self) -> None:
        """Remove temporary folders and work folders of builds that no live process holds."""
        parts = [(path, path.name.split(".")[1]) for path in self.root.glob("entries/*/.*.part")]
        works = [(path, path.name) for path in self.root.glob("work/*")]
        for path, key in parts + works:
            lock = Lock(self.root / "locks" / f"{key}.lock")
            if lock.acquire(wait=False):
                shutil.rmtree(path, ignore_errors=True)
                lock.release(remove=True)


@functools.cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot create the folder ({error.strerror})",
            where=str(folder),
            fix="set GLASSHOUSE_HOME to a folder you may write to",
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _checksums(folder: Path) -> dict[str, list[Any]]:
    return {
        path.relative_to(folder).as_posix(): [path.stat().st_size, files.sha256_file(path)]
        for path in _files(folder)
    }


def _signature(folder: Path) -> tuple[object, ...]:
    """Names, sizes and times of the files: equal means not rewritten since it was last verified."""
    stats = [(str(path), path.stat()) for path in [*_files(folder), folder / MANIFEST]]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _intact(folder: Path) -> bool:
    try:
        if _verified.get(folder) == _signature(folder):
            return True
        if _damage(folder) is None:
            _verified[folder] = _signature(folder)
            return True
    except (FileNotFoundError, NotADirectoryError):
        pass  # not there, or another process is rebuilding it
    return False


def _damage(folder: Path) -> str | None:
    """What is wrong with an entry, or None."""
    try:
        recorded = files.read_json(folder / MANIFEST)["files"]
        found = _checksums(folder)
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    except FileNotFoundError:
        if not folder.exists():
            raise
        return "a file is missing"
    for name in sorted({*recorded, *found}):
        if recorded.get(name) != found.get(name):
            return f"{name} differs from its checksum"
    return None


def _entry(folder: Path, used: Mapping[str, float]) -> CacheEntry:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        manifest = files.read_json(folder / MANIFEST)
        created, args = float(manifest["created"]), dict(manifest["args"])
    except (ValueError, KeyError, TypeError):
        created, args = folder.stat().st_mtime, {}
    return CacheEntry(folder.name, folder.parent.name, size, created, used.get(folder.name, created), args)
