"""Items as Inspect samples: one per item and arm, with a stable id and everything a scorer needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inspect_ai.dataset import MemoryDataset, Sample

from glasshouse.corpora.sycophancy import ARMS, TASKS, Item, generate_items, load_released
from glasshouse.runtime.errors import InputError


def items_of(task: str, data: str, domain: str | None, n: int, seed: int) -> list[Item]:
    """Generated items (`data="generated"`) or those of a released file, at most `n`, of one domain if given.

    Raises InputError where nothing is left.
    """
    if data == "generated":
        return generate_items(task, domain or DEFAULT_DOMAIN[task], n, seed)
    assert task in TASKS
    found = [i for i in load_released(data, task=task) if domain is None or i.domain == domain]  # type: ignore[arg-type]
    if not found:
        raise InputError(f"there are no items of domain {domain!r}", where=data, fix="leave the domain out")
    return found[:n]


DEFAULT_DOMAIN = {"feedback": "arguments", "are_you_sure": "sums", "answer": "sums", "mimicry": "poets"}


def samples_of(items: Sequence[Item], arms: Sequence[str]) -> MemoryDataset:
    """One sample per item and arm; `pair_id` joins the arms of an item, `group` is its domain."""
    made = [_sample(item, arm) for item in items for arm in arms if arm in item.turns]
    return MemoryDataset(made, name=items[0].task)


def chosen_arms(task: str, arms: str | Sequence[str]) -> tuple[str, ...]:
    """The arms asked for ("all", or names, also as one text with commas), in their own order.

    Raises InputError for an unknown arm. The base of `feedback` is no arm of its own: every other arm is
    compared with it.
    """
    every = tuple(arm for arm in ARMS[task] if arm != "base")
    if arms == "all":
        return every
    named = [a.strip() for a in arms.split(",")] if isinstance(arms, str) else list(arms)
    unknown = [arm for arm in named if arm not in every]
    if unknown or not named:
        raise InputError(
            f"task {task!r} has no arm {(unknown or [''])[0]!r}", fix=f"choose from {', '.join(every)}"
        )
    return tuple(arm for arm in every if arm in named)


def _sample(item: Item, arm: str) -> Sample:
    truth = {name: list(v) if isinstance(v, tuple) else v for name, v in item.truth.items()}
    metadata: dict[str, Any] = {
        "arm": arm, "pair_id": item.id, "group": item.domain, "turns": list(item.turns[arm]), "truth": truth,
        "options": {stage: list(words) for stage, words in item.options.items()},
    }  # fmt: skip
    if "base" in item.turns:
        metadata["base"] = item.turns["base"][0]
    target = str(truth.get("correct") or truth.get("right") or "")
    return Sample(input=item.turns[arm][0], target=target, id=f"{item.id}/{arm}", metadata=metadata)
