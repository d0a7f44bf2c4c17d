"""The check contract: one question the audit asks of a subject.

    @check("hidden-trigger", title="Is there a hidden trigger?", needs=("logprobs",), asks=("prompts",))
    def hidden_trigger(question: Question) -> Answer: ...

A check runs when the subject's access includes all of `needs` and the suite has every part in `asks`; else
the audit lists it as not run, with the reason. Results that can be right or wrong carry a p-value against a
declared null; the audit corrects these over all checks (Holm) and drops findings that do not survive to
`clean`, with their corrected p-value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glasshouse.evidence.findings import Clean, Finding, NotRun

if TYPE_CHECKING:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.suites import Suite
    from glasshouse.runtime.cache import Cache
    from glasshouse.runtime.executors import Executor
    from glasshouse.subjects import Subject

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """All that a check may look at. It never holds `truth.json`.

    `step(name, build)` journals an expensive part: `build()` returns JSON-able data that is stored at once;
    after a kill the stored value is returned instead of calling `build` again. `folder(name)` is a
    directory in the run for arrays of that step.
    """

    subject: Subject
    suite: Suite
    rows: Records | None
    reference: Subject | None
    seed: int
    cache: Cache
    executor: Executor
    step: Callable[[str, Callable[[], Any]], Any]
    folder: Callable[[str], Path]
    report: Callable[[str], None]
    """Say a line of progress."""
    earlier: Sequence[Finding] = ()
    """Findings of the checks named in `after`."""


@dataclass(frozen=True)
class Answer:
    """What a check says: findings (each with `null.p_value` set), clean notes, and parts it could not do."""

    findings: tuple[Finding, ...] = ()
    clean: tuple[Clean, ...] = ()
    not_run: tuple[NotRun, ...] = ()


@dataclass(frozen=True)
class Check:
    """A registered check; call it with a `Question`."""

    slug: str
    title: str
    needs: tuple[str, ...]
    asks: tuple[str, ...]
    after: tuple[str, ...]
    run: Callable[[Question], Answer]
    cost: Callable[[Question], str] | None = field(default=None, compare=False)
    """A sentence about the expected cost, for `--dry-run`."""

    def __call__(self, question: Question) -> Answer:
        """Ask the question."""
        return self.run(question)


def check(
    slug: str,
    *,
    title: str,
    needs: Sequence[str] = ("text",),
    asks: Sequence[str] = (),
    after: Sequence[str] = (),
    cost: Callable[[Question], str] | None = None,
) -> Callable[[Callable[[Question], Answer]], Check]:
    """Turn a function into a `Check`.

    `needs`: any of text, logprobs, activations, gradients, training data, chat. `asks`: parts of a suite
    (prompts, questions, pairs, chats). `after`: slugs of checks whose findings it wants to see.
    """

    def wrap(function: Callable[[Question], Answer]) -> Check:
        return Check(slug, title, tuple(needs), tuple(asks), tuple(after), function, cost)

    return wrap
