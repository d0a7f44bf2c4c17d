"""Reading a model's answer: JSON first, then an `ANSWER:` line, else an error that can be sent back to it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_LINE = re.compile(r"^[^\w\n]*ANSWER[^\w\n]*?:[ \t]*(?P<said>\S.*)$", re.IGNORECASE | re.MULTILINE)
_EDGES = " \t\n\r\"'`*.!()[]{}:"

MOST_TRIES = 1000
"""Opening braces that are looked at: a flood of them is no answer."""


class Unreadable(Exception):
    """Why an answer cannot be read, in words the model can act on."""


@dataclass(frozen=True)
class Reading:
    """The answers, one per question, and how they were read."""

    answers: list[str]
    stage: Literal["json", "regex"]


def read_choices(text: str, questions: int, allowed: Sequence[str]) -> Reading:
    """`questions` answers out of `allowed` (compared without case). Raises Unreadable."""
    found = _object(text)
    if found is not None:
        return Reading(_chosen(found.get("answers"), questions, allowed), "json")
    lines = _LINE.findall(text)
    said = lines[-1] if lines else text if len(text) < 80 else ""
    parts = (
        [part.strip(_EDGES) for part in re.split(r"[,;]", said)] if questions > 1 else [said.strip(_EDGES)]
    )
    if not lines and not all(_canonical(part, allowed) for part in parts):
        raise Unreadable("there is neither a JSON object nor a last line that begins with ANSWER:")
    return Reading(_chosen(parts, questions, allowed), "regex")


def read_list(text: str, key: str) -> list[Any]:
    """The list under `key` of the JSON object in the answer. Raises Unreadable."""
    found = _object(text)
    if found is None:
        raise Unreadable("there is no JSON object")
    if not isinstance(found.get(key), list) or not found[key]:
        raise Unreadable(f"the JSON object has no list {key!r} with at least one entry")
    return list(found[key])


def _chosen(said: Any, questions: int, allowed: Sequence[str]) -> list[str]:
    if isinstance(said, str | int) and questions == 1:
        said = [said]
    if not isinstance(said, list):
        raise Unreadable("the JSON object has no list 'answers'")
    if len(said) != questions:
        raise Unreadable(f"there are {len(said)} answers to {questions} questions")
    chosen = [_canonical(str(answer).strip(_EDGES), allowed) for answer in said]
    for answer, name in zip(said, chosen, strict=True):
        if not name:
            raise Unreadable(f"{str(answer)[:40]!r} is not one of {', '.join(allowed)}")
    return [name for name in chosen if name]


def _canonical(said: str, allowed: Sequence[str]) -> str | None:
    wanted = said.casefold().replace(" ", "_").replace("/", "_")
    return next((name for name in allowed if name.casefold() == wanted), None)


def _object(text: str) -> dict[str, Any] | None:
    """The last JSON object in the text (models think aloud first), or None."""
    decoder = json.JSONDecoder()
    found, place, tries = None, text.find("{"), 0
    while place != -1 and tries < MOST_TRIES:
        tries += 1
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            found = value if isinstance(value, dict) else found
        place = text.find("{", end)
    return found
