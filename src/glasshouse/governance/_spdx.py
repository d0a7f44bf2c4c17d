"""Licences as SPDX expressions: read, normalised from the many ways people write them, and combined.

The parser says where an expression breaks. `normalize_license` never guesses: what no table knows becomes
`LicenseRef-<slug>` with the warning W-LIC-UNKNOWN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Issue
from glasshouse.runtime import files
from glasshouse.runtime.text import shorten

T = TypeVar("T")
DATA = Path(__file__).with_name("data")
_TOKEN = re.compile(r"\s*(?:([()])|([A-Za-z0-9.+:-]+))")
_REF = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
MAX_EXPRESSION = 500
_GRANT = re.compile(
    r"(?i)permission is hereby granted|permission to use, copy|redistribution and use in source"
)
"""Where the short licences begin, whatever title and names stand above."""


@dataclass(frozen=True)
class Term:
    """One licence of an expression; `exception` is what follows WITH; `later` is a trailing +."""

    license: str
    exception: str = ""
    later: bool = False

    def __str__(self) -> str:
        return f"{self.license}{'+' * self.later}{f' WITH {self.exception}' if self.exception else ''}"


@dataclass(frozen=True)
class Combined:
    """`AND` (all apply) or `OR` (one may choose) over parts."""

    operator: str
    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        texts = (f"({part})" if isinstance(part, Combined) else str(part) for part in self.parts)
        return f" {self.operator} ".join(texts)


Expression = Term | Combined


@cache
def known_ids() -> dict[str, tuple[str, str]]:
    """SPDX id -> (name, flags): o OSI approved, f FSF libre, d deprecated."""
    return {
        key: (name, flags) for key, (name, flags) in files.read_json(DATA / "spdx.json")["licenses"].items()
    }


@cache
def _by_lower() -> dict[str, str]:
    return {key.lower(): key for key in known_ids()}


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> Expression:
    """The expression in `text`; ids are matched without case.

    Raises CardError (E-LICENSE) with the column where it breaks, and for an id that SPDX does not know.

    >>> str(parse_expression("apache-2.0 and (MIT or GPL-2.0-only)"))
    'Apache-2.0 AND (MIT OR GPL-2.0-only)'
    """
    if len(text) > MAX_EXPRESSION:
        raise CardError.of("E-LICENSE", f"a licence of {len(text)} characters is no expression")
    tokens = list(_tokens(text))
    parsed, at = _or(tokens, 0, text)
    if at < len(tokens):
        raise _broken(text, tokens[at][1], f"{tokens[at][0]!r} does not follow")
    return parsed


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.end() == at:
            raise _broken(text, at, f"{text[at]!r} cannot stand here")
        token = found.group(1) or found.group(2)
        yield token, found.end() - len(token)
        at = found.end()


def _or(tokens: Sequence[tuple[str, int]], at: int, text: str) -> tuple[Expression, int]:
    return _chain("OR", lambda i: _and(tokens, i, text), tokens, at)


def _and(tokens: Sequence[tuple[str, int]], at: int, text: str) -> tuple[Expression, int]:
    return _chain("AND", lambda i: _one(tokens, i, text), tokens, at)


def _chain(
    word: str, part: Callable[[int], tuple[Expression, int]], tokens: Sequence[tuple[str, int]], at: int
) -> tuple[Expression, int]:
    first, at = part(at)
    parts = [first]
    while at < len(tokens) and tokens[at][0].upper() == word:
        following, at = part(at + 1)
        parts.append(following)
    return (parts[0] if len(parts) == 1 else Combined(word, tuple(parts))), at


def _one(tokens: Sequence[tuple[str, int]], at: int, text: str) -> tuple[Expression, int]:
    if at >= len(tokens):
        raise _broken(text, len(text), "a licence is missing")
    token, place = tokens[at]
    if token == "(":
        inner, at = _or(tokens, at + 1, text)
        if at >= len(tokens) or tokens[at][0] != ")":
            raise _broken(text, place, "the bracket is not closed")
        return inner, at + 1
    if token == ")" or token.upper() in ("AND", "OR", "WITH"):
        raise _broken(text, place, f"a licence is missing before {token!r}")
    term = _term(token, place, text)
    if at + 1 < len(tokens) and tokens[at + 1][0].upper() == "WITH":
        if at + 2 >= len(tokens) or tokens[at + 2][0] in "()":
            raise _broken(text, tokens[at + 1][1], "an exception is missing after WITH")
        return Term(term.license, tokens[at + 2][0], term.later), at + 3
    return term, at + 1


def _term(token: str, place: int, text: str) -> Term:
    if _REF.fullmatch(token):
        return Term(token)
    exact = _by_lower().get(token.lower())
    if exact is not None:
        return Term(exact)
    later = _by_lower().get(token.removesuffix("+").lower()) if token.endswith("+") else None
    if later is None:
        raise _broken(text, place, f"{token[:60]!r} is no SPDX id")
    return Term(later, later=True)


def _broken(text: str, place: int, what: str) -> CardError:
    return CardError.of(
        "E-LICENSE", f"{shorten(text)!r}, column {place + 1}: {what}", fix="give an SPDX expression"
    )


def terms(expression: Expression) -> list[Term]:
    """Every licence in an expression, in order."""
    if isinstance(expression, Term):
        return [expression]
    return [term for part in expression.parts for term in terms(part)]


def fold(
    expression: Expression,
    value: Callable[[Term], T],
    *,
    best: Callable[[Sequence[T]], T],
    worst: Callable[[Sequence[T]], T],
) -> T:
    """A value of an expression from those of its licences: OR takes the best, AND the worst."""
    if isinstance(expression, Term):
        return value(expression)
    values = [fold(part, value, best=best, worst=worst) for part in expression.parts]
    return (best if expression.operator == "OR" else worst)(values)


@cache
def _aliases() -> dict[str, str]:
    """Lower-case hub id, name or habit -> SPDX expression."""
    table: dict[str, Any] = files.read_json(DATA / "licence-names.json")["names"]
    found = {_squeezed(name): spdx for spdx, names in table.items() for name in [spdx, *names]}
    for spdx, (name, _) in known_ids().items():
        found.setdefault(_squeezed(name), spdx)
    return found


def normalize_license(text: str) -> tuple[str, list[Issue]]:
    """The SPDX expression that `text` means, and what to warn of.

    Takes SPDX expressions, hub ids (`apache-2.0`, `llama2`, `other`) and free text ("Apache 2.0", "GNU GPL").
    An expression with brackets or operators that does not parse raises CardError with the column.

    >>> normalize_license("Apache 2.0")[0], normalize_license("llama2")[0]
    ('Apache-2.0', 'LicenseRef-Llama-2')
    """
    plain = " ".join(text.split())
    known = _aliases().get(_squeezed(plain))
    if known is not None:
        return known, []
    try:
        return str(parse_expression(plain)), []
    except CardError:
        if re.search(r"\b(?:AND|OR|WITH)\b|[()]", plain) and len(plain) <= MAX_EXPRESSION:
            raise
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", plain[:80]).strip("-.") or "unnamed"
    told = f"{shorten(plain)!r} is no licence we know"
    return f"LicenseRef-{slug}", [Issue("W-LIC-UNKNOWN", "", told, "give its SPDX id, or add it to a table")]


def hub_license(expression: str) -> tuple[str, str | None]:
    """(`license`, `license_name`) as the hub wants them: its own lower-case id, or "other" and a name."""
    table: dict[str, str] = files.read_json(DATA / "licence-names.json")["hub"]
    if expression in table:
        return table[expression], None
    if expression in known_ids():
        return expression.lower(), None
    return "other", expression.lower().removeprefix("licenseref-").replace(" ", "-")


def license_of_text(text: str) -> str | None:
    """The SPDX id of a licence's text by the hash of its words; None for a text that is not known.

    Lines with a copyright notice, white space, case and punctuation do not count.
    """
    known: dict[str, str] = files.read_json(DATA / "licence-texts.json")["sha256"]
    return known.get(text_hash(text))


def text_hash(text: str) -> str:
    """SHA-256 of a licence's words, without its copyright lines and what follows the end of its terms."""
    body = re.split(r"(?i)end of terms and conditions", text)[0]
    opening = _GRANT.search(body[:3_000])
    body = body[opening.start() :] if opening else body
    kept = (
        line
        for line in body.splitlines()
        if not re.match(r"(?i)\W*(copyright|\(c\)|all rights reserved)", line)
    )
    return files.sha256_bytes(" ".join(re.findall(r"[a-z0-9]+", " ".join(kept).lower())).encode())


def _squeezed(text: str) -> str:
    return re.sub(r"[\s_,.()-]+", " ", text.lower().replace("license", "licence")).strip()
