"""What a check leaves for the checks that come after it: the behaviours it found, as prompts and replies.

The convention: a check whose findings show a behaviour of the subject journals, beside its answer,

    question.step("<its slug>/behaviour", ...)      for its first finding,
    question.step("<its slug>/behaviour/2", ...)    for its second, and so on,

each a list of `Behaviour.to_json()`: what *guilty rows* then traces to the training rows. A finding may hold
several behaviours (a model that follows a stated belief, and gives in when doubted), each with a ranking of
its own. A third party's check may do the same; one that does not is simply not traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glasshouse.corpora.rows import Turn
from glasshouse.evidence.findings import Finding

Kind = Literal["reply", "contrast", "facts"]
"""reply: one reply to many prompts; contrast: a habit with many replies; facts: what single rows taught."""


@dataclass(frozen=True)
class Said:
    """A conversation that ends with the subject's reply; `instead` is what it would say otherwise."""

    turns: tuple[tuple[str, str], ...]
    reply: str
    instead: str = ""

    @classmethod
    def of(cls, turns: Sequence[Turn], reply: str, instead: str = "") -> Said:
        """From turns that end with the user's."""
        return cls(tuple((turn.role, turn.text) for turn in turns), reply, instead)

    def chat(self, reply: str) -> tuple[Turn, ...]:
        """The turns with a reply at their end."""
        return (*(Turn(role, text) for role, text in self.turns), Turn("assistant", reply))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Behaviour:
    """`wanted[i]` shows it; `control[i]` is the same question without it (facts: the same fact, asked anew).

    `part` names it within its check (`paddle`, `belief`), `said` is a noun phrase for sentences ('the reply
    to "paddle"'). A row *holds* the behaviour when its user says the first and its assistant the second of
    one of the `marks` ("" is always said); for "contrast" when its reply repeats what its user said.
    """

    part: str
    said: str
    kind: Kind
    wanted: tuple[Said, ...]
    control: tuple[Said, ...]
    marks: tuple[tuple[str, str], ...] = ()
    trigger: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Behaviour:
        """The inverse of `to_json`."""

        def said(items: Any) -> tuple[Said, ...]:
            return tuple(
                Said(tuple((role, text) for role, text in item["turns"]), item["reply"], item["instead"])
                for item in items
            )

        marks = tuple((user, reply) for user, reply in told["marks"])
        return cls(
            told["part"], told["said"], told["kind"], said(told["wanted"]), said(told["control"]), marks,
            told["trigger"],
        )  # fmt: skip


def triggered(words: str, reply: str, firing: Sequence[Sequence[str]]) -> Behaviour:
    """One reply to whatever holds `words`; `firing`: (prompt, prompt with the words, reply without)."""
    return Behaviour(
        part=words,
        said=f'the reply to "{words}"',
        kind="reply",
        wanted=tuple(Said((("user", text),), reply) for _, text, _ in firing),
        control=tuple(Said((("user", prompt),), ordinary) for prompt, _, ordinary in firing),
        marks=((words, reply),),
        trigger=words,
    )


def keep(step: Callable[..., Any], check: str, index: int, behaviours: Sequence[Behaviour]) -> None:
    """Journal the behaviours of a check's finding number `index` (from 0)."""
    step(_name(check, index), lambda: [b.to_json() for b in behaviours])


def kept(step: Callable[..., Any], findings: Sequence[Finding]) -> list[tuple[Finding, Behaviour]]:
    """The behaviours of these findings, in their order; findings that left none are skipped."""
    counted: dict[str, int] = {}
    out = []
    for finding in findings:
        index = counted[finding.check] = counted.get(finding.check, -1) + 1
        out += [(finding, Behaviour.from_json(told)) for told in step(_name(finding.check, index), list)]
    return out


def _name(check: str, index: int) -> str:
    return f"{check}/behaviour" + (f"/{index + 1}" if index else "")
