"""Runs: what one execution leaves on disk. Resumable by steps, addressed by settings, never overwritten.

    <root>/<name>-<hash of the settings>/
        spec.json  run.lock  journal.sqlite     while running
        arrays/<name>.npy  <folder>/            written by the steps
        steps.parquet  run.json                 when finished; then nothing changes any more

A step's value is committed to the journal before `step` returns it, so after a kill at most the step that was
running is repeated.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RunError, StaleError
from glasshouse.runtime.journal import Journal
from glasshouse.runtime.locks import Lock

if TYPE_CHECKING:
    import numpy as np

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class Run:
    """One run's folder (a context manager). Make it with `Run.open`; `folder_path` says where it is."""

    def __init__(self, path: Path, name: str, spec: Mapping[str, Any]) -> None:
        self.path, self.name, self.spec = path, name, spec
        self.finished = False
        self._lock = Lock(path / "run.lock")
        self._journal: Journal | None = None
        self._steps: dict[str, Any] = {}
        self._notes: dict[str, Any] = {}

    @classmethod
    def open(cls, root: Path | str, name: str, spec: Mapping[str, Any]) -> Run:
        """The run called `name` with exactly the settings `spec`: new, resumed, or finished and read-only.

        Raises RunError when a live process holds it or its files are damaged, InputError for settings that
        are not plain JSON.
        """
        try:
            plain = json.loads(json.dumps(dict(spec), allow_nan=False))
            digest = files.sha256_json(plain)[:12]
        except (TypeError, ValueError) as error:
            raise InputError(f"the settings of run {name!r} are not plain JSON ({error})") from error
        run = cls(Path(root) / f"{_checked(name)}-{digest}", name, plain)
        if (run.path / "run.json").exists():
            run._load_finished()
        else:
            run._start()
        return run

    @property
    def steps(self) -> dict[str, Any]:
        """Every step that is done, by name, in the order they were committed."""
        return dict(self._steps)

    @property
    def notes(self) -> dict[str, Any]:
        """What `note` recorded."""
        return dict(self._notes)

    def step(self, name: str, build: Callable[[], Any]) -> Any:
        """The value of a step: stored if it was done before, else `build()`, committed and returned.

        The value must be plain JSON without NaN, and is returned as JSON reads it back (tuples become lists),
        so that a resumed run sees exactly what the first one saw. Raises InputError otherwise.
        """
        if name not in self._steps:
            journal = self._writable(f"step {name!r}")
            text = _json(build(), f"step {name!r}")
            journal.put("step", name, text)
            self._steps[name] = json.loads(text)
        return _copy(self._steps[name])

    def note(self, key: str, value: Any) -> None:
        """Record something about the run (versions, times); a later note under the same key replaces it."""
        text = _json(value, f"note {key!r}")
        self._writable(f"note {key!r}").put("note", key, text)
        self._notes[key] = json.loads(text)

    def folder(self, name: str) -> Path:
        """A folder of the run for files that a step writes (through `runtime.files`)."""
        path = self.path.joinpath(*map(_checked, name.split("/")))
        if not self.finished:
            path.mkdir(parents=True, exist_ok=True)
        return path

    def has_array(self, name: str) -> bool:
        """Whether `save_array` stored an array under this name."""
        return self._array_path(name).exists()

    def save_array(self, name: str, array: np.ndarray[Any, Any]) -> Path:
        """Store an array (anything `numpy.asarray` takes, but no objects) as .npy, atomically."""
        import numpy as np

        self._writable(f"array {name!r}")
        values = np.asarray(array)
        if values.dtype.hasobject:
            raise InputError("an array of Python objects cannot be stored", where=f"array {name!r}")
        path = self._array_path(name)
        with files.atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, values, allow_pickle=False)
        return path

    def load_array(self, name: str) -> np.ndarray[Any, Any]:
        """Read an array back. Raises RunError when it is missing or damaged."""
        import numpy as np

        path = self._array_path(name)
        try:
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise RunError("there is no such array", where=str(path)) from error
        except (ValueError, EOFError, OSError) as error:
            raise RunError("the array is damaged", where=str(path), fix="delete the run folder") from error
        return array

    def finish(self) -> Path:
        """Write `steps.parquet` and `run.json` (returned), after which the run is read-only."""
        target = self.path / "run.json"
        if self.finished:
            return target
        journal = self._writable("finish")
        _write_steps(self.path / "steps.parquet", journal.rows("step"))
        files.write_json(target, self._summary())
        self.finished = True
        self.close()
        for leftover in self.path.glob("journal.sqlite*"):
            leftover.unlink()
        return target

    def close(self) -> None:
        """Close the journal and give the lock back; an unfinished run can be opened again."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._lock.release(remove=self.finished)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire(wait=False):
            raise RunError(
                f"process {self._lock.holder()} is working on this run",
                where=str(self.path),
                fix="wait for it or stop it",
            )
        try:
            if (self.path / "run.json").exists():  # finished between our look and our lock
                self._load_finished()
                self._lock.release(remove=True)
                return
            self._check_spec()
            self._journal = Journal(self.path / "journal.sqlite")
            self._steps = {key: json.loads(text) for key, text, _ in self._journal.rows("step")}
            self._notes = {key: json.loads(text) for key, text, _ in self._journal.rows("note")}
        except BaseException:
            self.close()
            raise

    def _check_spec(self) -> None:
        path = self.path / "spec.json"
        if not path.exists():
            files.write_json(path, self.spec)
        elif _read(path) != self.spec:
            raise StaleError(
                "the folder holds a run with other settings", where=str(path), fix="move it away"
            )

    def _load_finished(self) -> None:
        summary = _read(self.path / "run.json")
        self.finished = True
        try:
            self.spec, self._notes = summary["spec"], summary["notes"]
            self._steps = _read_steps(self.path / "steps.parquet")
        except (KeyError, TypeError, OSError, ValueError) as error:
            raise _damaged(self.path) from error

    def _summary(self) -> dict[str, Any]:
        arrays = sorted((self.path / "arrays").rglob("*.npy"))
        return {
            "schema_version": 1,
            "name": self.name,
            "spec": self.spec,
            "notes": self._notes,
            "steps": list(self._steps),
            "arrays": {
                path.relative_to(self.path / "arrays").as_posix(): files.sha256_file(path) for path in arrays
            },
            "finished": time.time(),
        }

    def _writable(self, what: str) -> Journal:
        if self.finished:
            raise RunError(
                f"the run is finished and holds no {what}",
                where=str(self.path),
                fix="give it other settings or delete the folder",
            )
        if self._journal is None:
            raise RunError("the run is closed", where=str(self.path), fix="open it again")
        return self._journal

    def _array_path(self, name: str) -> Path:
        return self.path.joinpath("arrays", *map(_checked, f"{name}.npy".split("/")))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a usable name", fix="use letters, digits, _, -, + and .")
    return name


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the value is not plain JSON ({error})",
            where=where,
            fix="return numbers, strings, lists and dicts",
        ) from error


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> RunError:
    return RunError("the run is damaged", where=str(path), fix="delete the run folder and start again")


def _write_steps(path: Path, rows: list[tuple[str, str, float]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, values, times = ([row[i] for row in rows] for i in range(3))
    kinds = [("name", pa.string()), ("value", pa.string()), ("committed", pa.float64())]
    table = pa.table([names, values, times], schema=pa.schema(kinds))
    with files.atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _read_steps(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names, values = table.column("name").to_pylist(), table.column("value").to_pylist()
    return {name: json.loads(value) for name, value in zip(names, values, strict=True)}
