"""What a licence permits, and the level that follows: the published reading beside a strict one.

The table is an engineering reading, not legal advice; a YAML file of the user overrides any row. Where the
published rows grade a licence otherwise than a strict reading would, both levels are given and flagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glasshouse.governance._card import CardField
from glasshouse.governance._errors import CardError
from glasshouse.governance._plain import parse_yaml, read_text
from glasshouse.governance._spdx import Term, fold, normalize_license, parse_expression, terms
from glasshouse.governance.openness.taxonomy import PERMISSIONS, WEIGHTS, OpennessCard, band_to_level
from glasshouse.runtime import files

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class LicensePoints:
    """The permissions of one licence expression.

    `permissions` are in the order of `PERMISSIONS`; None where nobody knows. `reference_level` is what the 45
    published rows use (1 to 5; None for licences they do not mention).
    """

    expression: str
    permissions: tuple[bool, ...] | None
    reference_level: int | None = None
    note: str = ""

    @property
    def points(self) -> int | None:
        """How many of the five permissions are granted."""
        return None if self.permissions is None else sum(self.permissions)

    def level_derived(self, kind: str, access: str = "public") -> str | None:
        """The level of a strict reading."""
        return band_to_level(kind, self.points, access)

    def level_reference(self, kind: str) -> str | None:
        """The level that the published rows use."""
        return (
            None
            if self.reference_level is None
            else f"{'C' if kind == 'code' else 'D'}{self.reference_level}"
        )

    def agree(self, kind: str) -> bool | None:
        """Whether both levels are equal; None where the rows do not mention the licence."""
        reference = self.level_reference(kind)
        return None if reference is None else reference == self.level_derived(kind)

    def flags(self) -> dict[str, bool | None]:
        """Permission -> whether it is granted."""
        values = self.permissions if self.permissions is not None else (None,) * len(PERMISSIONS)
        return dict(zip(PERMISSIONS, values, strict=True))


@cache
def licence_table() -> dict[str, LicensePoints]:
    """SPDX id or LicenseRef -> its permissions."""
    rows = files.read_json(DATA / "licences.json")["licenses"]
    return {
        key: LicensePoints(key, None if row[0] is None else tuple(row[0]), row[1], row[2])
        for key, row in rows.items()
    }


def read_overrides(path: Path | str) -> dict[str, LicensePoints]:
    """The user's own rows: YAML `licence: {permissions: [5 booleans], note: ...}`.

    Raises CardError naming the licence whose row is malformed.
    """
    data = parse_yaml(read_text(path), where=str(path))
    if not isinstance(data, Mapping):
        raise CardError.of("E-PARSE", "it holds no map of licences", where=str(path))
    found = {}
    for name, row in data.items():
        given = row.get("permissions") if isinstance(row, Mapping) else None
        if not isinstance(given, list) or len(given) != 5 or not all(isinstance(one, bool) for one in given):
            raise CardError.of(
                "E-TYPE",
                f"{name!r} has no five permissions",
                where=str(path),
                fix="give 5 times true or false",
            )
        spdx = normalize_license(str(name))[0]
        found[spdx] = LicensePoints(spdx, tuple(given), None, str(row.get("note", "")))
    return found


def license_points(text: str, *, overrides: Mapping[str, LicensePoints] | None = None) -> LicensePoints:
    """The permissions of a licence in any spelling. Of `A OR B` the better counts, of `A AND B` both.

    Unknown licences have permissions None. Raises CardError for an expression that does not parse.

    >>> license_points("CC-BY-SA-4.0").points, license_points("MIT OR GPL-3.0-only").points
    (4, 5)
    """
    expression = normalize_license(text)[0]
    table = {**licence_table(), **(overrides or {})}

    def of(term: Term) -> LicensePoints:
        return table.get(term.license, LicensePoints(term.license, None))

    def best(options: Sequence[LicensePoints]) -> LicensePoints:
        return max(
            options, key=lambda one: (one.points if one.points is not None else -1, one.reference_level or 0)
        )

    found = fold(parse_expression(expression), of, best=best, worst=_both)
    return LicensePoints(expression, found.permissions, found.reference_level, found.note)


def level_of(kind: str, text: str, access: str = "public") -> str | None:
    """The strict level of a component of this kind under this licence; None where it is not known."""
    try:
        return license_points(text).level_derived(kind, access)
    except CardError:
        return None


@dataclass(frozen=True)
class Effective:
    """What really binds the weights: the strictest licence on the chain of base models.

    `level` is the lowest level on the chain (None: not one is known). `unknown` are base models of which
    nothing is known: the true level may then be lower.
    """

    license: str | None
    level: int | None
    chain: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def effective_weights_license(card: OpennessCard, cards: Mapping[str, OpennessCard]) -> Effective:
    """The strictest licence from a model back to its first base; `cards` are those of base models by name.

    A LoRA under Apache-2.0 on Llama 2 is bound by Llama 2. Raises CardError (E-BASE-CYCLE) for a circle.
    """
    chain, unknown = _chain(card, cards, ())
    known = [one for one in chain if one[1].value is not None]
    levels = [one.value.points for _, one in known if one.value is not None]
    licences = [one.value.license for _, one in known if one.value is not None and one.value.license]
    strictest = min(licences, key=_freedom, default=None)
    unknown += tuple(name for name, one in chain[1:] if one.value is None)
    return Effective(strictest, min(levels, default=None), tuple(name for name, _ in chain), unknown)


def _chain(
    card: OpennessCard, cards: Mapping[str, OpennessCard], above: tuple[str, ...]
) -> tuple[list[tuple[str, CardField[Any]]], tuple[str, ...]]:
    name = card.subject.name
    path = (*above, name)
    found: list[tuple[str, CardField[Any]]] = [(name, card.cell(WEIGHTS))]
    unknown: tuple[str, ...] = ()
    for base in card.subject.base_models:
        if base in path:
            told = " -> ".join([*path, base])
            raise CardError.of("E-BASE-CYCLE", f"base models in a circle: {told}")
        if base in cards:
            below, missing = _chain(cards[base], cards, path)
            found, unknown = found + below, unknown + missing
        else:
            unknown += (base,)
    return found, unknown


def _freedom(text: str) -> tuple[int, int]:
    """For ordering: an unknown licence is taken for the strictest."""
    try:
        found = license_points(text)
        return (
            found.points if found.points is not None else -1,
            -len(terms(parse_expression(found.expression))),
        )
    except CardError:
        return (-1, 0)


def _both(options: Sequence[LicensePoints]) -> LicensePoints:
    """What several licences permit together; unknown as soon as one is."""
    every = [one.permissions for one in options]
    known = [one for one in every if one is not None]
    permissions = tuple(map(all, zip(*known, strict=True))) if len(known) == len(every) else None
    levels = [one.reference_level for one in options]
    stated = [level for level in levels if level is not None]
    reference = min(stated) if len(stated) == len(levels) else None
    return LicensePoints("", permissions, reference, "; ".join(filter(None, (one.note for one in options))))
