"""Text that came from outside (files, models) made safe to print on a terminal."""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC: window titles, links, clipboard
    r"|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # DCS, SOS, PM, APC strings
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|\x1b[ -/]*[0-~]?"  # every other two-byte escape
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    r"""`text` without terminal escapes, control and direction-changing characters; newline and tab stay.

    Lone surrogates, which no terminal or file can encode, become U+FFFD.

    >>> clean_text("a\x1b[31mred\x1b[0m\x07 b")
    'ared b'
    """
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", _ESCAPES.sub("", text)))


def shorten(text: str, limit: int = 60) -> str:
    """One printable line of at most `limit` characters, for quoting what a user gave inside a message."""
    words = clean_text(text[: 8 * limit]).split()
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(words))
    return line if len(line) <= limit else line[: limit - 1] + "…"
