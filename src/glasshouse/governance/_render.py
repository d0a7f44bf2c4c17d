"""A card for people: one offline HTML page, or a section of Markdown. What the card says is inert text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from glasshouse.governance._card import Card, CardField, Quantity, Source
from glasshouse.governance._lint import Lint, coverage, validate
from glasshouse.governance._plain import canonical
from glasshouse.governance._sources import safe_ref
from glasshouse.governance._types import card_type
from glasshouse.runtime.text import clean_text, shorten

if TYPE_CHECKING:
    from glasshouse.evidence.report import Section

COLUMNS = ("field", "value", "status", "verified", "sources", "note")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~>-])")


def to_html(card: Card, *, lint: Lint | None = None) -> str:
    """One page without scripts of its own, requests or links; `lint` (default: computed) is shown on it."""
    from glasshouse.evidence.report import render_sections

    found = lint if lint is not None else validate(card, level=2)
    kind = card_type(card.card_type)
    sections = [*_coverage_section(card, found), *kind.sections(card), *_field_sections(card)]
    identity = {
        "card_id": card.card_id, "card_type": card.card_type, "schema_version": card.schema_version,
        "issued": card.issued or "not said", "issuer": card.issuer or "not said",
        "subject": card.subject.model_dump(mode="json", exclude_none=True),
    }  # fmt: skip
    return render_sections(
        f"{kind.title}: {card.subject.name}", _lead(card, found), sections, identity, all_in="the card"
    )


def card_sections(card: Card) -> list[Section]:
    """The parts of a report that show a card: what is disclosed by section, then what the type computes."""
    found = validate(card, level=2)
    return [*_coverage_section(card, found), *card_type(card.card_type).sections(card)]


def markdown_section(card: Card) -> str:
    """Headings and tables for a README. No HTML, no link and no marker can come out of a card's text."""
    kind = card_type(card.card_type)
    lines = [f"## {kind.title}: {md(card.subject.name)}", "", md(_lead(card, validate(card, level=2))), ""]
    for title, rows in field_rows(card):
        if rows:
            lines += [
                f"### {md(title)}",
                "",
                "| field | value | status | verified | sources |",
                "|---|---|---|---|---|",
            ]
            lines += ["| " + " | ".join(md(cell) for cell in row[:5]) + " |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def to_csv(card: Card) -> str:
    """One row per field: pointer, value as JSON, status, verified, sources, note.

    A cell that a spreadsheet would compute is quoted with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pointer, one in card.fields():
        value = "" if one.value is None else canonical(plain_value(one.value))
        cells = (pointer, value, one.status, one.verified, "; ".join(map(say_source, one.sources)), one.note)
        writer.writerow(
            [f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells]
        )
    return out.getvalue()


def field_rows(card: Card) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Section title -> rows (field, value, status, verified, sources, note) of text, shown or not."""
    sections = dict(card.SECTIONS) or {"": "Fields"}
    rows: dict[str, list[tuple[str, ...]]] = {title: [] for title in sections.values()}
    for pointer, one in card.fields():
        for prefix, title in sections.items():
            if pointer.startswith(prefix):
                rows[title].append(_row(pointer[len(prefix) :].strip("/") or pointer.strip("/"), one))
                break
    yield from rows.items()


def say(value: Any) -> str:
    """A value in words: numbers with unit and interval, models as `key: value` pairs."""
    if isinstance(value, Quantity):
        interval = (
            f" [{value.low:g}, {value.high:g}]" if value.low is not None and value.high is not None else ""
        )
        n = f" (n={value.n})" if value.n is not None else ""
        return f"{value.value:g}{interval} {value.unit}{n}"
    if isinstance(value, BaseModel):
        parts = ((name, getattr(value, name)) for name in type(value).model_fields)
        return "; ".join(f"{name}: {say(part)}" for name, part in parts if part not in (None, "", []))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {say(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(say, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def say_source(source: Source) -> str:
    """A source in a few words; an address that is none of http, https and doi is not repeated."""
    if not safe_ref(source):
        return f"{source.kind}: (not an address)"
    mark = f" (sha256 {source.sha256[:12]})" if source.sha256 else ""
    quote = f" “{source.quote}”" if source.quote else ""
    return f"{source.kind}: {source.ref}{mark}{quote}"


def md(text: str) -> str:
    """Text as inert Markdown on one line: no HTML, no emphasis, no link, no table cell of its own."""
    line = " ".join(clean_text(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    line = _MARKDOWN.sub(r"\\\1", line)
    # GitHub makes links of bare addresses; a zero-width joiner after the scheme keeps them text.
    return re.sub(r"(?i)\b(https?(?=:)|ftp(?=:)|mailto(?=:)|www(?=\.))", "\\1\u200d", line)


def plain_value(value: Any) -> Any:
    """A field's value as JSON types."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return [plain_value(item) for item in value] if isinstance(value, list) else value


def _row(name: str, one: CardField[Any]) -> tuple[str, ...]:
    value = say(one.value) if one.value is not None else "committed, not told" if one.commitment else "–"
    return (
        name.replace("_", " ").replace("/", " / "), value, one.status.replace("_", " "),
        one.verified.replace("_", " "), "; ".join(map(say_source, one.sources)), one.note,
    )  # fmt: skip


def _lead(card: Card, lint: Lint) -> str:
    known = sum(pair[0] for pair in coverage(card).values())
    every = sum(pair[1] for pair in coverage(card).values())
    issued = f"Issued {card.issued}" if card.issued else "No date of issue"
    by = f" by {shorten(card.issuer)}" if card.issuer else ""
    return (
        f"{issued}{by}. {known} of {every} applicable fields are disclosed. "
        f"The validator finds {len(lint.errors)} errors and {len(lint.warnings)} warnings. "
        "What is unknown is not counted as closed, and no grade is made."
    )


def _coverage_section(card: Card, lint: Lint) -> list[Section]:
    from glasshouse.evidence.findings import Bar, BarsEvidence, EvidenceItem, TableEvidence
    from glasshouse.evidence.report import Section

    bars = tuple(
        Bar(label=f"{title} ({known} of {every})", value=known / every)
        for title, (known, every) in coverage(card).items()
        if every
    )
    items: list[EvidenceItem] = []
    if bars:
        items.append(BarsEvidence(title="Disclosed share of applicable fields", unit="share", bars=bars))
    rows = tuple((i.code, i.pointer, i.message, i.hint) for i in lint.issues)
    if rows:
        items.append(
            TableEvidence(title="The validator says", columns=("code", "where", "what", "hint"), rows=rows)
        )
    if lint.exposed:
        items.append(
            TableEvidence(
                title="Open risks that nothing here addresses",
                columns=("risk",),
                rows=tuple((one,) for one in lint.exposed),
            )
        )
    if lint.metrics:
        told = tuple((str(m["run"]), str(m["metric"]), canonical(m["value"])) for m in lint.metrics)
        items.append(
            TableEvidence(title="Runs that are cited", columns=("run", "metric", "value"), rows=told)
        )
    text = "Coverage counts fields, not their importance."
    return [Section("What is disclosed", text, tuple(items))] if items else []


def _field_sections(card: Card) -> Iterator[Section]:
    from glasshouse.evidence.findings import TableEvidence
    from glasshouse.evidence.report import Section

    for title, rows in field_rows(card):
        if rows:
            yield Section(title, "", (TableEvidence(title="Fields", columns=COLUMNS, rows=tuple(rows)),))
    said = tuple((one.text, one.by, "; ".join(map(say_source, one.sources))) for one in card.statements)
    if said:
        table = TableEvidence(title="Statements", columns=("text", "by", "sources"), rows=said)
        yield Section("Statements", "Said, not measured.", (table,))
