"""Which checks can be asked of this subject, in which order, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glasshouse import _registry
from glasshouse.audit.checkpoints import NEED, checkpoints_of
from glasshouse.evidence.checks import Check, Question
from glasshouse.runtime.errors import GlasshouseError

SUITE_PARTS = ("prompts", "questions", "pairs", "chats")


@dataclass(frozen=True)
class Planned:
    """A check with the reasons why it cannot be asked (none: it runs) and what it will cost."""

    check: Check
    why_not: tuple[str, ...] = ()
    cost: str = ""

    @property
    def runs(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.why_not


def installed_checks() -> list[Check]:
    """Every check that is plugged in, each after the checks named in its `after`."""
    return in_order([_registry.load("checks", name) for name in _registry.names("checks")])


def in_order(checks: Sequence[Check]) -> list[Check]:
    """The checks with predecessors first, otherwise in the given order.

    A predecessor that is not installed is ignored. Raises GlasshouseError for a circle.
    """
    left, done = list(checks), list[Check]()
    here = {check.slug for check in checks}
    while left:
        finished = {check.slug for check in done}
        ready = next((c for c in left if not (set(c.after) & here) - finished), None)
        if ready is None:
            circle = ", ".join(sorted(c.slug for c in left))
            raise GlasshouseError(f"the checks {circle} wait for each other", fix="repair their `after`")
        left.remove(ready)
        done.append(ready)
    return done


def plan(checks: Sequence[Check], question: Question, *, with_cost: bool = False) -> list[Planned]:
    """Each check with why it cannot be asked; the cost is asked only of checks that can run."""
    planned = []
    for check in checks:
        why_not = reasons(check, question)
        cost = check.cost(question) if with_cost and check.cost is not None and not why_not else ""
        planned.append(Planned(check, why_not, cost))
    return planned


def reasons(check: Check, question: Question) -> tuple[str, ...]:
    """Why this check cannot be asked, one phrase each; empty when it can."""
    found = [_missing(need, question) for need in check.needs]
    found += [_missing_part(part, question.suite) for part in check.asks]
    return tuple(reason for reason in found if reason)


def _missing(need: str, question: Question) -> str:
    subject = question.subject
    if need == "chat":
        no_template = "needs a chat model: the tokenizer has no chat template"
        return "" if subject.is_chat else no_template
    if need == "training data":
        return "" if question.rows is not None else "needs training data: give --train-data"
    if need == NEED:
        absent = "needs the checkpoints of its training: give --checkpoints"
        return "" if checkpoints_of(question) else absent
    if need == "reference":
        return "" if question.reference is not None else "needs a reference model: give --reference"
    if need in subject.access:
        return ""
    return f"needs {need}, which this subject does not give (it gives {', '.join(sorted(subject.access))})"


def _missing_part(part: str, suite: Any) -> str:
    if getattr(suite, part, ()):
        return ""
    return f"needs {part} to ask, and the suite has none: give --suite"
