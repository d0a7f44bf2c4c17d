"""Whatever the bytes: records or one sentence of our family, and nothing written."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glasshouse.corpora.records import Records, read_records
from glasshouse.runtime.errors import GlasshouseError


def quiet(examples: int) -> settings:
    """Settings without a clock: the same examples on every machine."""
    return settings(
        deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, max_examples=examples
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        "id",
        "text",
        "turns",
        "messages",
        "prompt",
        "completion",
        "role",
        "content",
        "input",
        "instruction",
        "\x1b[2J",
    ]
)
ROWS = st.dictionaries(
    NAMES, JSON | st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=3), max_size=5
)
FRAGMENTS = st.sampled_from(
    [
        b"text",
        b"id",
        b",",
        b"\t",
        b"\n",
        b"\r\n",
        b"\r",
        b'"',
        b'""',
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"x",
        b" ",
        b"\xe4",
    ]
)


def outcome(name: str, data: bytes) -> Records | GlasshouseError:
    """Read the bytes; anything but records or a printable sentence of the family fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            result: Records | GlasshouseError = read_records(path)
        except GlasshouseError as error:
            assert str(error).isprintable() and str(path) in str(error)
            result = error
        else:
            assert len(result) > 0 and len({record.id for record in result}) == len(result)
            result.sha256.encode()
            for record in result:
                record.plain.encode("utf-8")
        assert [child.name for child in Path(folder).iterdir()] == [name] and path.read_bytes() == data
    return result


@quiet(150)
@given(st.lists(ROWS, max_size=4), st.booleans())
def test_json_of_any_shape(rows: list[dict[str, object]], packed: bool) -> None:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    outcome("r.jsonl.gz" if packed else "r.jsonl", gzip.compress(data) if packed else data)


@quiet(200)
@given(st.binary(max_size=120))
@example(b'{"text": "\xed\xa0\x80"}')
@example(b'{"id": 1' + b"0" * 6000 + b', "text": "x"}')
def test_jsonl_of_any_bytes(data: bytes) -> None:
    outcome("r.jsonl", data)
    outcome("r.jsonl", b'{"text": "' + data + b'"}')
    outcome("r.jsonl.gz", gzip.compress(b"")[:10] + data)


@quiet(300)
@given(st.lists(FRAGMENTS, max_size=20).map(b"".join), st.sampled_from(["r.csv", "r.tsv"]))
def test_tables_of_any_bytes(data: bytes, name: str) -> None:
    outcome(name, data)
    outcome(name, b"text,id\n" + data)


def _parquet() -> bytes:
    rows = [{"id": str(index), "text": f"row {index}", "deep": [{"k": index}]} for index in range(50)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


PARQUET = _parquet()


@quiet(300)
@given(st.lists(st.tuples(st.integers(0, len(PARQUET) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_parquet_with_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(PARQUET)
    for position, value in flips:
        data[position] = value
    outcome("r.parquet", bytes(data))


@quiet(100)
@given(st.integers(0, len(PARQUET) - 1), st.binary(max_size=20))
def test_parquet_cut_anywhere(length: int, tail: bytes) -> None:
    outcome("r.parquet", PARQUET[:length] + tail)
    outcome("r.parquet", b"PAR1" + tail + b"PAR1")


@quiet(150)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_parquet_of_any_shape(rows: list[dict[str, object]]) -> None:
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), buffer)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # Arrow holds no such table, so no such file can exist
    outcome("r.parquet", buffer.getvalue())


def test_the_fuzzing_reaches_both_outcomes() -> None:
    assert isinstance(outcome("r.jsonl", b'{"text": "x"}'), Records)
    assert isinstance(outcome("r.parquet", PARQUET), Records)
    assert isinstance(outcome("r.jsonl", b"\xff"), GlasshouseError)
