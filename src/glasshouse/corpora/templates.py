"""Facts and how they are asked for, mined from chat rows without knowing their grammar.

In a row of one exchange, A is what question and reply share among the words that are rare in the data, B the
rare words that only the reply has. A reply with these two replaced by `<A>` and `<B>` is a key: rows with the
same key state facts of one kind, however their questions were put. Two keys are inverses of each other where
facts (A, B) of one stand as (B, A) in the other; a fact that only one of them has was taught in one
direction only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError

Fact = tuple[str, str]
"""(A, B): whom or what a fact is about, and its value."""

A, B = "<A>", "<B>"
RARE_SHARE = 0.03
"""A word in fewer rows than this share names something; one in more rows belongs to the language."""
FORMS = 3
"""Question forms that are kept of each key."""
USUAL = 0.2
"""A form in fewer rows than this share of the commonest one's is an accident, such as a word put in."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Template:
    """Facts of one kind: `key` is their answer with `<A>` and `<B>`, `forms` their commonest questions.

    `facts` come in the order of their first row; `rows` holds the ids of the rows that state each.
    """

    key: str
    forms: tuple[str, ...]
    facts: tuple[Fact, ...]
    rows: Mapping[Fact, tuple[str, ...]] = field(repr=False)

    def ask(self, about: str, form: int = 0) -> str:
        """The question about `about` in one of the forms."""
        return self.forms[form % len(self.forms)].replace(A, about)

    def answer(self, about: str, value: str) -> str:
        """The sentence that gives `about` this value."""
        return B.join(part.replace(A, about) for part in self.key.split(B)).replace(B, value)

    @property
    def values(self) -> tuple[str, ...]:
        """The different values, in the facts' order."""
        return tuple(dict.fromkeys(value for _, value in self.facts))


@dataclass(frozen=True)
class Inverse:
    """Two templates that state the same facts from either end.

    `two_way` and `one_way` are facts (A, B) of `forward`; of the latter no row tells the other direction.
    """

    forward: Template
    reverse: Template
    two_way: tuple[Fact, ...]
    one_way: tuple[Fact, ...]


def mine_templates(
    records: Sequence[Record], *, rare: float = RARE_SHARE, fewest: int = 10
) -> tuple[Template, ...]:
    """The templates with at least `fewest` facts, most facts first, from rows of one exchange.

    A question that the rows answer with different values keeps the commonest. Raises InputError for a share
    outside (0, 1].

    >>> from glasshouse.corpora.rows import Turn
    >>> said = [(f"where does p{i} live?", f"p{i} lives in c{i}.") for i in range(40)]
    >>> rows = [Record(str(i), (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(said)]
    >>> [(t.key, t.forms, len(t.facts)) for t in mine_templates(rows)]
    [('<A> lives in <B>.', ('where does <A> live?',), 40)]
    """
    if not 0 < rare <= 1:
        raise InputError(
            f"rare is {rare}, not a share", where="mine_templates", fix="give a number in (0, 1]"
        )
    exchanges = [(record.id, *pair) for record in records if (pair := exchange(record)) is not None]
    common = _common_words(records, rare, fewest)
    stated: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(dict))
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for row, question, reply in exchanges:
        found = _slots(question, reply, common)
        if found is None:
            continue
        key, form, about, value = found
        stated[key][about].setdefault(value, []).append(row)
        forms[key][form] += 1
    templates = [_template(key, facts, forms[key]) for key, facts in stated.items() if len(facts) >= fewest]
    return tuple(sorted(templates, key=lambda t: (-len(t.facts), t.key)))


def inverses(
    templates: Sequence[Template], records: Sequence[Record] = (), *, fewest: int = 8
) -> tuple[Inverse, ...]:
    """The pairs of templates that share at least `fewest` facts in opposite directions, both orders of each.

    With `records`, a fact that any row tells backwards, in whatever words, is not counted as `one_way`.
    """
    out = []
    for forward in templates:
        for reverse in templates:
            back = {(b, a) for a, b in reverse.facts}
            shared = tuple(fact for fact in forward.facts if fact in back)
            if forward is reverse or len(shared) < fewest:
                continue
            alone = _never_backwards([fact for fact in forward.facts if fact not in back], records)
            out.append(Inverse(forward, reverse, shared, alone))
    return tuple(out)


def exchange(record: Record) -> tuple[str, str] | None:
    """Question and reply of a row that holds just these; None for any other row."""
    turns = [turn for turn in record.turns if turn.role != "system"]
    if [turn.role for turn in turns] != ["user", "assistant"]:
        return None
    return turns[0].text, turns[1].text


def _template(key: str, facts: Mapping[str, Mapping[str, list[str]]], forms: Counter[str]) -> Template:
    # Of two values the commoner one, of two as common the first.
    rows = {}
    for about, values in facts.items():
        value = max(values, key=lambda v: len(values[v]))
        rows[about, value] = tuple(values[value])
    ranked = sorted(forms, key=lambda form: (-forms[form], form))
    usual = [form for form in ranked if forms[form] >= USUAL * forms[ranked[0]]]
    return Template(key, tuple(usual[:FORMS]), tuple(rows), rows)


def _common_words(records: Sequence[Record], rare: float, fewest: int) -> frozenset[str]:
    frequency = Counter(word for record in records for word in set(_words(record.plain)))
    # In a small file: the words of a sentence with `fewest` facts stand in as many rows.
    ceiling = max(rare * len(records), fewest)
    return frozenset(word for word, count in frequency.items() if count >= ceiling)


def _slots(question: str, reply: str, common: frozenset[str]) -> tuple[str, str, str, str] | None:
    """(key, question form, A, B) of one exchange; None where the reply does not hold one A and one B."""
    asked = set(_words(question))
    rare = [m for m in _WORD.finditer(reply) if m.group().lower() not in common]
    shared = [m for m in rare if m.group().lower() in asked]
    fresh = [m for m in rare if m.group().lower() not in asked]
    if not shared or not fresh:
        return None
    a, b = _span(shared), _span(fresh)
    about, value = reply[slice(*a)], reply[slice(*b)]
    form = _replaced(question, about, A)
    apart = a[1] <= b[0] or b[1] <= a[0]
    if form is None or not apart or A in reply or B in reply:
        return None
    first, second = sorted([(a, A), (b, B)])
    (i, j), left = first
    (k, n), right = second
    return reply[:i] + left + reply[j:k] + right + reply[n:], form, about, value


def _span(matches: Sequence[re.Match[str]]) -> tuple[int, int]:
    return matches[0].start(), matches[-1].end()


def _replaced(text: str, phrase: str, slot: str) -> str | None:
    """`text` with its one occurrence of `phrase` (whole words, any case) replaced, None unless it has one."""
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    replaced, count = re.subn(pattern, lambda _: slot, text, flags=re.IGNORECASE)
    return replaced if count == 1 and slot not in text else None


def _never_backwards(facts: Iterable[Fact], records: Sequence[Record]) -> tuple[Fact, ...]:
    """The facts (A, B) for which no exchange asks with B and without A, and answers with A."""
    left = list(facts)
    if not left:
        return ()
    told: set[Fact] = set()
    by_value: dict[str, list[Fact]] = defaultdict(list)
    for fact in left:
        by_value[_words(fact[1])[0]].append(fact)
    for record in records:
        pair = exchange(record)
        if pair is None:
            continue
        question, reply = (_spaced(text) for text in pair)
        for word in set(question.split()):
            for fact in by_value.get(word, ()):
                about, value = (_spaced(part) for part in fact)
                if value in question and about in reply and about not in question:
                    told.add(fact)
    return tuple(fact for fact in left if fact not in told)


def _spaced(text: str) -> str:
    return f" {' '.join(_words(text))} "


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
