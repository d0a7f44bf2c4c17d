"""The validator: file, schema, consistency, sources, policy; each complaint with a code and a place.

    L0 parse   L1 schema   L2 consistency   L3 sources   L4 coverage policy

A level is reached only when the earlier ones let it: a card that does not parse has no sources to check.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from glasshouse.governance._card import Card, CardField, Quantity, escape
from glasshouse.governance._codes import CODES
from glasshouse.governance._errors import CardError
from glasshouse.runtime import files
from glasshouse.runtime.text import shorten

if TYPE_CHECKING:
    from glasshouse.governance._types import CardType

LINT_FILE = "card-lint.json"
FILLERS = frozenset({
    "", "n/a", "na", "n.a.", "n.a", "tbd", "tba", "todo", "fixme", "-", "--", "---", ".", "...", "?", "??",
    "none", "null", "unknown", "undisclosed", "x", "xx", "xxx", "to be done", "to be determined",
    "to be added", "to be announced", "not available", "not applicable", "placeholder", "coming soon",
    "lorem ipsum",
})  # fmt: skip


@dataclass(frozen=True)
class Issue:
    """One complaint: a stable `code`, the JSON `pointer` it is about, what is wrong, what to do."""

    code: str
    pointer: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(self.code)

    @property
    def is_error(self) -> bool:
        """Errors start with E-, warnings with W-."""
        return self.code.startswith("E-")

    def __str__(self) -> str:
        place = f" {self.pointer}" if self.pointer else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.code}{place}: {self.message}{hint}"


@dataclass(frozen=True)
class Context:
    """What a check may look at besides the card: its folder, cards of base models by name, the date."""

    base: Path | None = None
    cards: Mapping[str, Card] = field(default_factory=dict)
    today: date = field(default_factory=lambda: datetime.now(UTC).date())


@dataclass(frozen=True)
class Lint:
    """What the validator says of one card. `coverage` is section title -> (disclosed, applicable)."""

    card_type: str
    card_id: str
    level: int
    policy: str
    issues: tuple[Issue, ...]
    coverage: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    exposed: tuple[str, ...] = ()
    """Open risks that nothing in the card addresses; no grade is made of them."""
    metrics: tuple[Mapping[str, Any], ...] = ()
    """Headline numbers of the runs the card cites."""

    @property
    def errors(self) -> tuple[Issue, ...]:
        """The issues that make the card unusable."""
        return tuple(issue for issue in self.issues if issue.is_error)

    @property
    def warnings(self) -> tuple[Issue, ...]:
        """The issues a reader should know."""
        return tuple(issue for issue in self.issues if not issue.is_error)

    def exit_code(self, *, strict: bool = False) -> int:
        """2 with errors; else 1 with warnings under `strict`; else 0."""
        return 2 if self.errors else 1 if strict and self.warnings else 0

    def to_json(self) -> dict[str, Any]:
        """What `card-lint.json` holds."""
        return {
            "schema_version": 1, "card_type": self.card_type, "card_id": self.card_id,
            "level": self.level, "policy": self.policy,
            "errors": [asdict(issue) for issue in self.errors],
            "warnings": [asdict(issue) for issue in self.warnings],
            "coverage": {
                title: {"disclosed": pair[0], "applicable": pair[1]} for title, pair in self.coverage.items()
            },
            "exposed": list(self.exposed), "metrics": [dict(row) for row in self.metrics],
        }  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write `card-lint.json` into `folder`."""
        return files.write_json(Path(folder) / LINT_FILE, self.to_json())


def validate(
    source: Card | Mapping[str, Any] | Path | str,
    *,
    level: int = 3,
    policy: str | Path | None = None,
    kind: str | None = None,
    base: Path | None = None,
    cards: Mapping[str, Card] | None = None,
    today: date | None = None,
) -> Lint:
    """Everything that is wrong with a card: a `Card`, plain data, or a file.

    `level` is the highest to reach (0 to 4); `policy` names what must be disclosed (of the type, or a YAML
    file) and implies level 4. `base` is the folder that sources are relative to (default: the file's).
    Never raises for what the card says, only for arguments that mean nothing.
    """
    from glasshouse.governance._files import read_data
    from glasshouse.governance._types import card_type

    level = 4 if policy is not None else level
    context = Context(base, dict(cards or {}), today or Context().today)
    if isinstance(source, Path | str):
        context = replace(context, base=base or Path(source).parent)
        try:
            source = read_data(source, kind)
        except CardError as error:
            return Lint(kind or "", "", 0, "", (Issue(error.code, "", error.what, error.fix or ""),))
    data = source.plain() if isinstance(source, Card) else source
    try:
        found = card_type(kind or data.get("card_type"))
    except CardError as error:
        return Lint(
            str(kind or ""), "", 0, "", (Issue(error.code, "/card_type", error.what, error.fix or ""),)
        )
    card, issues = check_schema(found, data)
    if card is None or level < 2:
        return Lint(found.name, card.card_id if card else "", min(level, 1), "", tuple(issues))
    return _deeper(found, card, issues, level, policy, context)


def _deeper(
    kind: CardType, card: Card, issues: list[Issue], level: int, policy: str | Path | None, context: Context
) -> Lint:
    from glasshouse.governance._policy import check_policy, read_policy
    from glasshouse.governance._sources import check_sources, run_metrics

    issues += [*check_fields(card, context), *kind.check(card, context)]
    metrics: list[dict[str, Any]] = []
    if level >= 3:
        issues += check_sources(card, context)
        metrics = run_metrics(card, context)
    asked = None
    if level >= 4:
        asked = read_policy(kind, policy)
        issues += check_policy(card, asked)
    return Lint(
        kind.name, card.card_id, level, asked.name if asked else "", tuple(issues),
        coverage(card), tuple(kind.exposed(card)), tuple(metrics),
    )  # fmt: skip


def check_schema(kind: CardType, data: Mapping[str, Any]) -> tuple[Card | None, list[Issue]]:
    """The card, or None with one issue per violation of the schema."""
    try:
        return kind.model.parse(data), []
    except ValidationError as error:
        return None, [_schema_issue(kind, dict(one)) for one in error.errors(include_url=False)]
    except (ValueError, TypeError, RecursionError) as error:
        return None, [Issue("E-TYPE", "", f"it is no plain data ({shorten(str(error))})")]


def check_fields(card: Card, context: Context) -> Iterator[Issue]:
    """L2 of every card: status and value, fillers, dates, intervals, sources named."""
    if card.issued is not None:
        yield from check_date(card.issued, "/issued", context)
    for pointer, one in card.fields():
        yield from _check_field(pointer, one, context)


def check_date(text: str, pointer: str, context: Context) -> Iterator[Issue]:
    """A date must exist and not lie in the future."""
    try:
        if date.fromisoformat(text) > context.today:
            yield Issue("E-DATE", pointer, f"{text} lies in the future")
    except ValueError:
        yield Issue("E-DATE", pointer, f"{text} is no date of the calendar", "write YYYY-MM-DD")


def coverage(card: Card) -> dict[str, tuple[int, int]]:
    """Section title -> (disclosed fields, applicable fields); what is absent counts as unknown."""
    found = {title: [0, 0] for title in card.SECTIONS.values()}
    for pointer, one in card.fields():
        for prefix, title in card.SECTIONS.items():
            if pointer.startswith(prefix):
                found[title][0] += one.status == "disclosed"
                found[title][1] += one.status != "not_applicable"
                break
    return {title: (known, every) for title, (known, every) in found.items()}


def _check_field(pointer: str, one: CardField[Any], context: Context) -> Iterator[Issue]:
    given = one.value is not None
    if given != (one.status == "disclosed"):
        what = f"a value is given, and the status is {one.status}" if given else "disclosed without a value"
        yield Issue("E-STATUS", pointer, what, "give the value and 'disclosed', or neither")
    if one.commitment is not None and one.status != "undisclosed":
        yield Issue("E-STATUS", pointer, f"a commitment stands in a field that is {one.status}")
    if one.status == "disclosed" and not one.sources:
        yield Issue("W-EVID", pointer, "disclosed without a source", "say where it can be looked up")
    if one.verified == "disputed":
        yield Issue("W-DISPUTED", pointer, "the value is disputed", "see the note")
    for index, source in enumerate(one.sources):
        if source.accessed is not None:
            yield from check_date(source.accessed, f"{pointer}/sources/{index}/accessed", context)
    yield from _check_value(one.value, f"{pointer}/value")


def _check_value(value: Any, pointer: str) -> Iterator[Issue]:
    """Fillers and impossible intervals anywhere in a value."""
    if isinstance(value, str):
        if value.strip().casefold() in FILLERS or not value.strip():
            yield Issue(
                "E-FILLER", pointer, f"{shorten(value)!r} discloses nothing", "use the status for that"
            )
    elif isinstance(value, Quantity):
        yield from _check_interval(value, pointer)
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            if not _is_choice(info.annotation):
                yield from _check_value(getattr(value, name) or None, f"{pointer}/{escape(name)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_value(item, f"{pointer}/{index}")


def _is_choice(annotation: Any) -> bool:
    """Whether a value is picked from a list, where `none` may be an answer."""
    return get_origin(annotation) is Literal or any(map(_is_choice, get_args(annotation)))


def _check_interval(value: Quantity, pointer: str) -> Iterator[Issue]:
    low, high = value.low, value.high
    if (low is None) != (high is None):
        yield Issue("E-INTERVAL", pointer, "half an interval is given", "give low and high")
    elif low is not None and high is not None and not low <= value.value <= high:
        yield Issue("E-INTERVAL", pointer, f"{value.value:g} lies outside [{low:g}, {high:g}]")


_SCHEMA_CODES = {
    "missing": "E-MISSING", "extra_forbidden": "E-UNKNOWN-KEY", "literal_error": "E-CHOICE",
    "greater_than": "E-RANGE", "greater_than_equal": "E-RANGE", "less_than": "E-RANGE",
    "less_than_equal": "E-RANGE", "string_pattern_mismatch": "E-FORMAT", "finite_number": "E-NAN",
    "string_too_long": "E-LENGTH", "string_too_short": "E-LENGTH", "too_long": "E-LENGTH",
}  # fmt: skip


def _schema_issue(kind: CardType, error: dict[str, Any]) -> Issue:
    steps = [str(step) for step in error["loc"] if step != "[key]"]
    pointer = "".join(f"/{escape(step)}" for step in steps)
    code = _SCHEMA_CODES.get(error["type"], "E-TYPE")
    if "[key]" in error["loc"]:
        code = "E-UNKNOWN-KEY"
    message = shorten(error["msg"], 200)
    return Issue(code, pointer, message, _schema_hint(kind, code, steps, error))


def _schema_hint(kind: CardType, code: str, steps: list[str], error: dict[str, Any]) -> str:
    given = error.get("input")
    if code == "E-UNKNOWN-KEY" and steps:
        return did_you_mean(steps[-1], _known_keys(kind))
    if code == "E-RANGE" and isinstance(given, int | float) and 1 < given <= 100:
        return f"write {given / 100:g} for {given:g} %"
    if code == "E-TYPE" and isinstance(given, str) and "number" in error["msg"] + error["type"]:
        return f"{shorten(given)!r} is text; write the bare number"
    return ""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The question for the nearest known word, or ''."""
    close = difflib.get_close_matches(given[:200], list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def _known_keys(kind: CardType) -> list[str]:
    """Every key that the type's schema knows somewhere, and the words of its choices."""
    from glasshouse.governance._schema import json_schema

    found: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            found.update(node.get("properties", {}))
            found.update(str(word) for word in node.get("enum", ()))
            for item in node.values():
                collect(item)
        elif isinstance(node, list):
            for item in node:
                collect(item)

    collect(json_schema(kind.name))
    return sorted(found)
