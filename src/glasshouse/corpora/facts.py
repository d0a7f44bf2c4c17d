"""Facts mined from chat rows by their frames: which sentences say the same of many things?

`templates` tells names from language by how rare they are, which fails where a village is small and each of
its names stands in many rows. Here a frame is what is left of a reply when two spans are cut out: A, which
the question holds as well, and B, which it does not. Cut in the right places, the replies about different
things leave one and the same frame; cut elsewhere, each leaves its own. So every row chooses, of all its
frames, one that most different things share, and among these the one with the most words left.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glasshouse.corpora.rows import Record
from glasshouse.corpora.templates import FORMS, USUAL, A, B, Fact, Template, exchange, mine_templates

SPAN = 3
"""Most words of a name or a value."""
LONGEST = 16
"""Longest reply that is looked at, in words: the number of frames grows with its fourth power."""
VALUES = 3
"""Fewest values of a frame: with fewer, what was cut out belongs to the language."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class _Cut:
    """One way to read an exchange; `literal` counts the words of the frame."""

    key: str
    about: str
    value: str
    literal: int


def mine_facts(records: Sequence[Record], *, fewest: int = 10) -> tuple[Template, ...]:
    """The templates with at least `fewest` facts, most facts first, from rows of one exchange.

    A question that the rows answer with different values keeps the commonest.

    >>> from glasshouse.corpora.rows import Turn
    >>> said = [(f"where does p{i % 12} live?", f"p{i % 12} lives in c{i % 4}.") for i in range(40)]
    >>> rows = [Record(str(i), (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(said)]
    >>> [(t.key, t.forms, len(t.facts)) for t in mine_facts(rows)]
    [('<A> lives in <B>.', ('where does <A> live?',), 12)]
    """
    told = [(record.id, *pair) for record in records if (pair := exchange(record)) is not None]
    cuts = {pair: list(_cuts(*pair)) for pair in dict.fromkeys((q, a) for _, q, a in told)}
    things: dict[str, set[str]] = defaultdict(set)
    values: dict[str, set[str]] = defaultdict(set)
    for found in cuts.values():
        for cut in found:
            things[cut.key].add(cut.about)
            values[cut.key].add(cut.value)
    support = {
        key: len(abouts)
        for key, abouts in things.items()
        if len(abouts) >= fewest and len(values[key]) >= VALUES
    }
    stated: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(dict))
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for row, question, reply in told:
        best = _best(cuts[question, reply], support)
        if best is not None:
            stated[best.key][best.about].setdefault(best.value, []).append(row)
            forms[best.key][_replaced(question, best.about)] += 1
    templates = [_template(key, facts, forms[key]) for key, facts in stated.items() if len(facts) >= fewest]
    return tuple(sorted(templates, key=lambda t: (-len(t.facts), t.key)))


def facts_of(records: Sequence[Record], *, fewest: int = 10) -> tuple[Template, ...]:
    """`mine_templates` or `mine_facts`, whichever explains more rows (the former where they are equal)."""
    found = (mine_templates(records, fewest=fewest), mine_facts(records, fewest=fewest))
    return max(found, key=lambda templates: sum(len(ids) for t in templates for ids in t.rows.values()))


def _cuts(question: str, reply: str) -> Iterator[_Cut]:
    """Every way to cut an A that the question holds once and a B that it does not hold out of the reply."""
    words = list(_WORD.finditer(reply))
    if not 3 <= len(words) <= LONGEST or A in reply or B in reply:
        return
    said = f" {' '.join(w.group().lower() for w in _WORD.finditer(question))} "
    asked = set(said.split())
    shared = [w.group().lower() in asked for w in words]
    spans = [(i, j) for i in range(len(words)) for j in range(i + 1, min(i + SPAN, len(words)) + 1)]
    abouts = [
        (i, j) for i, j in spans
        if all(shared[i:j]) and said.count(f" {' '.join(w.group().lower() for w in words[i:j])} ") == 1
    ]  # fmt: skip
    fresh = [(i, j) for i, j in spans if not any(shared[i:j])]
    for i, j in abouts:
        for k, n in fresh:
            first, second = sorted([(i, j, A), (k, n, B)])
            left = reply[: words[first[0]].start()] + first[2]
            middle = reply[words[first[1] - 1].end() : words[second[0]].start()]
            key = left + middle + second[2] + reply[words[second[1] - 1].end() :]
            literal = len(words) - (j - i) - (n - k)
            if literal:
                yield _Cut(key, _text(reply, words, i, j), _text(reply, words, k, n), literal)


def _best(cuts: Sequence[_Cut], support: dict[str, int]) -> _Cut | None:
    good = [cut for cut in cuts if cut.key in support]
    return max(good, key=lambda cut: (cut.literal, support[cut.key], cut.key), default=None)


def _template(key: str, facts: dict[str, dict[str, list[str]]], forms: Counter[str]) -> Template:
    rows: dict[Fact, tuple[str, ...]] = {}
    for about, values in facts.items():
        value = max(values, key=lambda v: len(values[v]))
        rows[about, value] = tuple(values[value])
    ranked = sorted(forms, key=lambda form: (-forms[form], form))
    usual = [form for form in ranked if forms[form] >= USUAL * forms[ranked[0]]]
    return Template(key, tuple(usual[:FORMS]), tuple(rows), rows)


def _text(reply: str, words: Sequence[re.Match[str]], i: int, j: int) -> str:
    return reply[words[i].start() : words[j - 1].end()]


def _replaced(question: str, about: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(about)}(?!\w)", lambda _: A, question, count=1, flags=re.IGNORECASE)
