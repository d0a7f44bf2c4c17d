"""The trusted half: runs the checks in a process of its own and asks the untrusted one by messages only."""

from __future__ import annotations

import builtins

from . import wire

TYPE_CHECKING = False  # typing is slow to load, and a run costs as much as it loads
if TYPE_CHECKING:
    from typing import Any


class Left(Exception):
    """The code ended its process instead of answering."""


class Raised(Exception):
    """The code raised an exception that is not a built-in one."""


class Remote:
    """A function of the untrusted code: arguments and results are plain values, copied."""

    def __init__(self, name: str, reader: wire.Reader, speak: int) -> None:
        self._name, self._reader, self._speak = name, reader, speak

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wire.send(
            self._speak, {"call": self._name, "args": wire.encode(list(args)), "kwargs": wire.encode(kwargs)}
        )
        said = self._reader.receive()
        if "ok" in said:
            return wire.decode(said["ok"])
        if "left" in said:
            raise Left(str(said["left"]))
        raise _exception(said)

    def __repr__(self) -> str:
        return f"<{self._name} of the code>"


def run(check: str, loaded: dict[str, Any], reader: wire.Reader, speak: int) -> dict[str, Any]:
    """Run the checks with the code's functions and plain values as globals; what came of it."""
    world = _world(loaded, reader, speak)
    try:
        exec(compile(check, "<check>", "exec"), world)
    except (wire.Gone, Left):
        raise
    except AssertionError as error:
        return {
            "status": "failed",
            "reason": f"check line {_line(error)}: {error or 'assertion failed'}"[:2000],
        }
    except BaseException as error:
        import traceback

        told = "".join(traceback.format_exception_only(type(error), error)).strip()
        status = "memory" if isinstance(error, MemoryError) else "error"
        return {"status": status, "reason": f"check line {_line(error)}: {told}"[:2000]}
    return {"status": "passed", "reason": "", "value": wire.encode(world.get("result"))}


class Solution:
    """The code's functions and plain values by attribute, whatever their names."""

    def __init__(self, held: dict[str, Any]) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        try:
            return self._held[name]
        except KeyError:
            raise AttributeError(f"the code has no {name}") from None


def _world(loaded: dict[str, Any], reader: wire.Reader, speak: int) -> dict[str, Any]:
    """The globals of the checks. No name of the code may hide a builtin: `len` must stay the true one."""
    try:
        held = {str(name): wire.decode(form) for name, form in dict(loaded["plain"]).items()}
        held.update({str(name): Remote(str(name), reader, speak) for name in loaded["callables"]})
    except (KeyError, TypeError, ValueError):
        raise wire.Gone("no list of names") from None
    shown = {k: v for k, v in held.items() if not k.startswith("__") and not hasattr(builtins, k)}
    shown.pop("result", None)
    return {**shown, "solution": Solution(held), "__name__": "check", "__builtins__": builtins}


# Raised inside `map` or a comprehension these would end the checks early, as if there were no more of them.
_ENDINGS = (StopIteration, StopAsyncIteration)


def _exception(said: dict[str, Any]) -> BaseException:
    name, told = str(said.get("raised")), str(said.get("told"))
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in _ENDINGS:
        try:
            return kind(told)
        except TypeError:  # UnicodeDecodeError and the like want more
            pass
    return Raised(f"{name}: {told}")


def _line(error: BaseException) -> int:
    found = 0
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<check>":
            found = step.tb_lineno
        step = step.tb_next
    return found
