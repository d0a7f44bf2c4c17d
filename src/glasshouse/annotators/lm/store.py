"""Every answer of a model that was paid for, in SQLite (WAL), committed on its own before it is used.

What is stored is the raw answer, so that reading it can improve without asking again. Inspect's own cache is
not used: its entries are pickles.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from glasshouse.runtime import files
from glasshouse.runtime.cache import home
from glasshouse.runtime.errors import RunError

_TABLE = """CREATE TABLE IF NOT EXISTS calls (
    key TEXT NOT NULL, attempt INTEGER NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (key, attempt)
    ) WITHOUT ROWID"""
_AT_ONCE = 500


@dataclass(frozen=True)
class Answer:
    """One paid call: what the model said and what it cost.

    `yes` is p(yes) / (p(yes) + p(no)) and `mass` p(yes) + p(no) at the answer token where log-probabilities
    were asked for and given, else None. `usd` is None where no price is known.
    """

    text: str
    refused: bool = False
    yes: float | None = None
    mass: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    usd: float | None = None
    wall_seconds: float = 0.0


class CallStore:
    """The answers in `folder`/calls.sqlite; safe for threads and processes. Raises RunError if damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "calls.sqlite"
        self._guard = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_TABLE)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._broken(error) from error

    def find(self, keys: Iterable[str]) -> dict[str, list[Answer]]:
        """The stored answers of each key, in the order of their attempts; keys without any are left out."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, list[Answer]] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            holes = ",".join("?" * len(part))
            query = f"SELECT key, answer FROM calls WHERE key IN ({holes}) ORDER BY key, attempt"
            try:
                with self._guard:
                    rows = self._database.execute(query, part).fetchall()
                for key, answer in rows:
                    found.setdefault(key, []).append(Answer(**json.loads(answer)))
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                raise self._broken(error) from error
        return found

    def put(self, key: str, attempt: int, answer: Answer) -> None:
        """Commit one answer."""
        files.fault_point("before", self.path)
        text = json.dumps(asdict(answer), ensure_ascii=False)
        try:
            with self._guard:
                self._database.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?)", (key, attempt, text))
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error
        files.fault_point("after", self.path)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _broken(self, error: Exception) -> RunError:
        return RunError(
            f"the stored answers cannot be used ({error})",
            where=str(self.path),
            fix="check the folder and free space, or delete the file and pay for the calls again",
        )


def open_store(folder: Path | str | None) -> CallStore:
    """The store in `folder`; by default under GLASSHOUSE_HOME. One connection per file and process."""
    return _opened((Path(folder) if folder is not None else home() / "annotations").absolute())


@cache
def _opened(folder: Path) -> CallStore:
    return CallStore(folder)
