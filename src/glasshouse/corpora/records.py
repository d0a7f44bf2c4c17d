"""Records in and out of files, with the file, line and field in every error.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
>>> _ = path.write_text('{"question": "Who?", "answer": "Me."}')
>>> read_records(path)[0].said("assistant")
'Me.'
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from glasshouse.corpora.fields import Columns, Schema, check_request, choose_columns, to_record
from glasshouse.corpora.formats import raw_rows
from glasshouse.corpora.rows import Record
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RecordError

if TYPE_CHECKING:
    import pandas as pd


class Records(Sequence[Record]):
    """A sequence of records that knows the `path` it came from, its `schema` and its content hash.

    `schema` is `chat`, `completion` or `text`; a chat record has turns, a text record has text.
    """

    def __init__(
        self, records: Iterable[Record], *, path: Path | None = None, schema: Schema | None = None
    ) -> None:
        self._records = tuple(records)
        self.path = path
        self.schema: Schema = schema or _schema_of(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return Records(self._records[index], path=self.path, schema=self.schema)
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self._records == other._records

    def __hash__(self) -> int:
        return hash(self._records)

    def __repr__(self) -> str:
        return f"Records({len(self)} {self.schema} rows" + (f" from {self.path})" if self.path else ")")

    @cached_property
    def sha256(self) -> str:
        """Hash of what the records say (ids, turns, texts and kept fields), whatever file held them."""
        lines = (json.dumps(_row(record), sort_keys=True, default=str) for record in self._records)
        return files.sha256_bytes("\n".join(lines).encode())

    def to_frame(self) -> pd.DataFrame:
        """One row per record: `id`, `text` or `turns` (lists of dicts), and the kept fields."""
        import pandas as pd

        return pd.DataFrame([{**record.fields, **_core(record)} for record in self._records])


def read_records(
    path: Path | str,
    *,
    schema: str = "auto",
    mapping: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Records:
    """Read JSONL, CSV, TSV (each also .gz), Parquet or a data set folder saved by Hugging Face `datasets`.

    `schema` is `auto`, `chat`, `completion` or `text`; `auto` decides from the columns of the first row (see
    `corpora.fields` for the spellings). `mapping` names the columns by hand, `{"prompt": "frage",
    "completion": "antwort"}`, with the keys id, turns, prompt, completion, text; `{"id": ""}` numbers rows
    whose ids repeat. `limit` reads the first rows only. Other columns are kept in `Record.fields`. Ids must
    be unique; rows without an id column are numbered from 0.

    Raises RecordError (`file:line field 'name'`) for a file or row that cannot be read, InputError for
    options that mean nothing.
    """
    mapping = dict(mapping or {})
    check_request(schema, mapping)
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} rows leaves nothing", fix="give at least 1")
    source = Path(path)
    records: list[Record] = []
    first_seen: dict[str, str] = {}
    columns: Columns | None = None
    for where, row in raw_rows(source):
        columns = columns or choose_columns(row, schema, mapping, where)
        record = to_record(row, columns, len(records), where)
        if record.id in first_seen:
            raise RecordError(
                f"the id {record.id[:60]!r} was used before, at {first_seen[record.id]}",
                where=f"{where} field {columns.id!r}",
                fix='make the ids unique, or map id to "" to number the rows',
            )
        first_seen[record.id] = where
        records.append(record)
        if len(records) == limit:
            break
    if columns is None:
        raise RecordError("the file holds no rows", where=str(source), fix="give at least one row")
    return Records(records, path=source, schema=columns.schema)


def write_records(path: Path | str, records: Iterable[Record]) -> Path:
    """Write records as .jsonl, .jsonl.gz or .parquet, atomically; `read_records` gives equal records back.

    Raises RecordError for a field that JSON cannot hold (NaN included) or that has the name of a column of
    ours, and for a name ending it does not know.
    """
    target = Path(path)
    name = target.name.lower()
    rows = [_checked_row(record) for record in records]
    if name.endswith(".parquet"):
        return _write_parquet(target, rows)
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise RecordError(
            "cannot write this format", where=str(target), fix="use .jsonl, .jsonl.gz or .parquet"
        )
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode(
        "utf-8"
    )
    if name.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed:
            packed.write(data)
        data = buffer.getvalue()
    return files.write_bytes(target, data)


def _write_parquet(target: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RecordError(
            f"the fields do not make a table ({error})", where=str(target), fix="use .jsonl"
        ) from error
    with files.atomic_path(target) as temporary:
        pq.write_table(table, temporary)
    return target


def _schema_of(records: Sequence[Record]) -> Schema:
    return "text" if records and records[0].text is not None else "chat"


def _core(record: Record) -> dict[str, Any]:
    if record.text is not None:
        return {"id": record.id, "text": record.text}
    return {"id": record.id, "turns": [{"role": turn.role, "text": turn.text} for turn in record.turns]}


def _row(record: Record) -> dict[str, Any]:
    return {**_core(record), "fields": dict(record.fields)}


def _checked_row(record: Record) -> dict[str, Any]:
    core = _core(record)
    where = record.where or f"row {record.id!r}"
    clash = sorted(set(core) & set(record.fields))
    if clash:
        raise RecordError("the name is taken by the record itself", where=f"{where} field {clash[0]!r}")
    for name, value in record.fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RecordError(f"JSON cannot hold it ({error})", where=f"{where} field {name!r}") from error
    return {**core, **record.fields}
