"""The types of cards, each with its model, its own checks, and how it is filled and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glasshouse.governance._card import Card
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Context, Issue, did_you_mean

if TYPE_CHECKING:
    from glasshouse.governance._hub import HubFolder

HOMES = {
    "openness": "glasshouse.governance.openness._type",
    "rlhf": "glasshouse.governance.rlhf_disclosure._type",
    "challenges": "glasshouse.governance.foundational_challenges._type",
}


def _nothing(_: Card) -> Iterable[Any]:
    return ()


def _no_keys(_: Card) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class CardType:
    """One type of card.

    `check` yields its own L2 issues; `prefill` makes a card from a model's folder, leaving unknown what it
    cannot read; `sections` are its computed parts of a report (`evidence.report.Section`); `metadata` the
    keys that the hub knows; `exposed` the open risks nobody addresses; `policies` name -> rules.
    """

    name: str
    title: str
    model: type[Card]
    check: Callable[[Any, Context], Iterable[Issue]]
    prefill: Callable[[HubFolder], Card]
    sections: Callable[[Any], Iterable[Any]] = _nothing
    metadata: Callable[[Any], Mapping[str, Any]] = _no_keys
    exposed: Callable[[Any], Iterable[str]] = _nothing
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def card_type(name: object) -> CardType:
    """The type called `name`; CardError with the choices for an unknown one."""
    if not isinstance(name, str) or name not in HOMES:
        said = "the card says no type" if name is None else f"there is no card type {str(name)[:60]!r}"
        hint = did_you_mean(str(name), HOMES) if name is not None else ""
        raise CardError.of("E-TYPE-CARD", said, fix=hint or f"choose from {', '.join(HOMES)}")
    found: CardType = import_module(HOMES[name]).TYPE
    return found
