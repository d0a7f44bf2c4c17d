"""What every card is made of: fields that say how well they are known, and sources that can be checked.

A field is never just a value. `status` says whether it is disclosed, `sources` where it can be looked up,
`verified` whether anyone did. Parsing is strict: "about 90 %" is no number, 90 is no share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from glasshouse.governance._plain import canonical
from glasshouse.runtime import files

T = TypeVar("T")
Status = Literal["disclosed", "undisclosed", "unknown", "not_applicable"]
Verified = Literal["verified", "self_reported", "unverified", "disputed"]
SourceKind = Literal["url", "file", "repo", "run", "doi"]
CardKind = Literal["openness", "rlhf", "challenges"]

Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Unknown keys are errors, nothing is coerced, NaN is refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(Strict):
    """Where a fact can be looked up. `file` and `run` are paths under the card's own folder."""

    kind: SourceKind
    ref: Annotated[str, Field(min_length=1, max_length=2_000)]
    sha256: Sha256 | None = None
    accessed: Date | None = None
    quote: Annotated[str, Field(max_length=300)] = ""


class Commitment(Strict):
    """Stands for a value kept back: the salted SHA-256 of it, and a range that may be told."""

    sha256: Sha256
    range: Annotated[str, Field(max_length=200)] = ""


class CardField(Strict, Generic[T]):
    """One fact: its value, how it is known, and where it can be looked up.

    `value` is given exactly when `status` is "disclosed".
    """

    value: T | None = None
    status: Status = "unknown"
    sources: list[Source] = []
    verified: Verified = "unverified"
    note: Text = ""
    commitment: Commitment | None = None


class Quantity(Strict):
    """A measured number: `unit` says of what, `n` on how many, `low` and `high` the interval at `level`."""

    value: float
    unit: Name
    n: Count | None = None
    low: float | None = None
    high: float | None = None
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    method: Annotated[str, Field(max_length=300)] = ""


class Subject(Strict):
    """The model a card is about; `revision` is the 40-hex commit on the hub."""

    name: Name
    hf_id: Annotated[str, Field(pattern=r"^[\w.-]{1,96}(/[\w.-]{1,96})?$")] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    base_models: list[Name] = []


class Statement(Strict):
    """Something said about the subject that is not a fact with a status."""

    text: Text
    by: Annotated[str, Field(max_length=300)] = ""
    sources: list[Source] = []


class Card(Strict):
    """What all cards share; each type adds its sections."""

    SECTIONS: ClassVar[Mapping[str, str]] = {}
    """Pointer prefix of each section -> its title; coverage is counted by section."""

    schema_version: Literal[1] = 1
    card_type: CardKind
    subject: Subject
    issued: Date | None = None
    issuer: Annotated[str, Field(max_length=300)] = ""
    statements: list[Statement] = []

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Any:
        """The card in plain data; raises pydantic's ValidationError."""
        return cls.model_validate_json(canonical(dict(data)))

    def plain(self) -> dict[str, Any]:
        """The card as plain data, what is at its default left out: it reads back as an equal card."""
        found: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return {"schema_version": self.schema_version, "card_type": self.card_type, **found}

    @property
    def card_id(self) -> str:
        """SHA-256 of the canonical JSON: equal for equal cards, whatever file format held them."""
        return files.sha256_json(self.plain())

    def fields(self) -> Iterator[tuple[str, CardField[Any]]]:
        """Every field with its JSON pointer, in the order of the card."""
        yield from walk(self)


def walk(value: Any, pointer: str = "") -> Iterator[tuple[str, CardField[Any]]]:
    """Every `CardField` below `value` with its JSON pointer."""
    if isinstance(value, CardField):
        yield pointer, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from walk(getattr(value, name), f"{pointer}/{escape(name)}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, f"{pointer}/{escape(str(key))}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, f"{pointer}/{index}")


def escape(part: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def disclosed(value: Any, *sources: Source, verified: Verified = "self_reported", note: str = "") -> Any:
    """A disclosed field.

    >>> disclosed(3, Source(kind="url", ref="https://example.org")).status
    'disclosed'
    """
    return CardField[Any](
        value=value, status="disclosed", sources=list(sources), verified=verified, note=note
    )
