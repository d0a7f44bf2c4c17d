"""From the columns of a row to a Record: which columns hold the text, and in which of many spellings.

| schema     | columns (first that fits)                                                          |
|------------|------------------------------------------------------------------------------------|
| chat       | turns, messages, conversations, conversation: a list of turns                      |
| completion | prompt, instruction (with input), question, query, input                           |
|            | and completion, response, output, answer, reply                                    |
| text       | text, content, document                                                            |

A turn is `{role, content}`, `{from, value}`, `{speaker, text}` in any combination, or `[role, text]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from glasshouse.corpora.rows import Record, Role, Turn
from glasshouse.runtime.errors import InputError, RecordError
from glasshouse.runtime.text import shorten

Schema = Literal["chat", "text", "completion"]

TURNS = ("turns", "messages", "conversations", "conversation")
PROMPT = ("prompt", "instruction", "question", "query", "input")
COMPLETION = ("completion", "response", "output", "answer", "reply")
TEXT = ("text", "content", "document")
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "bot", "gpt", "model", "ai"), "assistant"),
}
_ROLE_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "text", "value")
_MAPPED: Mapping[str, Schema | None] = {
    "id": None,
    "turns": "chat",
    "prompt": "completion",
    "completion": "completion",
    "text": "text",
}


@dataclass(frozen=True)
class Columns:
    """Which column plays which part; `extra` is the `input` that Alpaca rows add to the instruction.

    `id` is None where the rows have no id, and empty where they are to be numbered all the same.
    """

    schema: Schema
    turns: str | None = None
    prompt: str | None = None
    completion: str | None = None
    extra: str | None = None
    text: str | None = None
    id: str | None = None

    @cached_property
    def used(self) -> set[str]:
        """The columns that become the record itself and so are not kept in `Record.fields`."""
        parts = (self.turns, self.prompt, self.completion, self.extra, self.text, self.id)
        return {name for name in parts if name}


def check_request(schema: str, mapping: Mapping[str, str]) -> None:
    """Raise InputError for a schema or a mapping that means nothing."""
    if schema not in ("auto", *get_args(Schema)):
        raise InputError(f"{schema!r} is not a schema", fix="use auto, chat, text or completion")
    unknown = sorted(set(mapping) - set(_MAPPED))
    if unknown:
        raise InputError(f"{unknown[0]!r} is not a field", fix=f"map one of {', '.join(_MAPPED)} to a column")
    kinds = {kind for name in mapping if (kind := _MAPPED[name])}
    if len(kinds) > 1:
        raise InputError(
            "the mapping mixes " + " and ".join(sorted(kinds)), fix="map the fields of one schema"
        )
    if ("prompt" in mapping) != ("completion" in mapping):
        raise InputError("a mapping of prompt and completion needs both", fix="map the missing one too")
    if (
        schema != "auto"
        and kinds
        and schema not in kinds
        and not (schema == "chat" and "completion" in kinds)
    ):
        raise InputError(f"the mapping is for {kinds.pop()!r} rows, the schema is {schema!r}")


def choose_columns(row: Mapping[str, Any], schema: str, mapping: Mapping[str, str], where: str) -> Columns:
    """Decide from the first row. Raises RecordError when no column fits, listing those that are there."""
    for field, column in mapping.items():
        if column not in row and (field, column) != ("id", ""):
            raise RecordError(
                f"there is no such column (mapped to {field!r})",
                where=f"{where} field {shorten(column)!r}",
                fix=_there_is(row),
            )
    id_column = mapping.get("id", "id" if "id" in row else None)
    if "turns" in mapping:
        return Columns("chat", turns=mapping["turns"], id=id_column)
    if "prompt" in mapping:
        return Columns("completion", prompt=mapping["prompt"], completion=mapping["completion"], id=id_column)
    if "text" in mapping:
        return Columns("text", text=mapping["text"], id=id_column)
    found = _guess(row, schema, id_column)
    if found is None:
        looked = "text" if schema == "auto" else schema
        raise RecordError(
            f"no column looks like {looked}", where=where, fix=_there_is(row) + "; name yours in a mapping"
        )
    return found


def to_record(row: Mapping[str, Any], columns: Columns, position: int, where: str) -> Record:
    """The Record of one row. Raises RecordError naming the field that is missing, empty or no text."""
    fields = {name: value for name, value in row.items() if name not in columns.used}
    identity = _identity(row, columns, position, where)
    if columns.text is not None:
        text = _text(_value(row, columns.text, where), f"{where} field {columns.text!r}")
        return Record(identity, text=text, fields=fields, where=where)
    if columns.turns is not None:
        turns = _turns(_value(row, columns.turns, where), f"{where} field {columns.turns!r}")
    else:
        turns = _prompt(row, columns, where) + _completion(row, columns, where)
    return Record(identity, turns=turns, fields=fields, where=where)


def _guess(row: Mapping[str, Any], schema: str, id_column: str | None) -> Columns | None:
    turns = _first(row, TURNS)
    prompt, completion = _first(row, PROMPT), _first(row, COMPLETION)
    text = _first(row, TEXT)
    if schema in ("auto", "chat") and turns is not None:
        return Columns("chat", turns=turns, id=id_column)
    if schema in ("auto", "chat", "completion") and prompt is not None and completion is not None:
        extra = "input" if prompt == "instruction" and "input" in row else None
        return Columns("completion", prompt=prompt, completion=completion, extra=extra, id=id_column)
    if schema in ("auto", "text") and text is not None:
        return Columns("text", text=text, id=id_column)
    return None


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _there_is(row: Mapping[str, Any]) -> str:
    names = ", ".join(shorten(str(name), 30) for name in list(row)[:12]) or "no column at all"
    return f"there is {names}" + (", ..." if len(row) > 12 else "")


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise RecordError(
            "the field is missing, though the first row has it", where=f"{where} field {shorten(column)!r}"
        )
    return row[column]


def _identity(row: Mapping[str, Any], columns: Columns, position: int, where: str) -> str:
    if not columns.id:
        if columns.id is None and "id" in row:
            raise RecordError("the row has an id, though the first has none", where=f"{where} field 'id'")
        return str(position)
    value = _value(row, columns.id, where)
    if isinstance(value, str) and value:
        return _whole(value, f"{where} field {columns.id!r}")
    at = f"{where} field {shorten(columns.id)!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(f"an id is a string or a whole number, not {_show(value)}", where=at)
    if abs(value) >= 10**100:
        raise RecordError("the id has over a hundred digits", where=at, fix="write it as a string")
    return str(value)


def _prompt(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[Turn, ...]:
    assert columns.prompt is not None
    at = f"{where} field {columns.prompt!r}"
    value = _value(row, columns.prompt, where)
    if isinstance(value, list):
        return _turns(value, at)
    text = _text(value, at, may_be_empty=True)
    if columns.extra is not None and row.get(columns.extra) is not None:
        extra = _text(row[columns.extra], f"{where} field {columns.extra!r}", may_be_empty=True)
        text = f"{text}\n\n{extra}" if extra else text
    return (Turn("user", text),)


def _completion(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[Turn, ...]:
    assert columns.completion is not None
    at = f"{where} field {columns.completion!r}"
    value = _value(row, columns.completion, where)
    return _turns(value, at) if isinstance(value, list) else (Turn("assistant", _text(value, at)),)


def _turns(value: Any, where: str) -> tuple[Turn, ...]:
    if isinstance(value, str):  # CSV and some Parquet files keep the list as JSON text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RecordError("the list of turns is not JSON", where=where) from error
    if not isinstance(value, list):
        raise RecordError(f"turns are a list, not {_show(value)}", where=where)
    if not value:
        raise RecordError("the conversation has no turns", where=where, fix="drop the row or give it one")
    return tuple(_turn(item, f"{where} turn {number}") for number, item in enumerate(value, 1))


def _turn(item: Any, where: str) -> Turn:
    if isinstance(item, dict):
        # Arrow gives every struct all keys, with None where a row lacks one.
        role = next((item[key] for key in _ROLE_KEYS if item.get(key) is not None), None)
        text = next((item[key] for key in _TEXT_KEYS if item.get(key) is not None), None)
    elif isinstance(item, list) and len(item) == 2:
        role, text = item
    else:
        raise RecordError(
            f"a turn is {{role, content}} or [role, text], not {_show(item)}",
            where=where,
            fix="rewrite it so",
        )
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise RecordError(f"the role is {_show(role)}", where=where, fix="use system, user or assistant")
    return Turn(known, _text(_joined(text, where), where, may_be_empty=known != "assistant"))


def _joined(content: Any, where: str) -> Any:
    """Content given as parts (`[{type: text, text: ...}]`) as one string; other parts are refused."""
    if not isinstance(content, list):
        return content
    parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise RecordError("the content has parts that are not text", where=where, fix="keep only the text")
    return "".join(parts)


def _text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RecordError(f"the field is {_show(value)}, not text", where=where)
    if not value and not may_be_empty:
        raise RecordError("the field is empty", where=where, fix="drop the row or give it text")
    return _whole(value, where)


def _whole(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError("the text holds half of a surrogate pair", where=where) from error
    return text


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return repr(shorten(value, 40))
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
