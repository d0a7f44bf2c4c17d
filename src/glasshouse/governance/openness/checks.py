"""What an openness card may not say: levels against access and licence, licences against their texts."""

from __future__ import annotations

from collections.abc import Iterator

from glasshouse.governance._card import CardField, escape
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Context, Issue
from glasshouse.governance._plain import read_text
from glasshouse.governance._sources import inside
from glasshouse.governance._spdx import license_of_text, normalize_license, parse_expression, terms
from glasshouse.governance.openness.licences import effective_weights_license, license_points
from glasshouse.governance.openness.taxonomy import ComponentOpenness, OpennessCard, kind_of


def check(card: OpennessCard, context: Context) -> Iterator[Issue]:
    """Every L2 issue of an openness card."""
    for component, one in card.components.items():
        pointer = f"/components/{escape(component)}"
        if one.value is not None:
            yield from _component(component, one.value, f"{pointer}/value")
            yield from _texts(one, f"{pointer}/value/license", context)
    yield from _bases(card, context)


def _component(component: str, value: ComponentOpenness, pointer: str) -> Iterator[Issue]:
    kind = kind_of(component)
    right = "C" if kind == "code" else "D"
    if value.level[0] != right:
        yield Issue(
            "E-KIND", f"{pointer}/level", f"{value.level} grades {component}", f"write {right}{value.points}"
        )
    closed = value.access == "none"
    if closed != (value.points == 1) and value.access is not None:
        what = f"{value.level} with access {value.access!r}"
        yield Issue("E-LEVEL-ACCESS", f"{pointer}/level", what, "level 1 is what nobody can reach")
    if kind == "data" and value.points == 2 and value.access not in ("api", None):
        yield Issue(
            "E-LEVEL-ACCESS", f"{pointer}/level", "D2 is reached only through an api", "see the scale"
        )
    if value.access == "gated" and value.points == 5:
        yield Issue("E-LEVEL-ACCESS", f"{pointer}/level", "what is gated is not free of restrictions")
    if value.license is not None:
        yield from _licence(kind, value, pointer)


def _licence(kind: str, value: ComponentOpenness, pointer: str) -> Iterator[Issue]:
    place = f"{pointer}/license"
    try:
        expression, warnings = normalize_license(value.license or "")
        points = license_points(expression)
    except CardError as error:
        yield Issue("E-LICENSE", place, error.what, error.fix or "")
        return
    for warning in warnings:
        yield Issue(warning.code, place, warning.message, warning.hint)
    if (
        any(term.license == "LicenseRef-Other" for term in terms(parse_expression(expression)))
        and not value.license_link
    ):
        yield Issue("W-LIC-LINK", place, "the licence is 'other'", "link its text")
    derived = points.level_derived(kind, value.access or "public")
    if points.level_reference(kind) == value.level:
        if derived != value.level:
            strict = derived or "nothing"
            told = f"the published rows give {value.level}, a strict reading {strict}: {points.note}"
            yield Issue("W-LIC-STRICT", f"{pointer}/level", told)
    elif derived is not None and value.points > int(derived[1]) and not value.override_reason.strip():
        told = f"{value.level}, and {expression} gives {derived}"
        yield Issue("E-LEVEL-LICENSE", f"{pointer}/level", told, "lower it, or give override_reason")


def _texts(one: CardField[ComponentOpenness], pointer: str, context: Context) -> Iterator[Issue]:
    """A licence's text among the sources must be the stated licence."""
    if context.base is None or one.value is None or one.value.license is None:
        return
    for source in one.sources:
        if source.kind != "file" or not source.ref.rsplit("/", 1)[-1].upper().startswith(
            ("LICEN", "COPYING")
        ):
            continue
        try:
            found = license_of_text(read_text(inside(context.base, source.ref)))
            stated = {
                term.license for term in terms(parse_expression(normalize_license(one.value.license)[0]))
            }
        except CardError:
            continue  # said elsewhere
        if found is not None and found not in stated:
            yield Issue(
                "E-LIC-CONFLICT", pointer, f"{source.ref} is the text of {found}, not of {one.value.license}"
            )


def _bases(card: OpennessCard, context: Context) -> Iterator[Issue]:
    cards = {name: one for name, one in context.cards.items() if isinstance(one, OpennessCard)}
    try:
        effective = effective_weights_license(card, cards)
    except CardError as error:
        yield Issue("E-BASE-CYCLE", "/subject/base_models", error.what)
        return
    for name in effective.unknown:
        told = f"nothing is known of {name!r}: the weights count as unknown, not as open"
        yield Issue("W-BASE-MISSING", "/subject/base_models", told, "give its card")
