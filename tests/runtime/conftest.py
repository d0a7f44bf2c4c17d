"""Deterministic fault injection: stop at the n-th durable write, for every n."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glasshouse.runtime import files


class Killed(BaseException):
    """Like a kill, no handler for Exception catches it."""


@contextmanager
def _killed_at(n: int) -> Iterator[list[str]]:
    """Raise Killed at the n-th fault point (from 0) inside the block; yields the points that were passed."""
    passed: list[str] = []

    def hook(stage: str, path: Path) -> None:
        passed.append(f"{stage} {path.name}")
        if len(passed) == n + 1:
            raise Killed(passed[-1])

    before, files.fault_hook = files.fault_hook, hook
    try:
        yield passed
    except Killed:
        pass
    finally:
        files.fault_hook = before


@pytest.fixture
def every_fault() -> Callable[[Callable[[int], None], Callable[[int], None]], int]:
    """`every_fault(act, check)`: for n = 0, 1, ... runs act(n) killed at the n-th write, then check(n).

    Stops when act(n) passed fewer than n writes; returns how many writes there were.
    """

    def run(act: Callable[[int], None], check: Callable[[int], None]) -> int:
        for n in range(1000):
            with _killed_at(n) as passed:
                act(n)
            check(n)
            if len(passed) <= n:
                return len(passed)
        raise AssertionError("the writes do not end")

    return run
