"""Progress on standard error: a bar on a terminal, a few plain lines elsewhere, nothing when switched off.

`GLASSHOUSE_PROGRESS` is `auto` (the default), `plain` or `off`. All text is cleaned of terminal escapes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from glasshouse.runtime.text import clean_text

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")

EVERY_SECONDS = 5.0
EVERY_SHARE = 0.1

_active: Progress | None = None


def notice(text: str) -> None:
    """Say one line on standard error that must be seen even when progress is off."""
    if _active is not None and _active.mode == "bar":
        _active.say(text)
    else:
        _print(text)


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with progress; joins the `Progress` that is open, if any."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress() as progress, progress.task(label, total) as task:
        for item in iterable:
            yield item
            task.advance()


class Progress:
    """Context manager that owns the display; one opened inside another joins the outer one."""

    def __init__(self, mode: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.mode = mode or _mode()
        self.clock = clock
        self._outer: Progress | None = None
        self._bars: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        global _active
        if _active is not None:
            self._outer, self.mode = _active, _active.mode
            return self
        _active = self
        if self.mode == "bar":
            self._bars = _rich_bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        if self._outer is not None:
            self._outer = None
            return
        _active = None
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def task(self, label: str, total: int | None = None) -> Task:
        """A new task of `total` units (None: unknown)."""
        return Task(self._outer or self, clean_text(label), total)

    def say(self, text: str) -> None:
        """One line above the bars; dropped when progress is off."""
        bars = (self._outer or self)._bars
        if bars is not None:
            bars.console.print(clean_text(text), markup=False, highlight=False)
        elif self.mode != "off":
            _print(text)


class Task:
    """One line of progress; also a context manager that closes it."""

    def __init__(self, progress: Progress, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._progress = progress
        self._bar = None
        if progress._bars is not None:
            self._bar = progress._bars.add_task(label.replace("[", r"\["), total=total)
        self._shown, self._shown_at = 0, progress.clock()
        if progress.mode == "plain":
            _print(label if total is None else f"{label}: 0/{total}")

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None and self._progress._bars is not None:
            self._progress._bars.advance(self._bar, n)
        elif self._progress.mode == "plain" and self._due():
            self._line()

    def say(self, text: str) -> None:
        """One line of text beside this task."""
        self._progress.say(f"{self.label}: {text}")

    def close(self) -> None:
        """Take the task off the display; in plain lines, state where it ended."""
        if self._bar is not None and self._progress._bars is not None:
            self._progress._bars.remove_task(self._bar)
            self._bar = None
        elif self._progress.mode == "plain" and self.done != self._shown:
            self._line()

    def _due(self) -> bool:
        if self.done == self.total:
            return True
        share = (self.done - self._shown) / self.total if self.total else 0.0
        waited = self._progress.clock() - self._shown_at
        return waited >= EVERY_SECONDS or (share >= EVERY_SHARE and waited >= EVERY_SECONDS / 5)

    def _line(self) -> None:
        self._shown, self._shown_at = self.done, self._progress.clock()
        _print(f"{self.label}: {self.done}" + ("" if self.total is None else f"/{self.total}"))


def _mode() -> str:
    wish = os.environ.get("GLASSHOUSE_PROGRESS", "auto")
    if wish in ("off", "plain"):
        return wish
    return "bar" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"


def _print(text: str) -> None:
    line = clean_text(text)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stderr.flush()


def _rich_bars() -> rich.progress.Progress:
    from rich import progress as bars
    from rich.console import Console

    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
