"""Asking many questions at once: stored answers first, a budget before every call, re-asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glasshouse.annotators._errors import BudgetExceeded
from glasshouse.annotators._results import Outcome
from glasshouse.annotators._spending import Budget, Usage
from glasshouse.annotators.lm import models
from glasshouse.annotators.lm.jobs import Job, tokens_of
from glasshouse.annotators.lm.reading import Reading, Unreadable
from glasshouse.annotators.lm.store import Answer, CallStore

if TYPE_CHECKING:
    from inspect_ai.model import Model


@dataclass
class Replied:
    """What became of one job: what was read (None: nothing), how, and what it cost."""

    read: Any = None
    outcome: Outcome = Outcome.NOT_ASKED
    yes: float | None = None
    mass: float | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass
class Asker:
    """Everything a question needs. `ask_all` is the one entry."""

    model: Model
    settings: models.Settings
    store: CallStore
    budget: Budget | None
    re_asks: int
    busy: dict[str, Any]
    """Locks of keys that are being asked for, so that callers beside each other pay once."""

    async def ask_all(self, jobs: Sequence[Job]) -> tuple[list[Replied], BudgetExceeded | None]:
        """A reply per job, and what stopped the asking, if anything did.

        Calls that are open when the budget ends, or when one fails, are finished and stored. Raises the first
        failure then.
        """
        stored = self.store.find(job.key for job in jobs)
        replies = [self._from_disk(job, stored.get(job.key, [])) for job in jobs]
        open_jobs = [i for i, reply in enumerate(replies) if reply is None]
        stopped: list[BudgetExceeded] = []
        failed: list[Exception] = []
        if open_jobs:
            await self._run(jobs, replies, open_jobs, stopped, failed)
        if failed:
            raise failed[0]
        return [reply or Replied() for reply in replies], stopped[0] if stopped else None

    async def _run(
        self,
        jobs: Sequence[Job],
        replies: list[Replied | None],
        open_jobs: list[int],
        stopped: list[BudgetExceeded],
        failed: list[Exception],
    ) -> None:
        """As many workers as connections take the open jobs in order, until one fails or the money ends."""
        import anyio

        waiting = iter(open_jobs)

        async def worker() -> None:
            for index in waiting:
                if stopped or failed:
                    return
                try:
                    replies[index] = await self._ask(jobs[index])
                except BudgetExceeded as error:
                    stopped.append(error)
                except Exception as error:
                    failed.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(min(self.settings.max_connections, len(open_jobs))):
                group.start_soon(worker)

    async def _ask(self, job: Job) -> Replied:
        import anyio

        lock = self.busy.setdefault(job.key, anyio.Lock())
        try:
            async with lock:
                answers = self.store.find([job.key]).get(job.key, [])  # a neighbour may have paid meanwhile
                old = len(answers)
                while not self._settled(job, answers):
                    answers.append(await self._call(job, answers))
                    self.store.put(job.key, len(answers) - 1, answers[-1])
                return self._reply(job, answers, new=len(answers) - old)
        finally:
            if not lock.statistics().tasks_waiting:
                self.busy.pop(job.key, None)

    async def _call(self, job: Job, before: list[Answer]) -> Answer:
        messages = self._messages(job, before)
        tokens_in = sum(tokens_of(text) for _, text in messages)
        announced = (
            tokens_in + self.settings.max_tokens,
            models.price(self.model, tokens_in, self.settings.max_tokens),
        )
        if self.budget is not None:
            self.budget.announce(tokens=announced[0], usd=announced[1])
        try:
            answer = await models.ask(self.model, messages, job.schema, self.settings)
        except BaseException:
            if self.budget is not None:
                self.budget.withdraw(announced)
            raise
        if self.budget is not None:
            self.budget.settle(
                tokens=answer.tokens_in + answer.tokens_out, usd=answer.usd, announced=announced
            )
        return answer

    def _messages(self, job: Job, before: list[Answer]) -> list[tuple[str, str]]:
        messages = [("user", job.prompt())]
        for answer in before:
            messages.append(("assistant", answer.text or "(nothing)"))
            messages.append(
                ("user", f"That cannot be read: {_problem(job, answer)}. Answer again in the form asked for.")
            )
        return messages

    def _from_disk(self, job: Job, answers: list[Answer]) -> Replied | None:
        return self._reply(job, answers, new=0) if self._settled(job, answers) else None

    def _settled(self, job: Job, answers: list[Answer]) -> bool:
        """Whether there is nothing more to ask: it was read, refused, or asked often enough."""
        if not answers:
            return False
        last = answers[-1]
        return last.refused or len(answers) > self.re_asks or last.yes is not None or not _problem(job, last)

    def _reply(self, job: Job, answers: list[Answer], *, new: int) -> Replied:
        last = answers[-1]
        read, stage, outcome = None, "unparsed", Outcome.UNPARSED
        if last.refused:
            stage, outcome = "refused", Outcome.REFUSED
        elif last.yes is not None:
            stage, outcome = "soft", Outcome.ANSWERED
        else:
            try:
                found = job.read(last.text)
            except Unreadable:
                pass
            else:
                outcome = Outcome.ANSWERED
                read, stage = (found.answers, found.stage) if isinstance(found, Reading) else (found, "json")
        usage = Usage(cache_hits=len(answers) - new, reasked=max(0, len(answers) - 1), **{stage: 1}) + sum(
            (_cost(answer) for answer in answers[len(answers) - new :]), Usage()
        )
        return Replied(read, outcome, last.yes, last.mass, usage)


def _problem(job: Job, answer: Answer) -> str:
    """Why an answer cannot be read, or nothing."""
    try:
        job.read(answer.text)
    except Unreadable as error:
        return str(error)
    return ""


def _cost(answer: Answer) -> Usage:
    return Usage(
        calls=1,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        tokens_cached=answer.tokens_cached,
        tokens_reasoning=answer.tokens_reasoning,
        usd=answer.usd or 0.0,
        unpriced=int(answer.usd is None),
        wall_seconds=answer.wall_seconds,
    )
