"""One event loop per process, in a thread of its own, for asynchronous clients behind synchronous methods.

Connection pools belong to the loop they began in, so a loop per call would break the second one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()


def in_background(work: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine on the background loop, in the caller's context; an interrupted caller cancels it.

    Must not be called from the background loop itself, which would wait for itself.
    """
    with _starting:
        loop = _loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:  # an interrupted caller must not go on paying
        future.cancel()
        raise


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="glasshouse-background", daemon=True).start()
    return loop
