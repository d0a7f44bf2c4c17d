"""The process that runs the untrusted code and answers calls to its functions."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from . import wire

TYPE_CHECKING = False  # typing is slow to load, and a run costs as much as it loads
if TYPE_CHECKING:
    from typing import Any

MOST_NAMES = 2000


def serve(code: str, name: str, listen: int, speak: int) -> None:
    """Run the code, then answer calls until nobody asks. Everything said here is the code's own word."""
    namespace: dict[str, Any] = {"__name__": name, "__builtins__": __builtins__}
    try:
        exec(compile(code, "<code>", "exec"), namespace)
    except SystemExit as left:
        wire.send(speak, {"left": str(left.code)[:200]})
        return
    except BaseException as error:
        wire.send(speak, {"error": type(error).__name__, "told": _told(error), "memory": _is_memory(error)})
        return
    finally:
        _flush()
    callables = [k for k, v in namespace.items() if callable(v) and not k.startswith("__")]
    wire.send(speak, {"callables": callables[:MOST_NAMES], "plain": _plain_values(namespace)})
    reader = wire.Reader(listen)
    while True:
        try:
            asked = reader.receive()
        except wire.Gone:
            return
        wire.send(speak, _answer(namespace, asked))
        _flush()


def _answer(namespace: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    try:
        args, kwargs = wire.decode(asked["args"]), wire.decode(asked["kwargs"])
        return {"ok": wire.encode(namespace[asked["call"]](*args, **kwargs))}
    except SystemExit as left:
        return {"left": str(left.code)[:200]}
    except BaseException as error:
        return {"raised": type(error).__name__, "told": str(error)[:500], "memory": _is_memory(error)}


def _plain_values(namespace: dict[str, Any]) -> dict[str, Any]:
    """The plain globals; one too long to send arrives as an object that equals nothing."""
    found: dict[str, Any] = {}
    room = wire.LONGEST // 2
    for name, value in namespace.items():
        if _plain(name, value):
            form = wire.encode(value)
            size = len(json.dumps(form))
            found[name] = form if size <= room else {"opaque": "a value too long to send"}
            room -= size if size <= room else 0
    return dict(list(found.items())[:MOST_NAMES])


def _plain(name: str, value: Any) -> bool:
    return not name.startswith("__") and not callable(value) and type(value) in (
        type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset, complex,
    )  # fmt: skip


def _told(error: BaseException) -> str:
    import traceback  # slow to load, and most code raises nothing

    return "".join(traceback.format_exception_only(type(error), error)).strip()[:2000]


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the code may have closed or replaced it
            stream.flush()
