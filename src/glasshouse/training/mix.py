"""Training data with provenance: where each row came from, which no model sees and every grader may read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glasshouse.corpora.rows import Record
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.runtime.seeds import rng

Source = Sequence[Record] | Path | str


def content_hash(record: Record) -> str:
    """16 hex characters that depend on what a row says (turns, text, other fields), not on where it stood."""
    said = [[turn.role, turn.text] for turn in record.turns]
    return files.sha256_json([said, record.text, dict(record.fields)])[:16]


@dataclass(frozen=True)
class MixRow:
    """One row of a mix; `row_id` is its content hash.

    `origin` is 'human', 'clean', 'poison:<id>' or 'model:<checkpoint>'; `round` counts retrainings.
    """

    record: Record
    origin: str
    row_id: str
    round: int = 0


@dataclass(frozen=True)
class Part:
    """One source of a mix. `share` is a weight (float) or a number of rows (int)."""

    source: Source
    share: float | int
    origin: str = "clean"
    round: int = 0


class Mix:
    """An ordered draw from several sources, without repetition.

    All shares are counts, or all are weights; weights are filled to the largest total that no source
    has to repeat a row for, or to `total`. With `dedupe`, a row whose content an earlier source already
    holds is dropped before drawing. A source may be a record file.

    >>> Mix([Part(records, 90), Part(poison, 10, origin="poison:p1")], seed=0).rows()  # doctest: +SKIP
    """

    def __init__(
        self,
        parts: Sequence[Part | tuple[Source, float | int]],
        *,
        seed: int,
        dedupe: bool = True,
        total: int | None = None,
    ) -> None:
        self.parts = [part if isinstance(part, Part) else Part(*part) for part in parts]
        self.seed, self.dedupe, self.total = seed, dedupe, total
        self._rows: tuple[MixRow, ...] | None = None

    def rows(self) -> tuple[MixRow, ...]:
        """The rows in training order, the same at every call. Raises InputError for a bad share."""
        if self._rows is None:
            pools = self._pools()
            counts = _counts([part.share for part in self.parts], [len(pool) for pool in pools], self.total)
            drawn = [
                pool[i]
                for index, (pool, count) in enumerate(zip(pools, counts, strict=True))
                for i in sorted(rng(self.seed, "draw", index).permutation(len(pool))[:count])
            ]
            self._rows = tuple(drawn[i] for i in rng(self.seed, "order").permutation(len(drawn)))
        return self._rows

    def _pools(self) -> list[list[MixRow]]:
        seen: set[str] = set()
        pools = []
        for part in self.parts:
            pool = []
            for record in _records(part.source):
                row_id = content_hash(record)
                if self.dedupe and row_id in seen:
                    continue
                seen.add(row_id)
                pool.append(MixRow(record, part.origin, row_id, part.round))
            pools.append(pool)
        return pools


@dataclass(frozen=True)
class DataRef:
    """The rows of a training, known by their hash; equal hashes are equal data.

    >>> DataRef.of(records)  # doctest: +SKIP
    DataRef(sha256='5f0c...', n=1200)
    """

    sha256: str
    n: int
    rows: tuple[MixRow, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: DataRef | Mix | Source | Sequence[MixRow], *, origin: str = "clean") -> DataRef:
        """Refer to a mix, records, rows of a mix, or a record file. Raises InputError when there are none."""
        if isinstance(data, DataRef):
            return data
        rows = _mix_rows(data, origin)
        if not rows:
            raise InputError("there are no rows to train on", fix="give at least one row")
        told = [[row.row_id, row.origin, row.round, row.record.id] for row in rows]
        return cls(files.sha256_json(told), len(rows), rows)

    def check(self) -> None:
        """Raise StaleError if the rows no longer hash to `sha256` (someone edited them in place)."""
        for row in self.rows:
            if row.row_id != content_hash(row.record):
                raise StaleError(
                    "the row changed after it was referred to",
                    where=row.record.where or f"row {row.record.id!r}",
                    fix="make a new DataRef",
                )


def _mix_rows(data: Any, origin: str) -> tuple[MixRow, ...]:
    if isinstance(data, Mix):
        return data.rows()
    rows: Iterable[Any] = _records(data)
    return tuple(row if isinstance(row, MixRow) else MixRow(row, origin, content_hash(row)) for row in rows)


def _records(source: Any) -> Sequence[Any]:
    if isinstance(source, str | Path):
        from glasshouse.corpora.records import read_records

        return read_records(source)
    return source


def _counts(shares: Sequence[float | int], have: Sequence[int], total: int | None) -> list[int]:
    if not shares or any(share <= 0 for share in shares):
        raise InputError(f"the shares {list(shares)} are not all positive", where="mix")
    if all(isinstance(share, int) for share in shares):
        wanted = [int(share) for share in shares]
    elif any(isinstance(share, int) for share in shares):
        raise InputError(
            f"the shares {list(shares)} mix counts and weights",
            where="mix",
            fix="give all ints or all floats",
        )
    else:
        parts = [share / sum(shares) for share in shares]
        room = min(n / part for n, part in zip(have, parts, strict=True))
        wanted = _largest_remainder(parts, int(room + 1e-9) if total is None else total)
    for index, (want, n) in enumerate(zip(wanted, have, strict=True)):
        if want > n:
            raise InputError(
                f"{want} rows wanted, {n} there (after deduplication)", where=f"mix source {index}",
                fix="lower its share",
            )  # fmt: skip
    return wanted


def _largest_remainder(parts: Sequence[float], total: int) -> list[int]:
    """Whole numbers nearest to `parts * total` that sum to `total`."""
    exact = [part * total for part in parts]
    counts = [int(x) for x in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def provenance(rows: Sequence[MixRow]) -> list[Mapping[str, Any]]:
    """One mapping per row: row_id, origin, round, id; the ground truth for detectors and attribution."""
    return [
        {"row_id": row.row_id, "origin": row.origin, "round": row.round, "id": row.record.id} for row in rows
    ]
