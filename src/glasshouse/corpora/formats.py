"""Rows of a file as plain dictionaries, each with its place (`file:line`, for Parquet `file:row`).

Whatever the bytes are, the outcome is rows or a RecordError: decoders of other libraries are fenced here.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from glasshouse.runtime.errors import RecordError
from glasshouse.runtime.text import shorten

Raw = tuple[str, dict[str, Any]]
"""Where the row is, and its columns."""

MAX_LINE = 256 * 2**20
"""Bytes in one line; a longer one is taken for a file of another kind, not read into memory."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_BOM = b"\xef\xbb\xbf"


def raw_rows(path: Path) -> Iterator[Raw]:
    """The rows of a JSONL, CSV, TSV (each also .gz), Parquet file or saved Hugging Face data set.

    Raises RecordError for a file that is missing, of an unknown kind, or damaged, naming the line.
    """
    if path.is_dir():
        return _dataset_rows(path)
    if not path.exists():
        raise RecordError("there is no such file", where=str(path), fix="check the path")
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = _READERS.get(suffix.lower())
    if reader is None or (suffix != path.suffix and reader is _parquet_rows):
        raise RecordError(
            f"cannot tell the format from the name ending {shorten(path.suffix)!r}",
            where=str(path),
            fix="name it .jsonl, .csv, .tsv (each also .gz) or .parquet, or give a saved data set folder",
        )
    return reader(path)


def _jsonl_rows(path: Path) -> Iterator[Raw]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        where = f"{path}:{number}"
        value = _json(line, where)
        if not isinstance(value, dict):
            raise RecordError(
                f"the line holds a {_kind(value)}, not an object", where=where, fix="write one {...} per line"
            )
        yield where, value


def _json(line: str, where: str) -> Any:
    try:
        value = _STRICT.decode(line)
    except RecursionError as error:
        raise RecordError("the JSON is nested too deeply", where=where) from error
    except ValueError as error:  # also integers past Python's digit limit
        raise RecordError(f"the line is not JSON ({shorten(str(error), 120)})", where=where) from error
    if "\\u" in line:
        _refuse_half_characters(value, where)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number, write null")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shorten(text, 20)} is too large")
    return value


_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _refuse_half_characters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            "the row holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
            where=where,
            fix="write whole characters",
        ) from error


def _csv_rows(path: Path) -> Iterator[Raw]:
    return _delimited(path, ",")


def _tsv_rows(path: Path) -> Iterator[Raw]:
    return _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> Iterator[Raw]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        where = f"{path}:{start}"
        try:
            with _long_fields():
                values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecordError(
                f"the row is not valid CSV ({shorten(str(error), 120)})", where=where
            ) from error
        if not values:
            continue
        if header is None:
            header = _header(values, where)
        elif len(values) != len(header):
            raise RecordError(
                f"the row has {len(values)} values but the header names {len(header)}",
                where=where,
                fix='put values that hold commas or newlines in "double quotes"',
            )
        else:
            yield where, dict(zip(header, values, strict=True))


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's limit of 128 kB per value is global: lift it only while we read."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(values: list[str], where: str) -> list[str]:
    """Column names; one without a name (as pandas writes its index) is called by its number."""
    names = [value.strip() or f"column {number}" for number, value in enumerate(values, 1)]
    for name in names:
        if names.count(name) > 1:
            raise RecordError(
                f"the column {shorten(name)!r} appears twice", where=where, fix="give each its own name"
            )
    return names


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that an error can name its line; line ends are kept."""
    number = 0
    try:
        with _open(path) as handle:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise RecordError(f"the line is over {MAX_LINE} bytes long", where=f"{path}:{number}")
                yield number, _decode(line, number, path)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(
            f"the file cannot be read past this line ({shorten(str(error), 120)})",
            where=f"{path}:{number + 1}",
        ) from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decode(line: bytes, number: int, path: Path) -> str:
    if number == 1:
        if line.startswith(_UTF16):
            raise RecordError("the file is UTF-16", where=str(path), fix="save it as UTF-8")
        line = line.removeprefix(_UTF8_BOM)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"byte {error.start + 1} of the line is not UTF-8",
            where=f"{path}:{number}",
            fix="save it as UTF-8",
        ) from error


def _parquet_rows(path: Path) -> Iterator[Raw]:
    with _fenced(path, "Parquet"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        batches = file.iter_batches(batch_size=1024, use_threads=False)
    yield from _table_rows(path, batches, "Parquet")


def _dataset_rows(path: Path) -> Iterator[Raw]:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        raise RecordError(
            f"the folder holds the splits {', '.join(splits) or 'none'}",
            where=str(path),
            fix="give the folder of one split",
        )
    if not (path / "state.json").is_file():
        raise RecordError(
            "the folder is not a data set saved by `save_to_disk`",
            where=str(path),
            fix="give a file or such a folder",
        )
    with _fenced(path, "saved data set"):
        from datasets import load_from_disk

        batches = load_from_disk(str(path)).with_format("arrow").iter(batch_size=1024)
    yield from _table_rows(path, batches, "saved data set")


def _table_rows(path: Path, batches: Iterator[Any], kind: str) -> Iterator[Raw]:
    """Rows of Arrow batches; the number is that of the row, from 1."""
    number = 0
    while True:
        with _fenced(path, kind, number + 1):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for row in rows:
            number += 1
            yield f"{path}:{number}", row


@contextmanager
def _fenced(path: Path, kind: str, row: int | None = None) -> Iterator[None]:
    """Turn whatever a foreign decoder raises on damaged bytes into one sentence."""
    try:
        yield
    except Exception as error:
        where = str(path) if row is None else f"{path}:{row}"
        text = shorten(str(error), 160)
        raise RecordError(f"the file is not a readable {kind} ({text})", where=where) from error


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}
