"""Deterministic fault injection for every wing: die at the n-th durable write, for any n."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glasshouse.runtime import files


class Killed(BaseException):
    """Like a kill: no handler for Exception catches it."""


class Faults:
    """`at(n)` makes the n-th fault point (from 1) raise `Killed`; 0 only counts. `off()` ends it."""

    Killed = Killed

    def at(self, n: int = 0) -> list[str]:
        """Start counting; returns the list that the points passed (`before|after NAME`) are added to."""
        passed: list[str] = []

        def hook(stage: str, path: Path) -> None:
            passed.append(f"{stage} {path.name}")
            if len(passed) == n:
                raise Killed(passed[-1])

        files.fault_hook = hook
        return passed

    def off(self) -> None:
        """Let every write succeed again."""
        files.fault_hook = None


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Fault injection that ends with the test."""
    found = Faults()
    yield found
    found.off()


@pytest.fixture
def every_fault(faults: Faults) -> Callable[[Callable[[int], None], Callable[[int], None]], int]:
    """`every_fault(act, check)`: for n = 0, 1, ... runs act(n) killed after n more writes, then check(n).

    Stops when act(n) passed at most n fault points; returns how many there were.
    """

    def run(act: Callable[[int], None], check: Callable[[int], None]) -> int:
        for n in range(1000):
            passed = faults.at(n + 1)
            try:
                act(n)
            except Killed:
                pass
            finally:
                faults.off()
            check(n)
            if len(passed) <= n:
                return len(passed)
        raise AssertionError("the writes do not end")

    return run
