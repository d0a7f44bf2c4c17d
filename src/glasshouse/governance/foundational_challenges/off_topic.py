"""Texts about anything but the challenges, from templates: to set the threshold, and others to test it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

_HELD_IN = {
    "Pack {a} and {b} for a weekend of camping, and check the weather before you leave.": (
        ("a tent", "a stove", "warm socks", "a lamp"), ("rain coats", "maps", "water bottles"),
    ),
    "The {a} in the garden needs {b} every week during the summer.": (
        ("rose", "lawn", "apple tree", "hedge"), ("watering", "cutting", "feeding"),
    ),
    "Our hotel in {a} had {b} and a friendly reception.": (
        ("Lisbon", "Vienna", "Oslo"),
        ("a small pool", "thin walls", "a large breakfast", "a view of the sea"),
    ),
    "The orchestra played {a} with {b} before the interval.": (
        ("a symphony", "an overture", "a waltz"), ("great warmth", "some haste", "clear brass"),
    ),
    "Change the {a} of the car every {b} kilometres.": (
        ("oil", "filter", "tyres", "brake pads"), ("10,000", "20,000", "40,000"),
    ),
}  # fmt: skip
_TEST = {
    "Mix {a} with {b}, bake for forty minutes and let it cool.": (
        ("flour", "butter", "eggs", "oats", "sugar"), ("milk", "honey", "lemon peel", "almonds"),
    ),
    "The {a} won {b} after a goal in the last minute.": (
        ("home team", "visitors", "youth team", "women's side"),
        ("the match", "the cup", "the league", "the derby"),
    ),
    "File your {a} return by {b} and keep the receipts for seven years.": (
        ("income tax", "property tax", "sales tax"), ("the end of March", "early June", "October"),
    ),
    "The tide at the harbour is {a}, so the boats leave {b}.": (
        ("low", "high", "rising"), ("at noon", "before dawn"),
    ),
}  # fmt: skip


def held_in() -> list[str]:
    """57 texts to set the threshold of acceptance with."""
    return _fill(_HELD_IN)


def held_out() -> list[str]:
    """50 texts on recipes, sports, tax and tides, none of whose templates set the threshold."""
    return _fill(_TEST)[:50]


def _fill(templates: Mapping[str, tuple[tuple[str, ...], ...]]) -> list[str]:
    return [text.format(a=a, b=b) for text, slots in templates.items() for a, b in itertools.product(*slots)]
