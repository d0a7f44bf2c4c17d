"""The schema of a card as JSON Schema 2020-12, for editors and for other languages."""

from __future__ import annotations

from functools import cache
from typing import Any

from glasshouse.governance._types import card_type


@cache
def _schema(kind: str) -> dict[str, Any]:
    found = card_type(kind)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:glasshouse:card:{kind}:1",
        **found.model.model_json_schema(mode="validation"),
        "title": found.title,
    }


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema that accepts what level 1 accepts; rules across fields are the validator's alone."""
    return dict(_schema(kind))
