"""Questions to cards: their fields as a table, filtered or asked in SQL that can only read."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.governance._card import Card
from glasshouse.governance._plain import canonical
from glasshouse.governance._render import plain_value
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def field_rows(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """One row per field of each card: subject, card_type, field (pointer), value (JSON), status, verified,
    sources (how many), note.
    """
    return [
        {
            "subject": card.subject.name, "card_type": card.card_type, "field": pointer,
            "value": None if one.value is None else canonical(plain_value(one.value)),
            "status": one.status, "verified": one.verified, "sources": len(one.sources), "note": one.note,
        }
        for card in cards
        for pointer, one in card.fields()
    ]  # fmt: skip


def query_cards(
    cards: Sequence[Card], *, field: str = "*", status: str | None = None, verified: str | None = None
) -> list[dict[str, Any]]:
    """The rows whose pointer matches `field` ("/policy/*") and whose status and trust are these."""
    return [
        row
        for row in field_rows(cards)
        if fnmatch.fnmatchcase(row["field"], field)
        and status in (None, row["status"])
        and verified in (None, row["verified"])
    ]


def field_frame(cards: Sequence[Card]) -> pd.DataFrame:
    """`field_rows` as a pandas frame."""
    import pandas as pd

    return pd.DataFrame(field_rows(cards))


def run_sql(sql: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One SELECT over tables of plain rows, in a database in memory that can reach no file and no network.

    Lists and maps in cells become JSON text. Raises InputError for anything that is not one SELECT, or fails.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        for name, rows in tables.items():
            _load(connection, name, rows)
        connection.execute("SET enable_external_access=false")
        connection.execute("SET lock_configuration=true")
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InputError("only one SELECT is answered", where="SQL", fix="ask with SELECT ... FROM ...")
        found = connection.execute(statements[0])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    except duckdb.Error as error:
        first = str(error).splitlines()[0]
        raise InputError(first, where="SQL", fix=f"the tables are {', '.join(tables)}") from error
    finally:
        connection.close()


def _load(connection: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["nothing"]
    kinds = {column: _kind([row.get(column) for row in rows]) for column in columns}
    declared = ", ".join(f'"{column}" {kinds[column]}' for column in columns)
    connection.execute(f'CREATE TABLE "{name}" ({declared})')
    if rows:
        marks = ", ".join("?" for _ in columns)
        cells = [[_cell(row.get(column), kinds[column]) for column in columns] for row in rows]
        connection.executemany(f'INSERT INTO "{name}" VALUES ({marks})', cells)


def _kind(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {bool}:
        return "BOOLEAN"
    if kinds and kinds <= {int}:
        return "BIGINT"
    return "DOUBLE" if kinds and kinds <= {int, float} else "VARCHAR"


def _cell(value: Any, kind: str) -> Any:
    if value is None or kind != "VARCHAR" or isinstance(value, str):
        return value
    return canonical(value)
