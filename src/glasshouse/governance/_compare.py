"""Two cards: what changed, what got lost, and one card out of several that say different things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glasshouse.governance._card import Card, CardField
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Issue
from glasshouse.governance._render import plain_value

_TRUST = ("verified", "self_reported", "unverified", "disputed")


@dataclass(frozen=True)
class Change:
    """One field that differs: `kind` is added, removed, changed, or `regressed` (no longer disclosed)."""

    pointer: str
    kind: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def diff(before: Card, after: Card) -> list[Change]:
    """Every field that differs between two cards of one type, in the order of `after`."""
    if before.card_type != after.card_type:
        raise CardError.of(
            "E-TYPE-CARD", f"a {before.card_type} and a {after.card_type} card cannot be compared"
        )
    old, new = dict(before.fields()), dict(after.fields())
    changes = []
    for pointer in [*new, *(p for p in old if p not in new)]:
        a, b = old.get(pointer, CardField[Any]()), new.get(pointer, CardField[Any]())
        if a.model_dump() != b.model_dump():
            changes.append(Change(pointer, _kind(a, b), _plain(a), _plain(b)))
    heads, now = before.plain(), after.plain()
    for key in ("subject", "issued", "issuer", "statements"):
        old_value, new_value = heads.get(key), now.get(key)
        if old_value != new_value:
            changes.append(Change(f"/{key}", "changed", old_value, new_value))
    return changes


def regressions(changes: Iterable[Change]) -> list[Issue]:
    """W-REGRESS for every field that was disclosed and no longer is."""
    return [
        Issue("W-REGRESS", change.pointer, f"disclosed before, now {change.after['status']}")
        for change in changes
        if change.kind == "regressed"
    ]


def merge(cards: Sequence[Card]) -> Card:
    """One card out of several of one type about one subject: each field from the card that knows it best.

    Disclosed beats not; of two disclosed, the better verified, then the later card. Two disclosed fields of
    equal standing with different values become `disputed`, and the note says both. Raises CardError for
    cards of different types or subjects.
    """
    if not cards:
        raise CardError.of("E-MISSING", "no card was given", fix="give at least one")
    first = cards[0]
    for other in cards[1:]:
        if (other.card_type, other.subject.name) != (first.card_type, first.subject.name):
            raise CardError.of("E-TYPE-CARD", "the cards are of different types or subjects")
    data = first.plain()
    fields = [dict(card.fields()) for card in cards]
    for pointer in dict.fromkeys(pointer for found in fields for pointer in found):
        best = _best([found[pointer] for found in fields if pointer in found])
        put(data, pointer, best.model_dump(mode="json", exclude_defaults=True))
    latest = max(cards, key=lambda card: card.issued or "")
    if latest.issued is not None:
        data["issued"] = latest.issued
    statements = [one for card in cards for one in card.plain().get("statements", [])]
    if statements:
        data["statements"] = [one for i, one in enumerate(statements) if one not in statements[:i]]
    merged: Card = type(first).parse(data)
    return merged


def _best(candidates: Sequence[CardField[Any]]) -> CardField[Any]:
    ranked = sorted(candidates, key=lambda one: (one.status != "disclosed", _TRUST.index(one.verified)))
    best = ranked[0]
    rivals = [
        one for one in ranked[1:]
        if one.status == best.status == "disclosed"
        and one.verified == best.verified
        and one.value != best.value
    ]  # fmt: skip
    if not rivals or best.verified == "disputed":
        return best
    told = "; ".join(str(plain_value(one.value)) for one in rivals)
    sources = [*best.sources, *(s for one in rivals for s in one.sources if s not in best.sources)]
    note = f"{best.note} others say: {told}".strip()
    return best.model_copy(update={"verified": "disputed", "note": note[:20_000], "sources": sources})


def _kind(a: CardField[Any], b: CardField[Any]) -> str:
    if a.status == "disclosed" and b.status != "disclosed":
        return "regressed"
    if a == CardField[Any]():
        return "added"
    return "removed" if b == CardField[Any]() else "changed"


def _plain(one: CardField[Any]) -> dict[str, Any]:
    return {"status": one.status, **one.model_dump(mode="json", exclude_defaults=True)}


def put(data: dict[str, Any], pointer: str, value: Any) -> None:
    """Set what a pointer names in plain data, making the maps on the way; lists are met, never made."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    node: Any = data
    for step in steps[:-1]:
        if isinstance(node, list):
            if int(step) >= len(node):
                return
            node = node[int(step)]
        else:
            node = node.setdefault(step, {})
    if isinstance(node, list):
        if int(steps[-1]) < len(node):
            node[int(steps[-1])] = value
    else:
        node[steps[-1]] = value
