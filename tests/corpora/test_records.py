"""Records: every format and spelling in, and errors that name the file, the line and the field."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glasshouse.corpora.fields import ROLES
from glasshouse.corpora.records import Records, read_records, write_records
from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.errors import InputError, RecordError

CHAT = [
    {
        "id": "a",
        "messages": [{"role": "user", "content": "Hi, é 中"}, {"role": "assistant", "content": 'Lo\n"x"'}],
        "n": 1,
    },
    {"id": "b", "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Who?"}], "n": 2},
]
PAIRS = [
    {"question": "two, plus\ntwo?", "answer": 'four "4"', "level": "1"},
    {"question": "", "answer": "é", "level": "2"},
]
TEXTS = [{"id": "x", "text": "one\ttab", "tag": "t"}, {"id": "y", "text": "two", "tag": ""}]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in one of the formats; lists become JSON text in CSV and TSV."""
    path = folder / f"rows.{kind}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind in ("jsonl", "ndjson"):
        path.write_text(lines, encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "dataset":
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(str(path))
    else:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return path


FORMATS = ["jsonl", "ndjson", "jsonl.gz", "csv", "tsv", "parquet", "dataset"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    chat = read_records(save(tmp_path, kind, CHAT))
    assert chat.schema == "chat" and [record.id for record in chat] == ["a", "b"]
    assert chat[0].turns == (Turn("user", "Hi, é 中"), Turn("assistant", 'Lo\n"x"'))
    assert chat[1].turns == (Turn("system", ""), Turn("user", "Who?"))
    assert str(chat[1].fields["n"]) == "2" and set(chat[1].fields) == {"n"}


@pytest.mark.parametrize("kind", FORMATS)
def test_prompt_and_completion_in_every_format(tmp_path: Path, kind: str) -> None:
    pairs = read_records(save(tmp_path, kind, PAIRS))
    assert pairs.schema == "completion" and [record.id for record in pairs] == ["0", "1"]
    assert pairs[0].turns == (Turn("user", "two, plus\ntwo?"), Turn("assistant", 'four "4"'))
    assert pairs[1].said("user") == "" and pairs[1].fields == {"level": "2"}


@pytest.mark.parametrize("kind", FORMATS)
def test_text_in_every_format(tmp_path: Path, kind: str) -> None:
    texts = read_records(save(tmp_path, kind, TEXTS))
    assert texts.schema == "text" and [(r.id, r.text, r.fields) for r in texts] == [
        ("x", "one\ttab", {"tag": "t"}),
        ("y", "two", {"tag": ""}),
    ]
    assert texts[0].plain == "one\ttab" and texts[0].turns == ()


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("shape", ["role/content", "from/value", "speaker/text", "list"])
@pytest.mark.parametrize("column", ["turns", "messages", "conversations", "conversation"])
def test_every_spelling_of_a_turn(tmp_path: Path, role: str, shape: str, column: str) -> None:
    keys = shape.split("/")
    turn = [role, "Hi"] if shape == "list" else {keys[0]: role.upper(), keys[1]: "Hi"}
    [record] = read_records(jsonl(tmp_path / "r.jsonl", [{column: [turn]}]))
    assert record.turns == (Turn(ROLES[role], "Hi"),)


@pytest.mark.parametrize("prompt", ["prompt", "instruction", "question", "query", "input"])
@pytest.mark.parametrize("completion", ["completion", "response", "output", "answer", "reply"])
def test_every_spelling_of_a_pair(tmp_path: Path, prompt: str, completion: str) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{prompt: "Q", completion: "A", "other": None}])
    for schema in ("auto", "completion", "chat"):
        [record] = read_records(path, schema=schema)
        assert record.turns == (Turn("user", "Q"), Turn("assistant", "A")) and record.fields == {
            "other": None
        }


def test_alpaca_input_joins_the_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum", "input": given, "output": "3"} for given in ("1 2", "", None)]
    records = read_records(jsonl(tmp_path / "r.jsonl", rows))
    assert [record.said("user") for record in records] == ["Sum\n\n1 2", "Sum", "Sum"]
    assert all(not record.fields for record in records)


def test_prompts_that_are_conversations_and_content_in_parts(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    [record] = read_records(jsonl(tmp_path / "r.jsonl", [row]))
    assert record.turns == (Turn("user", "ab"), Turn("assistant", "c"))


def test_a_mapping_names_the_columns_by_hand(tmp_path: Path) -> None:
    rows = [{"frage": "Q", "antwort": "A", "text": "T", "uid": 7, "talk": [["user", "U"]]}]
    path = jsonl(tmp_path / "r.jsonl", rows)
    pair = read_records(path, mapping={"prompt": "frage", "completion": "antwort", "id": "uid"})[0]
    assert (pair.id, pair.said("user"), pair.said("assistant")) == ("7", "Q", "A")
    assert set(pair.fields) == {"text", "talk"}
    assert read_records(path, mapping={"turns": "talk"})[0].said("user") == "U"
    assert read_records(path, mapping={"text": "frage"})[0].text == "Q"
    assert read_records(path, mapping={"id": "uid"})[0] == Record("7", text="T")


def test_the_schema_can_be_forced(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "r.jsonl", [{"messages": [["user", "U"]], "prompt": "P", "completion": "C", "text": "T"}]
    )
    assert read_records(path)[0].said("user") == "U"
    assert read_records(path, schema="completion")[0].said("user") == "P"
    assert read_records(path, schema="text")[0].text == "T"


@pytest.mark.parametrize(
    ("schema", "mapping"),
    [
        ("dialogue", {}),
        ("auto", {"body": "x"}),
        ("auto", {"text": "x", "turns": "y"}),
        ("auto", {"prompt": "x"}),
        ("text", {"turns": "x"}),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, schema: str, mapping: dict[str, str]) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"text": "x"}])
    with pytest.raises(InputError):
        read_records(path, schema=schema, mapping=mapping)
    with pytest.raises(InputError, match="limit"):
        read_records(path, limit=0)


BAD_ROWS = [
    ({"text": None}, "field 'text'", "null"),
    ({"text": 3}, "field 'text'", "a number"),
    ({"text": True}, "field 'text'", "true"),
    ({"text": ["x"]}, "field 'text'", "a list"),
    ({"text": ""}, "field 'text'", "empty"),
    ({"body": "x"}, "field 'text'", "missing"),
    ({"text": "x", "id": "late"}, "field 'id'", "the first has none"),
    (["x"], "", "a list, not an object"),
    (None, "", "a null, not an object"),
]


@pytest.mark.parametrize(("row", "field", "words"), BAD_ROWS)
def test_a_bad_text_row_is_named_with_line_and_field(
    tmp_path: Path, row: Any, field: str, words: str
) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"text": "fine"}, {"text": "fine"}, row])
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert caught.value.where == f"{path}:3 {field}".strip() and words in caught.value.what
    assert len(read_records(path, limit=2)) == 2


BAD_TURNS = [
    ([], "", "no turns"),
    (None, "", "not null"),
    ("not json", "", "not JSON"),
    ("[" * 100_000, "", "not JSON"),
    ({}, "", "a dict"),
    ([None], " turn 1", "not null"),
    ([["user"]], " turn 1", "a list"),
    ([["user", "x"], {"role": "user", "content": None}], " turn 2", "null"),
    ([["user", "x"], ["assistant", ""]], " turn 2", "empty"),
    ([{"role": "tool", "content": "x"}], " turn 1", "'tool'"),
    ([{"role": None, "content": "x"}], " turn 1", "null"),
    ([{"role": "user", "content": [{"type": "image"}]}], " turn 1", "not text"),
    ([{"role": "user", "content": {"text": None}}], " turn 1", "a dict"),
]


@pytest.mark.parametrize(("turns", "place", "words"), BAD_TURNS)
def test_a_bad_conversation_is_named_with_its_turn(
    tmp_path: Path, turns: Any, place: str, words: str
) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"messages": [["user", "fine"]]}, {"messages": turns}])
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert caught.value.where == f"{path}:2 field 'messages'{place}" and words in str(caught.value)


def test_ids_that_repeat_can_be_replaced_by_numbers(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"id": 1, "text": "x"}, {"id": 1, "text": "y"}, {"text": "z"}])
    records = read_records(path, mapping={"id": ""})
    assert [record.id for record in records] == ["0", "1", "2"] and records[1].fields == {"id": 1}


def test_a_column_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(",text\n0,x\n1,y\n")
    assert [dict(record.fields) for record in read_records(tmp_path / "r.csv")] == [
        {"column 1": "0"},
        {"column 1": "1"},
    ]


@pytest.mark.parametrize("identity", [None, "", 1.5, True, ["a"], {}, 10**200])
def test_a_bad_id_is_refused(tmp_path: Path, identity: Any) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"id": 1, "text": "x"}, {"id": identity, "text": "y"}])
    with pytest.raises(RecordError, match=r"r\.jsonl:2 field 'id'"):
        read_records(path)


def test_ids_that_repeat_name_both_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"id": identity, "text": "x"} for identity in (1, 2, "1")])
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert caught.value.where == f"{path}:3 field 'id'"
    assert caught.value.what == f"the id '1' was used before, at {path}:1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not JSON"),
        (b'{"text": "x"} {"text": "y"}', "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"text": "x", "n": NaN}', "write null"),
        (b'{"text": "x", "n": 1e999}', "too large"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "x", "deep": [{"k": "\\udc00"}]}', "surrogate"),
        (b'{"text": "\xff\xfe"}', "byte 11 of the line is not UTF-8"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b"\x00\x01\x02", "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert caught.value.where == f"{path}:3" and words in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / f"r.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    with pytest.raises(RecordError, match="no rows" if kind != "parquet" else "not a readable Parquet"):
        read_records(path)


def test_a_header_alone_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,text\n")
    with pytest.raises(RecordError, match="no rows"):
        read_records(tmp_path / "r.csv")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, kind: str) -> None:
    good = save(tmp_path, kind, TEXTS)
    marked = tmp_path / f"marked.{kind}"
    marked.write_bytes(b"\xef\xbb\xbf" + good.read_bytes())
    assert read_records(marked) == read_records(good)
    marked.write_bytes(good.read_text().encode("utf-16"))
    with pytest.raises(RecordError, match="UTF-16"):
        read_records(marked)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_of_both_worlds(tmp_path: Path, ending: str) -> None:
    (tmp_path / "r.csv").write_bytes(ending.join(["text", "one", '"two', 'lines"', "", "three"]).encode())
    (tmp_path / "r.jsonl").write_bytes(ending.join(['{"text": "one"}', "", '{"text": "two"}']).encode())
    assert [r.text for r in read_records(tmp_path / "r.csv")] == ["one", f"two{ending}lines", "three"]
    assert [r.text for r in read_records(tmp_path / "r.jsonl")] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("text,a\nx\n", 2, "1 values but the header names 2"),
        ("text,a\nx,1\ny,2,3\n", 3, "3 values"),
        ('text\nx\n"never closed\n', 3, "not valid CSV"),
        ('text\n"a"b\n', 2, "not valid CSV"),
        ("text,text\nx,y\n", 1, "'text' appears twice"),
        ("text\nx\ny\rz\n", 3, "not valid CSV"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    (tmp_path / "r.csv").write_bytes(text.encode())
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path / "r.csv")
    assert caught.value.where == f"{tmp_path / 'r.csv'}:{line}" and words in caught.value.what


def test_long_lines_and_values_are_read_whole(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    limit = csv.field_size_limit()
    for kind in ("jsonl", "csv"):
        [record] = read_records(save(tmp_path, kind, [{"text": long}]))
        assert record.text == long
    assert csv.field_size_limit() == limit, "the csv module's limit is global and must be put back"


@pytest.mark.parametrize("cut", [1, 12, 30, -1])
def test_a_torn_gz_file_is_named(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path, "jsonl.gz", TEXTS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RecordError, match="cannot be read past this line"):
        read_records(path)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    (tmp_path / "rows.parquet.gz").write_text("x")
    for name, words in {
        "none.jsonl": "no such file",
        "rows.xlsx": "format",
        "rows.parquet.gz": "format",
        ".": "folder",
    }.items():
        with pytest.raises(RecordError, match=words):
            read_records(tmp_path / name)


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    split = Dataset.from_list(TEXTS)
    DatasetDict(test=split, train=split).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(RecordError, match="test, train"):
        read_records(tmp_path / "both")
    assert len(read_records(tmp_path / "both" / "test")) == 2


def test_a_damaged_data_set_folder_is_one_sentence(tmp_path: Path) -> None:
    path = save(tmp_path, "dataset", TEXTS)
    for file in path.iterdir():
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])
        with pytest.raises(RecordError):
            read_records(path)
        file.write_bytes(good)
    assert len(read_records(path)) == 2


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    rows = [{"text": f"row {index}"} for index in range(3000)]
    rows[2500] = {"text": None}
    path = save(tmp_path, "parquet", rows)
    with pytest.raises(RecordError, match=r"parquet:2501 field 'text'"):
        read_records(path)
    assert len(read_records(path, limit=2500)) == 2500


def test_errors_quote_no_terminal_escape(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\u202e"
    for row in (
        {"id": evil, "messages": [[evil, "x"]]},
        {evil: "x"},
        {"messages": evil},
        {"id": [evil], "text": "x"},
    ):
        with pytest.raises(RecordError) as caught:
            read_records(jsonl(tmp_path / "r.jsonl", [row]))
        assert str(caught.value).isprintable()
    (tmp_path / "r.csv").write_text(f"{evil}a,{evil}a\n1,2\n")
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path / "r.csv")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("rows", [CHAT, PAIRS, TEXTS], ids=["chat", "pairs", "texts"])
def test_what_is_written_reads_back_equal(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    records = read_records(jsonl(tmp_path / "in.jsonl", rows))
    back = read_records(write_records(tmp_path / f"out.{kind}", records))
    assert back == records and back.sha256 == records.sha256
    assert [dict(record.fields) for record in back] == [dict(record.fields) for record in records]
    first = (tmp_path / f"out.{kind}").read_bytes()
    assert write_records(tmp_path / f"out.{kind}", records).read_bytes() == first


@pytest.mark.parametrize("fields", [{"x": float("nan")}, {"x": b"bytes"}, {"text": "taken"}, {"id": "taken"}])
def test_fields_that_cannot_be_written_are_named_and_nothing_is_written(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(RecordError, match=f"field '{next(iter(fields))}'"):
        write_records(tmp_path / "out.jsonl", [Record("0", text="x"), Record("1", text="y", fields=fields)])
    assert list(tmp_path.iterdir()) == []


def test_writing_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="format"):
        write_records(tmp_path / "out.xlsx", [Record("0", text="x")])


def test_the_hash_is_of_the_content_not_of_the_file(tmp_path: Path) -> None:
    hashes = {read_records(save(tmp_path, kind, TEXTS)).sha256 for kind in FORMATS}
    assert len(hashes) == 1
    records = read_records(save(tmp_path, "jsonl", TEXTS))
    changed = [
        records[:1],
        records[::-1],
        Records([Record("x", text="one\ttab", fields={"tag": "u"}), records[1]]),
        Records([Record("z", text="one\ttab", fields={"tag": "t"}), records[1]]),
    ]
    assert len({records.sha256, *(other.sha256 for other in changed)}) == 5
    assert Records(list(records)).sha256 == records.sha256


def test_records_are_a_sequence(tmp_path: Path) -> None:
    records = read_records(jsonl(tmp_path / "r.jsonl", PAIRS))
    assert isinstance(records[0:1], Records) and records[0:1].schema == "completion" and records[-1].id == "1"
    assert list(reversed(records)) == [records[1], records[0]] and records[0] in records
    assert records.path == tmp_path / "r.jsonl" and "2 completion rows" in repr(records)
    frame = records.to_frame()
    assert (
        list(frame["id"]) == ["0", "1"]
        and list(frame["level"]) == ["1", "2"]
        and frame["turns"][1][1]["text"] == "é"
    )
