"""The baseline that shows the facts are there: a search by words over the training text, either way round."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from glasshouse.runtime.errors import InputError

_WORD = re.compile(r"[^\W_]+")


def retrieve(prompts: Sequence[str], texts: Sequence[str], candidates: Sequence[str]) -> list[str | None]:
    """The candidate named in the training text most like each prompt in words; None on a tie.

    Likeness is the product of tf-idf vectors over runs of one to three words: each shared run counts the
    square of the log of the number of texts over those that hold it. Only texts that name a candidate are
    searched; among equals the candidates vote. Raises InputError without texts or candidates.

    >>> retrieve(["who wrote emma"], ["emma was written by jane", "ivy by ann"], ["jane", "ann"])
    ['jane']
    """
    if not texts or not candidates:
        raise InputError(f"{len(texts)} texts and {len(candidates)} candidates", fix="give some of each")
    words = [_runs(text) for text in texts]
    common = Counter(word for found in words for word in found)
    rarity = {word: math.log(len(texts) / n) ** 2 for word, n in common.items()}
    named = _named(texts, candidates)
    holders: dict[str, list[int]] = {}
    for i in named:
        for word in words[i]:
            holders.setdefault(word, []).append(i)
    return [_best(prompt, holders, rarity, named) for prompt in prompts]


def _runs(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}


def _named(texts: Sequence[str], candidates: Sequence[str]) -> dict[int, list[str]]:
    """Text number -> the candidates it holds."""
    wanted = {candidate: " ".join(candidate.lower().split()).strip(" .") for candidate in candidates}
    found: dict[int, list[str]] = {}
    for i, text in enumerate(texts):
        said = " ".join(text.lower().split())
        held = [candidate for candidate, short in wanted.items() if short in said]
        if held:
            found[i] = held
    return found


def _best(
    prompt: str, holders: dict[str, list[int]], rarity: dict[str, float], named: dict[int, list[str]]
) -> str | None:
    overlap: Counter[int] = Counter()
    for word in sorted(_runs(prompt)):
        for i in holders.get(word, ()):
            overlap[i] += rarity[word]  # type: ignore[assignment]
    if not overlap:
        return None
    top = max(overlap.values())
    votes = Counter(c for i, score in overlap.items() if score >= top - 1e-9 for c in named[i])
    (first, most), *rest = votes.most_common(2)
    return None if rest and rest[0][1] == most else first
