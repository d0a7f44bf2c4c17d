"""When each cache entry was last used, in SQLite (WAL). The folders are the truth; this may be lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from glasshouse.runtime import files
from glasshouse.runtime.errors import RunError
from glasshouse.runtime.progress import notice

_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, kind TEXT NOT NULL, used REAL NOT NULL)"


class Index:
    """The index at `path`; a damaged file is said aloud and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def touch(self, key: str, kind: str, used: float) -> None:
        """Record that `key` was used at `used` (seconds since the epoch)."""
        with self._open() as database:
            database.execute(
                "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET used = excluded.used",
                (key, kind, used),
            )

    def forget(self, key: str) -> None:
        """Drop one entry."""
        with self._open() as database:
            database.execute("DELETE FROM entries WHERE key = ?", (key,))

    def used(self) -> dict[str, float]:
        """Last use of every entry that was ever recorded."""
        if not self.path.exists():
            return {}
        with self._open() as database:
            return dict(database.execute("SELECT key, used FROM entries").fetchall())

    def keep_only(self, keys: Sequence[str]) -> None:
        """Drop every entry whose folder is gone."""
        for key in set(self.used()) - set(keys):
            self.forget(key)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection with one transaction, committed at the end of the block."""
        with closing(self._connect()) as database:
            before = database.total_changes
            yield database
            if database.total_changes != before:
                files.fault_point("before", self.path)
                database.commit()
                files.fault_point("after", self.path)

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._ready()
        except sqlite3.OperationalError as error:
            raise RunError(
                f"cannot be opened ({error})",
                where=str(self.path),
                fix="check the folder's permissions and space",
            ) from error
        except sqlite3.DatabaseError:
            notice(f"the cache index {self.path} is damaged; it is started again, no result is lost")
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return self._ready()

    def _ready(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(_TABLE)
            database.commit()
        except BaseException:
            database.close()
            raise
        return database
