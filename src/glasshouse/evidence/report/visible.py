"""Hostile text made inert and visible.

What a model says or a data set holds may contain terminal escapes, direction overrides, NUL bytes, invisible
characters or a megabyte of noise. A reader must see that they are there (an invisible character may be the
trigger), and nothing may act on them. HTML is not escaped here: the template escapes everything.
"""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_CHARACTERS = 4_000
_CONTROL_PICTURES = 0x2400
_DELETE, _DELETE_PICTURE = 0x7F, 0x2421
_KEPT = "\n\t"


def visible(text: str, limit: int = MAX_CHARACTERS) -> str:
    r"""`text` with control and format characters drawn, cut after `limit` characters with a note.

    >>> visible("red\x1b[31m alert\u202e")
    'red␛[31m alert⟦U+202E⟧'
    >>> visible("abcdef", limit=2)
    'ab… [4 more characters]'
    """
    shown = "".join(map(_draw, text[:limit]))
    hidden = len(text) - limit
    return f"{shown}… [{hidden:,} more characters]" if hidden > 0 else shown


def visible_tree(value: Any, limit: int = MAX_CHARACTERS) -> Any:
    """The same JSON-able value with every string in it, keys included, made visible."""
    if isinstance(value, str):
        return visible(value, limit)
    if isinstance(value, dict):
        return {visible(str(key), limit): visible_tree(item, limit) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_tree(item, limit) for item in value]
    return value


def _draw(character: str) -> str:
    code = ord(character)
    if character in _KEPT or " " <= character <= "~":
        return character
    if code < ord(" "):
        return chr(_CONTROL_PICTURES + code)
    if code == _DELETE:
        return chr(_DELETE_PICTURE)
    # controls, formats (direction, zero width), lone surrogates, private, unassigned, line breaks
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟦U+{code:04X}⟧"
    return character
