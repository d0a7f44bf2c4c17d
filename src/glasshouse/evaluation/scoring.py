"""Log-probabilities of given continuations: what a language model is asked for in multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from glasshouse.evaluation.packing import packs, score_packed
from glasshouse.subjects import Subject

Access = Literal["logprob", "top_k", "sampled"]
"""How a number was seen: exactly; among the k likeliest tokens; as a frequency of samples."""

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability in nats of each token of a continuation: `tokens` [n], `logprobs` float32 [n]."""

    tokens: tuple[int, ...]
    logprobs: np.ndarray[Any, np.dtype[np.float32]]
    access: Access = "logprob"

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation, in nats."""
        return float(self.logprobs.astype(np.float64).sum())


def score_pairs(
    subject: Subject, pairs: Sequence[Pair], *, batch_tokens: int
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Log-probability of every token of each continuation after its prompt: float32 [n] per pair."""
    shared = len({tuple(before) for before, _ in pairs}) < len(pairs)
    if shared and packs(subject, pairs):
        found = score_packed(subject, pairs, batch_tokens=batch_tokens)
    else:
        prompts = [before for before, _ in pairs]
        found = subject.score(
            prompts, [after for _, after in pairs], per_token=True, batch_tokens=batch_tokens
        )
    return [values.numpy().astype(np.float32, copy=False) for values in found]
