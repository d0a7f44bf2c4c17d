"""When each cache entry was last used, in SQLite (WAL). The folders are the truth; this may be lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import RunError
from glasshouse.runtime.progress import notice

_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, kind TEXT NOT NULL, used REAL NOT NULL)"
_TOUCH = "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET used = excluded.used"


class Index:
    """The index at `path`; a damaged file is said aloud and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def touch(self, key: str, kind: str, used: float) -> None:
        """Record that `key` was used at `used` (seconds since the epoch)."""
        self._execute(_TOUCH, (key, kind, used))

    def forget(self, key: str) -> None:
        """Drop one entry."""
        self._execute("DELETE FROM entries WHERE key = ?", (key,))

    def used(self) -> dict[str, float]:
        """Last use of every entry that was ever recorded."""
        if not self.path.exists():
            return {}
        return dict(self._execute("SELECT key, used FROM entries"))

    def keep_only(self, keys: Sequence[str]) -> None:
        """Drop every entry whose folder is gone."""
        for key in set(self.used()) - set(keys):
            self.forget(key)

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._once(statement, values)
        except sqlite3.OperationalError as error:
            raise RunError(
                f"the cache index cannot be used ({error})",
                where=str(self.path),
                fix="check the folder's permissions and free space",
            ) from error
        except sqlite3.DatabaseError:
            notice(f"the cache index {self.path} is damaged; it is started again, no result is lost")
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return self._once(statement, values)

    def _once(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """One statement in a transaction of its own, committed before this returns."""
        with closing(sqlite3.connect(self.path, timeout=60)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(_TABLE)
            before = database.total_changes
            rows = database.execute(statement, values).fetchall()
            if database.total_changes != before:
                files.fault_point("before", self.path)
                database.commit()
                files.fault_point("after", self.path)
            return rows
