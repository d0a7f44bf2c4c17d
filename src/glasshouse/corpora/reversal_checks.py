"""What must hold of facts told in one order and asked in both, before a model is trained or asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.corpora.reversal import Entity, ReversalRow

DIRECTIONS = ("p2d", "d2p")


class LeakageError(InputError):
    """What is tested was also trained on: shared entities, shared templates, or the answer in the prompt."""


def _normal(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")


def check_entities(entities: Sequence[Entity]) -> None:
    """Raise LeakageError for one entity in two groups, InputError where one name begins another."""
    if not entities:
        raise InputError("there are no entities", fix="give at least two per group")
    for side in ("name", "description"):
        groups: dict[str, set[str]] = {}
        for entity in entities:
            groups.setdefault(_normal(getattr(entity, side)), set()).add(entity.group)
        shared = sorted(said for said, where in groups.items() if len(where) > 1)
        if shared:
            raise LeakageError(
                f"{len(shared)} entities stand in more than one group: {', '.join(shared[:5])}",
                fix="give the groups disjoint entities",
            )
        said = sorted(_normal(getattr(e, side)) for e in entities)
        for short, long in pairwise(said):
            # A name that begins another would be marked right for both.
            if long.startswith(short):
                raise InputError(
                    f"the {side} {short!r} is the beginning of {long!r}", fix="rename or drop one of them"
                )


def check_rows(rows: Sequence[ReversalRow], known: set[str], told_reversed: Sequence[str]) -> None:
    """Raise LeakageError or InputError for the first row that must not be there."""
    trained: dict[str, set[str]] = {direction: set() for direction in DIRECTIONS}
    seen_ids: set[str] = set()
    prompts = {row.prompt for row in rows if row.split == "train"}
    for row in rows:
        _check_row(row, told_reversed, known)
        if row.id in seen_ids:
            raise InputError(f"the row id {row.id!r} is used twice", fix="make the ids unique")
        seen_ids.add(row.id)
        if row.split == "train":
            trained[row.direction].add(row.template_id)
    for row in rows:
        if row.split == "test" and row.template_id in trained[row.direction]:
            raise LeakageError(
                f"the test template {row.template_id!r} is also a training template",
                where=f"row {row.id!r}", fix="hold templates out, or call the split 'seen'",
            )  # fmt: skip
        if row.split == "test" and row.prompt in prompts:
            raise LeakageError(
                "the test prompt is also a training prompt", where=f"row {row.id!r}", fix="drop the row"
            )


def _check_row(row: ReversalRow, told_reversed: Sequence[str], known: set[str]) -> None:
    where = f"row {row.id!r}"
    if row.entity_id not in known:
        raise InputError(f"the entity {row.entity_id!r} is not listed", where=where, fix="add it")
    if not row.prompt.strip() or not row.completion.strip():
        raise InputError("the prompt or the completion is empty", where=where, fix="drop the row")
    if _normal(row.completion) in _normal(row.prompt):
        raise LeakageError(
            "the prompt already contains the answer", where=where, fix="cut it before the answer"
        )
    allowed = row.group in ("both", row.direction) or row.group in told_reversed
    if row.split == "train" and not allowed:
        raise LeakageError(
            f"training tells the fact in the order {row.direction}, and its group is {row.group}",
            where=where, fix=f"drop the row, or declare told_reversed=({row.group!r},)",
        )  # fmt: skip


def joins_words(tokenizer: Any) -> bool:
    """Whether text glued to a prompt can change the prompt's own tokens (byte-pair encodings)."""
    apart = [*_ids(tokenizer, "the ab"), *_ids(tokenizer, "out")]
    return _ids(tokenizer, "the about") != apart


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def shared_first_tokens(tokenizer: Any, names: Sequence[str]) -> list[str]:
    """The names whose first token is also the first of another name."""
    owners: dict[int, list[str]] = {}
    for name in names:
        owners.setdefault(_first(tokenizer, _ids(tokenizer, " " + name)), []).append(name)
    return [name for own in owners.values() if len(own) > 1 for name in own]


def _first(tokenizer: Any, ids: list[int]) -> int:
    """The first token that says something: some tokenizers put a lone space before a word."""
    return next((i for i in ids if tokenizer.decode([i]).strip()), ids[0])
