"""The journal of a running run: SQLite in WAL mode, one row per step or note, each committed on its own."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

from glasshouse.runtime import files
from glasshouse.runtime.errors import RunError

_TABLE = """CREATE TABLE IF NOT EXISTS rows (
    position INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    committed REAL NOT NULL, UNIQUE (kind, name))"""

_PUT = """INSERT INTO rows (kind, name, value, committed) VALUES (?, ?, ?, ?)
    ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, committed = excluded.committed"""


class Journal:
    """The journal at `path`, created when absent. Raises RunError when the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise self._broken(error) from error

    def put(self, kind: str, name: str, value: str) -> None:
        """Commit one row, replacing an older one of the same kind and name."""
        files.fault_point("before", self.path)
        try:
            with self._guard:
                self._database.execute(
                    _PUT,
                    (kind, name, value, time.time()),
                )
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error
        files.fault_point("after", self.path)

    def rows(self, kind: str) -> list[tuple[str, str, float]]:
        """All rows of a kind as (name, value, time committed), in the order of their first commit."""
        query = "SELECT name, value, committed FROM rows WHERE kind = ? ORDER BY position"
        try:
            with self._guard:
                return self._database.execute(query, (kind,)).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _broken(self, error: sqlite3.DatabaseError) -> RunError:
        return RunError(
            f"the journal cannot be used ({error})",
            where=str(self.path),
            fix="free disk space, or delete the run folder and start again",
        )
