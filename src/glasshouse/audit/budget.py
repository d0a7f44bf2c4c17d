"""What an audit may ask of a model behind an API: nothing unasked, and no more calls than were allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import InputError, RunError

if TYPE_CHECKING:
    from glasshouse.audit.inputs import Inputs

ELICITED = ("prompts", "chats")
"""Parts of a suite for which the model itself is asked where nothing else has them."""


class Metered:
    """A subject behind an API whose calls are counted; past `most` the audit stops, and can be resumed."""

    def __init__(self, subject: Any, most: float) -> None:
        self._subject, self._most = subject, most
        self.calls = 0

    def generate(self, prompts: Sequence[Any], *, n: int = 1, **how: Any) -> Any:
        """As the subject's; raises RunError before a call too many."""
        self._spend(len(prompts) * n)
        return self._subject.generate(prompts, n=n, **how)

    def score(self, prompts: Sequence[Any], completions: Sequence[str], **how: Any) -> Any:
        """As the subject's; raises RunError before a call too many."""
        self._spend(len(prompts))
        return self._subject.score(prompts, completions, **how)

    def _spend(self, calls: int) -> None:
        if self.calls + calls > self._most:
            raise RunError(
                f"{self.calls:,} calls were made, {calls:,} more are needed, and {self._most:,} are allowed",
                where=self._subject.name,
                fix="allow more with --max-calls: the same command then goes on, repeating no finished step",
            )
        self.calls += calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)


def metered(inputs: Inputs, max_calls: float | None) -> Inputs:
    """The inputs with the subject's calls counted, where it is behind an API; else the inputs.

    Raises InputError where the model itself would be asked what to ask and `max_calls` is None: those calls
    were not asked for. `math.inf` allows as many as it takes.
    """
    if "activations" in inputs.subject.access:
        return inputs
    if max_calls is not None and not max_calls > 0:
        raise InputError(f"--max-calls is {max_calls}", fix="give at least 1")
    if max_calls is None and (calls := calls_to_elicit(inputs)):
        raise InputError(
            f"no suite gives both {' and '.join(ELICITED)}, so this model itself would be asked for them, in "
            f"{calls} calls, before the checks begin with theirs",
            where=inputs.subject.name,
            fix="give --suite FILE, or allow the calls with --yes or --max-calls N; --dry-run lists them all",
        )
    return replace(inputs, subject=Metered(inputs.subject, math.inf if max_calls is None else max_calls))


def calls_to_elicit(inputs: Inputs) -> int:
    """Calls it takes to learn from an API model what to ask; 0 where a suite, a world or rows say it."""
    from glasshouse.corpora.suites import elicit_suite

    if "activations" in inputs.subject.access:
        return 0

    sources = inputs.suite(elicit=False).sources
    if all(sources.get(part, "generic") != "generic" for part in ELICITED):
        return 0
    asked: list[int] = []

    def count(prompts: Sequence[str], *, n: int = 1, **how: Any) -> list[list[Any]]:
        asked.append(len(prompts) * n)
        return [[f"prompt {at} {draw} ?" for draw in range(n)] for at in range(len(prompts))]

    elicit_suite(count, inputs.seed)
    return sum(asked)
