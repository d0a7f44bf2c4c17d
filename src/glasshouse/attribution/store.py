"""Where fits and score passes keep their partial results: safetensors beside one manifest, in any folder.

The folder may belong to a `glasshouse.runtime` run or be any path. A pass over data shards keeps one file
with the running sum and the number of shards in it; because shards are added in order, a pass that was
killed goes on with the very same float additions and repeats at most the shard it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from glasshouse.runtime import files
from glasshouse.runtime.errors import RunError, StaleError

Tensors = dict[str, Tensor]


class Mapper(Protocol):
    """The part of `glasshouse.runtime.executors.Executor` that is used here."""

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterable[Any]:
        """Results in the order of the shards."""


class Here:
    """One process, one shard after the other."""

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        """Results in the order of the shards, computed when asked for."""
        return (fn(shard) for shard in shards)


class Store:
    """A folder bound to one job: `manifest.json` says which, and another job is refused."""

    def __init__(self, folder: Path | str, job: dict[str, Any]) -> None:
        self.folder = Path(folder)
        manifest = self.folder / "manifest.json"
        if manifest.exists():
            found = files.read_json(manifest)
            changed = [k for k in sorted({*found, *job}) if found.get(k) != job.get(k)]
            if changed:
                raise StaleError(
                    f"it belongs to another job ({', '.join(changed)} differ)",
                    where=str(self.folder),
                    fix="choose an empty folder",
                )
        else:
            files.write_json(manifest, job)

    def read(self, name: str) -> tuple[Tensors, dict[str, str]] | None:
        """Tensors and string metadata stored under `name`, or None. Raises RunError for a damaged file."""
        path = self.folder / f"{name}.safetensors"
        return read_tensors(path) if path.exists() else None

    def write(self, name: str, tensors: Tensors, **meta: str) -> None:
        """Store tensors under `name`, replacing what was there."""
        write_tensors(self.folder / f"{name}.safetensors", tensors, meta)


def write_tensors(path: Path, tensors: Tensors, meta: dict[str, str]) -> None:
    """Write tensors atomically as safetensors."""
    from safetensors.torch import save

    # Metadata must not be empty: readers ask for it.
    files.write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt", **meta}))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises RunError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}, dict(handle.metadata())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"it is damaged ({error})", where=str(path), fix="delete it; it will be made again"
        ) from error


def summed(
    name: str, fn: Callable[[Any], Tensors], shards: Sequence[Any], executor: Mapper, store: Store | None
) -> Tensors:
    """`fn` over all shards, added up in order; with a store, resumable after any kill."""
    total: Tensors | None = None
    done = 0
    if store is not None and (found := store.read(name)) is not None:
        total, done = found[0], int(found[1]["done"])
    for part in executor.map(fn, shards[done:]) if done < len(shards) else ():
        total = part if total is None else {key: value.add_(part[key]) for key, value in total.items()}
        done += 1
        if store is not None:
            store.write(name, total, done=str(done))
    assert total is not None
    return total


def gathered(
    name: str, fn: Callable[[Any], Tensors], shards: Sequence[Any], executor: Mapper, store: Store | None
) -> list[Tensors]:
    """The result of every shard, in order; with a store, those on disk are not computed again."""
    found = [store.read(f"{name}-{i:05d}") if store is not None else None for i in range(len(shards))]
    missing = [i for i, part in enumerate(found) if part is None]
    parts = {i: part[0] for i, part in enumerate(found) if part is not None}
    results = executor.map(fn, [shards[i] for i in missing]) if missing else ()
    for i, part in zip(missing, results, strict=True):
        if store is not None:
            store.write(f"{name}-{i:05d}", part, shard=str(i))
        parts[i] = part
    return [parts[i] for i in range(len(shards))]
