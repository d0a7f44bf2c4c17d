"""Synchronous facades over the asynchronous core.

Remote judges run on one event loop in a thread of its own that lives as long as the process: connection
pools belong to a loop, so a loop per call would break the second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from glasshouse.runtime.background import in_background
from glasshouse.runtime.errors import InputError

T = TypeVar("T")


def step(work: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine that never waits for anything, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise RuntimeError("a local annotator waited for something")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine on the judges' own loop, in the caller's context (model roles of an evaluation)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return in_background(work)
    work.close()
    raise InputError(
        "a synchronous method of a remote annotator was called inside a running event loop",
        fix="await arate, aassign, acompare or apropose instead",
    )
