"""Messages between the processes: one JSON line each, plain values only, tuples and sets kept apart."""

from __future__ import annotations

import json
import os
import select

TYPE_CHECKING = False  # typing is slow to load, and a run costs as much as it loads
if TYPE_CHECKING:
    from typing import Any

LONGEST = 1 << 20
"""Bytes of one message: more is refused."""


class Opaque:
    """Stands for an object that is no plain value; equal to nothing, not even to itself."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError(f"{self.shown} is no plain value, so it can be neither true nor false")

    def __repr__(self) -> str:
        return f"<{self.shown}>"


class Gone(Exception):
    """The other side ended, or said something that is no message."""


def encode(value: Any, depth: int = 0) -> Any:
    """A JSON form of a plain value; exact types only, so that no subclass brings code of its own."""
    kind = type(value)
    if depth > 50:
        return {"opaque": "a value nested more than 50 deep"}
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return {"float": value.hex()}
    if kind is list:
        return [encode(item, depth + 1) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item, depth + 1) for item in value]}
    if kind is dict:
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    return {"opaque": f"object of type {kind.__name__}"[:200]}


def decode(form: Any) -> Any:
    """The value of a JSON form. Raises Gone for what `encode` never writes."""
    if isinstance(form, list):
        return [decode(item) for item in form]
    if not isinstance(form, dict):
        if form is None or isinstance(form, bool | int | str):
            return form
        raise Gone("a bare number with a point")
    if len(form) != 1:
        raise Gone("an unknown form")
    ((kind, held),) = form.items()
    try:
        return _DECODERS[kind](held)
    except Exception:  # whatever a stranger can make a decoder raise
        raise Gone(f"an unreadable {kind}") from None


_DECODERS: dict[str, Any] = {
    "float": float.fromhex,
    "tuple": lambda held: tuple(decode(item) for item in held),
    "set": lambda held: {decode(item) for item in held},
    "frozenset": lambda held: frozenset(decode(item) for item in held),
    "dict": lambda held: {decode(k): decode(v) for k, v in held},
    "bytes": bytes.fromhex,
    "complex": lambda held: complex(float.fromhex(held[0]), float.fromhex(held[1])),
    "opaque": lambda held: Opaque(str(held)),
}


def send(handle: int, message: dict[str, Any]) -> None:
    """Write one message. Raises Gone when it is too long or nobody reads."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LONGEST:
        raise Gone("a message of more than a megabyte")
    try:
        while line:
            line = line[os.write(handle, line) :]
    except OSError:
        raise Gone("nobody listens") from None


class Reader:
    """Messages on a file descriptor, for as long as the process behind `watch` (a pidfd) lives."""

    def __init__(self, handle: int, watch: int = -1) -> None:
        self.handle, self._watch, self._held = handle, watch, b""

    def receive(self) -> dict[str, Any]:
        """The next message. Raises Gone at the end, for a message too long, or for no message."""
        while b"\n" not in self._held:
            if len(self._held) > LONGEST:
                raise Gone("a message of more than a megabyte")
            if self._watch >= 0 and not self._waiting():
                raise Gone("the end")
            part = os.read(self.handle, 65536)
            if not part:
                raise Gone("the end")
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Gone("no message") from None
        if not isinstance(message, dict):
            raise Gone("no message")
        return message

    def _waiting(self) -> bool:
        """Wait until something can be read (True) or the process is gone: its children may hold the pipe."""
        return self.handle in select.select([self.handle, self._watch], [], [])[0]
