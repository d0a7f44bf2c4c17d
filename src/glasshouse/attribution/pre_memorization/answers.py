r"""The final answer of a written solution, and whether two of them say the same.

The rules are those of GSM8K: the answer stands behind `####`, or behind "The answer is", or in `\boxed{}`;
`$` and thousands commas do not count; numbers are compared as numbers, anything else as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from enum import IntEnum

_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_SENTENCE = re.compile(r"the\s+(?:final\s+)?answer\s+is\s*:?[ \t]*([^\n]*)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")


class Match(IntEnum):
    """What a reply is beside its reference; an unparsable reply is counted apart, never as wrong."""

    CORRECT = 0
    WRONG = 1
    UNPARSABLE = 2


Matcher = Callable[[str, str], int]
"""`matcher(reply, reference)`: one of `Match`."""


def final_answer(text: str) -> str | None:
    r"""The final answer in a solution, cleaned; None where the text states none. The last statement counts.

    >>> final_answer("48 / 2 = <<48/2=24>>24\n#### 1,024")
    '1024'
    >>> final_answer("so we add. The answer is $18.")
    '18'
    """
    for pattern in (_HASHES, _SENTENCE):
        found = pattern.findall(text)
        if found:
            return clean(found[-1]) or None
    boxed = [m.end() for m in _BOXED.finditer(text)]
    return clean(_inside(text, boxed[-1])) or None if boxed else None


def clean(answer: str) -> str:
    """An answer without `$`, commas, spaces around it, and the full stop of its sentence."""
    return answer.replace("$", "").replace(",", "").strip().rstrip(".").strip()


def answers_match(reply: str, reference: str) -> Match:
    r"""Whether the reply's final answer is the reference's; a reference without `####` is itself the answer.

    >>> answers_match("The answer is 18.0", "9 * 2 = 18\n#### 18").name
    'CORRECT'
    >>> answers_match("I do not know", "#### 18").name
    'UNPARSABLE'
    """
    said = final_answer(reply)
    if said is None:
        return Match.UNPARSABLE
    wanted = final_answer(reference)
    return Match.CORRECT if same(said, clean(reference) if wanted is None else wanted) else Match.WRONG


def whole_reply(reply: str, reference: str) -> Match:
    """For replies that are nothing but their answer: equal up to spaces and case; empty is unparsable."""
    said = " ".join(reply.split()).casefold()
    if not said:
        return Match.UNPARSABLE
    return Match.CORRECT if same(said, " ".join(reference.split()).casefold()) else Match.WRONG


def same(a: str, b: str) -> bool:
    """Equal as text, or as numbers where both are numbers (18 and 18.0)."""
    if a == b:
        return True
    x, y = _number(a), _number(b)
    return x is not None and x == y


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.removesuffix("%").strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _inside(text: str, start: int) -> str:
    """What stands between the brace before `start` and the one that closes it."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:]
