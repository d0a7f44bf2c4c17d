"""Scenarios: a market written down, so that it can be read from a file, changed by name and run again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from glasshouse.runtime.documents import read_document
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import shorten


class Scenario(BaseModel):
    """Base of the wing's scenarios: frozen, every field with a default, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str = "scenario") -> Self:
        """The scenario in plain data. Raises InputError that names the first wrong field and its values.

        Fields that are absent have their defaults.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise _sentence(error, where, list(cls.model_fields)) from None

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The scenario in a YAML or JSON file. Raises InputError for a file that is missing or wrong."""
        return cls.parse(read_document(path), where=str(path))

    def changed(self, changes: Mapping[str, Any], *, where: str = "scenario") -> Self:
        """A copy with other values, validated anew. Raises InputError as `parse` does."""
        return type(self).parse({**self.model_dump(mode="json"), **changes}, where=where)

    def to_json(self) -> dict[str, Any]:
        """Every field, defaults included, as plain JSON."""
        return dict(self.model_dump(mode="json"))


def _sentence(error: ValidationError, where: str, fields: list[str]) -> InputError:
    first = error.errors()[0]
    at = ".".join(map(str, first["loc"])) or "the whole scenario"
    if first["type"] == "extra_forbidden":
        return InputError(
            f"there is no field {shorten(at)!r}", where=where, fix="use one of: " + ", ".join(fields)
        )
    said = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = shorten(repr(first.get("input")))
    if first["type"] == "value_error":
        return InputError(f"{at}: {said}" if first["loc"] else said, where=where)
    return InputError(f"{at} is {given}: {said[:1].lower()}{said[1:]}", where=where)
