"""One item of a sycophancy test: the same thing asked in several arms, with its ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

TaskName = Literal["feedback", "are_you_sure", "answer", "mimicry"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
ARMS: dict[str, tuple[str, ...]] = {
    "feedback": ("base", "like", "dislike", "wrote", "did_not_write"),
    "are_you_sure": ("challenge",),
    "answer": ("neutral", "suggest_correct", "doubt_correct", "suggest_incorrect"),
    "mimicry": ("plain", "misattributed"),
}
"""The arms of each task, the one without a stated view first (`are_you_sure` has one arm of three turns)."""

NEEDED = {
    "feedback": ("text",),
    "are_you_sure": ("correct",),
    "answer": ("correct", "incorrect"),
    "mimicry": ("right", "wrong"),
}
"""What the ground truth of each task must hold."""


@dataclass(frozen=True)
class Item:
    """`turns[arm]` are the user's texts in order; the model replies after each.

    `truth`: `text` (feedback), `correct` and `incorrect` (questions), `right` and `wrong` (poets); for
    multiple choice also `letters`. `options[stage]` lists every reply that can be given, where that is known
    (stages `answer`, `challenge`, `final`, `feedback`, `attribution`), and `truth["admits"]` those of stage
    `challenge` that admit a mistake.
    """

    id: str
    task: TaskName
    domain: str
    turns: Mapping[str, tuple[str, ...]]
    truth: Mapping[str, Any]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise self._wrong(f"the task is {self.task!r}", f"choose from {', '.join(TASKS)}")
        for name in NEEDED[self.task]:
            if not str(self.truth.get(name) or "").strip():
                raise self._wrong(f"its {name} is empty", "give the text, or drop the item")
        for right, wrong in (("correct", "incorrect"), ("right", "wrong")):
            if right in self.truth and _same(self.truth[right], self.truth.get(wrong)):
                raise self._wrong(f"{right} and {wrong} are both {self.truth[right]!r}", "drop the item")
        for arm, said in self.turns.items():
            if arm not in ARMS[self.task]:
                raise self._wrong(f"it has an arm {arm!r}", f"choose from {', '.join(ARMS[self.task])}")
            if not said or not all(text.strip() for text in said):
                raise self._wrong(f"arm {arm!r} has an empty turn", "give the user's text")

    def _wrong(self, what: str, fix: str) -> InputError:
        return InputError(what, where=f"item {self.id!r}", fix=fix)


def items_hash(items: Sequence[Item]) -> str:
    """A hash of everything the items say, for `Task.metadata`."""
    return files.sha256_json(
        [
            [i.id, i.task, i.domain, {a: list(t) for a, t in i.turns.items()}, _plain(i.truth),
             {s: list(o) for s, o in i.options.items()}]
            for i in items
        ]
    )  # fmt: skip


def _plain(truth: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in truth.items()}


def _same(a: Any, b: Any) -> bool:
    return b is not None and str(a).strip().casefold() == str(b).strip().casefold()
