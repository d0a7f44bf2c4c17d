"""Concurrent callers, one model: whatever is waiting when the model is free runs together.

No timers: a lone request runs at once, and requests that arrive while the model works form the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

Work = Callable[[str, Sequence[Any]], Sequence[Any]]
"""`work(kind, jobs)`: the results of jobs of one kind, in order; called in a worker thread."""

QUIET_TURNS = 3
"""Turns of the event loop without a new request after which those that are there run."""


@dataclass(eq=False)
class _Ticket:
    kind: str
    jobs: Sequence[Any]
    woken: anyio.Event = field(default_factory=anyio.Event)
    done: bool = False
    results: Sequence[Any] = ()
    error: Exception | None = None

    def close(self, results: Sequence[Any] = (), error: Exception | None = None) -> None:
        self.done, self.results, self.error = True, results, error
        self.woken.set()


class Lane:
    """The requests of one event loop that wait for one model. The caller that finds it free drives it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._waiting: list[_Ticket] = []
        self._driven = False

    async def ask(self, kind: str, jobs: Sequence[Any]) -> Sequence[Any]:
        """The results of `jobs`, computed with whatever else is waiting. Raises what the work raised."""
        ticket = _Ticket(kind, jobs)
        self._waiting.append(ticket)
        try:
            while not ticket.done:
                if self._driven:
                    await ticket.woken.wait()
                    ticket.woken = anyio.Event()
                else:
                    await self._drive()
        finally:  # also when the caller is cancelled: its jobs leave, and another one drives
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._hand_over()
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    async def _drive(self) -> None:
        self._driven = True
        try:
            await self._settle()
            batch, self._waiting = self._waiting, []
            with anyio.CancelScope(shield=True):  # others wait for these results
                for kind in dict.fromkeys(ticket.kind for ticket in batch):
                    await self._run(kind, [ticket for ticket in batch if ticket.kind == kind])
        finally:
            self._driven = False

    async def _settle(self) -> None:
        """Let every task that is ready put its request in."""
        seen, quiet = len(self._waiting), 0
        while quiet < QUIET_TURNS:
            await anyio.lowlevel.checkpoint()
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    async def _run(self, kind: str, tickets: Sequence[_Ticket]) -> None:
        jobs = [job for ticket in tickets for job in ticket.jobs]
        try:
            results = await anyio.to_thread.run_sync(partial(self._work, kind, jobs))
        except Exception as error:
            for ticket in tickets:
                ticket.close(error=error)
            return
        start = 0
        for ticket in tickets:
            ticket.close(results[start : start + len(ticket.jobs)])
            start += len(ticket.jobs)

    def _hand_over(self) -> None:
        if not self._driven and self._waiting:
            self._waiting[0].woken.set()
