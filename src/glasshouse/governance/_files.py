"""Cards in files: JSON, YAML, Markdown front matter; the same card whatever the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Card
from glasshouse.governance._errors import CardError
from glasshouse.governance._markdown import cards_in, write_into
from glasshouse.governance._plain import canonical, dump_yaml, parse_json, parse_yaml, read_text
from glasshouse.runtime import files
from glasshouse.runtime.text import shorten

FORMATS = ("json", "yaml", "md", "html", "csv", "spdx", "cyclonedx")
_BY_ENDING = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".md": "md", ".markdown": "md"}


def read_data(path: Path | str, kind: str | None = None) -> dict[str, Any]:
    """The plain data of the card in a file; `kind` picks one where a README holds several.

    Raises CardError for a file that is none.
    """
    source = Path(path)
    form = _BY_ENDING.get(source.suffix.lower())
    if form is None:
        raise CardError.of(
            "E-READ", "the name tells no format", where=str(source), fix="use .json, .yaml or .md"
        )
    text = read_text(source)
    if form == "md":
        return _one(cards_in(text), kind, str(source))
    data = (parse_json if form == "json" else parse_yaml)(text, where=str(source))
    if not isinstance(data, dict):
        raise CardError.of("E-PARSE", "it holds no map of keys", where=str(source), fix="give a card")
    return data


def read_card(path: Path | str, kind: str | None = None) -> Any:
    """The card in a file. Raises CardError with the first violation when it does not fit its schema."""
    return to_card(read_data(path, kind), kind, where=str(path))


def to_card(data: Mapping[str, Any], kind: str | None = None, *, where: str | None = None) -> Any:
    """Plain data as a card of its type. Raises CardError with the first violation of the schema."""
    from glasshouse.governance._lint import check_schema
    from glasshouse.governance._types import card_type

    said = data.get("card_type")
    if kind is not None and said is not None and said != kind:
        raise CardError.of(
            "E-TYPE-CARD", f"the card is of type {shorten(str(said))!r}, not {kind!r}", where=where
        )
    card, issues = check_schema(card_type(kind or said), data)
    if card is None:
        first = issues[0]
        more = f" (and {len(issues) - 1} more)" if len(issues) > 1 else ""
        raise CardError.of(
            first.code, f"{first.pointer or 'the card'}: {first.message}{more}", where=where,
            fix=first.hint or "see `glasshouse card validate`",
        )  # fmt: skip
    return card


def write_card(path: Path | str, card: Card) -> Path:
    """Write a card by the ending of the name: .json (canonical), .yaml, .md (into an existing README)."""
    target = Path(path)
    form = _BY_ENDING.get(target.suffix.lower())
    if form == "json":
        return files.write_text(target, to_json(card))
    if form == "yaml":
        return files.write_text(target, dump_yaml(card.plain()))
    if form == "md":
        return files.write_text(target, to_markdown(card, read_text(target) if target.exists() else ""))
    raise CardError.of("E-READ", "the name tells no format", where=str(target), fix="use .json, .yaml or .md")


def to_json(card: Card) -> str:
    """Canonical JSON and a newline; its SHA-256 without the newline is the `card_id`."""
    return canonical(card.plain()) + "\n"


def to_yaml(card: Card) -> str:
    """The card as YAML."""
    return dump_yaml(card.plain())


def to_markdown(card: Card, readme: str = "") -> str:
    """`readme` (default: none) with the card in its front matter and a readable section in its body."""
    from glasshouse.governance._render import markdown_section
    from glasshouse.governance._types import card_type

    cards = {kind: to_card(data, kind) for kind, data in cards_in(readme).items() if kind != card.card_type}
    sections = {kind: markdown_section(one) for kind, one in {**cards, card.card_type: card}.items()}
    return write_into(readme, card, card_type(card.card_type).metadata(card), sections)


def from_markdown(text: str, kind: str | None = None) -> Any:
    """The card in a Markdown text; `kind` picks one where it holds several."""
    return to_card(_one(cards_in(text), kind, "the Markdown text"), kind)


def _one(cards: Mapping[str, dict[str, Any]], kind: str | None, where: str) -> dict[str, Any]:
    if kind is None and len(cards) == 1:
        return next(iter(cards.values()))
    if kind is not None and kind in cards:
        return cards[kind]
    held = ", ".join(shorten(name) for name in cards) or "none"
    raise CardError.of("E-READ", f"it holds these cards: {held}", where=where, fix="name one with --type")
