"""Keeping a value back without being able to change it: salted commitments.

Deleting a field lets a developer say later whatever suits. A commitment is SHA-256 over a random salt and the
value: an auditor who is shown both can verify it, and nobody can guess a number of few digits from it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Card, CardField, Commitment, Quantity
from glasshouse.governance._compare import put
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import did_you_mean
from glasshouse.governance._plain import canonical
from glasshouse.governance._render import plain_value
from glasshouse.runtime import files

SALT_BYTES = 32


def redact(
    card: Card,
    fields: Iterable[str],
    *,
    ranges: Mapping[str, str] | None = None,
    salts: Mapping[str, str] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """(public card, opening): the named fields (JSON pointers) replaced by commitments.

    A number's range is its decade unless `ranges` says otherwise ("" for none). Give the opening to the
    auditor and keep it secret. `salts` are drawn at random; fix them only in tests. Raises CardError for a
    field that is not there or not disclosed.
    """
    known = dict(card.fields())
    data, opened = card.plain(), {}
    for pointer in dict.fromkeys(fields):
        one = known.get(pointer)
        if one is None or one.status != "disclosed":
            what = f"{pointer!r} is no field" if one is None else f"{pointer!r} is not disclosed"
            raise CardError.of(
                "E-MISSING", what, fix=did_you_mean(pointer, known) or "see `glasshouse card query`"
            )
        salt = (salts or {}).get(pointer) or secrets.token_hex(SALT_BYTES)
        value = plain_value(one.value)
        told = (ranges or {}).get(pointer, _decade(one.value))
        hidden = CardField[Any](
            status="undisclosed", note="value committed, not told",
            commitment=Commitment(sha256=commitment_of(salt, value), range=told),
        )  # fmt: skip
        put(data, pointer, hidden.model_dump(mode="json", exclude_defaults=True))
        opened[pointer] = {"salt": salt, "value": value}
    public = type(card).parse(data)
    return public, {"schema_version": 1, "card_id": public.card_id, "fields": opened}


def verify_commitment(public: Card, opening: Mapping[str, Any]) -> dict[str, bool]:
    """Pointer -> whether the opened value is the committed one. A field that is not committed is False."""
    known = dict(public.fields())
    found = {}
    for pointer, entry in dict(opening.get("fields", {})).items():
        one = known.get(pointer)
        committed = one.commitment if one is not None else None
        found[pointer] = committed is not None and committed.sha256 == commitment_of(
            entry["salt"], entry["value"]
        )
    return found


def commitment_of(salt: str, value: Any) -> str:
    """SHA-256 of the salt and the canonical JSON of the value."""
    return files.sha256_bytes(f"{salt}\n{canonical(value)}".encode())


def save_opening(path: Path | str, opening: Mapping[str, Any]) -> Path:
    """Write the opening file; whoever has it can read the values."""
    return files.write_json(path, dict(opening))


def _decade(value: Any) -> str:
    number = value.value if isinstance(value, Quantity) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
        return ""
    low = math.floor(math.log10(number))
    return f"{10.0**low:g} to {10.0 ** (low + 1):g}"
