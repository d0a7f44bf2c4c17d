"""Progress: a bar on a terminal, a few plain lines elsewhere, and no escape of a file ever repeated."""

from __future__ import annotations

import io
import sys

import pytest

from glasshouse.runtime import progress
from glasshouse.runtime.progress import EVERY_SECONDS, Progress, notice, track


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "progress must never mix with results"
    return captured.err.splitlines()


def test_without_a_terminal_it_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert lines(capsys) == ["counting: 0/3", "counting: 3/3"]


def test_lines_are_few_however_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("plain", clock=clock) as display, display.task("long", 10_000) as task:
        for _ in range(10_000):
            clock.now += EVERY_SECONDS / 1000  # ten lines' worth of time in all
            task.advance()
    shown = lines(capsys)
    assert shown[0] == "long: 0/10000" and shown[-1] == "long: 10000/10000"
    assert 10 <= len(shown) <= 13


def test_unknown_totals_and_early_ends_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("plain", clock=Clock()) as display:
        with display.task("open") as task:
            task.advance(7)
        with pytest.raises(ValueError, match="stop"), display.task("cut", 10) as task:
            task.advance(4)
            raise ValueError("stop")
        task.say("a remark")
    assert lines(capsys) == ["open", "open: 7", "cut: 0/10", "cut: 4/10", "cut: a remark"]


def test_off_is_silent_but_a_notice_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSHOUSE_PROGRESS", "off")
    with Progress() as display:
        assert list(track("ab", "letters")) == ["a", "b"]
        display.say("nothing")
        assert lines(capsys) == []
        notice("the entry is damaged")
    assert lines(capsys) == ["the entry is damaged"]


def test_escapes_in_labels_and_texts_never_reach_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "rows\x1b]0;owned\x07\x1b[2J\x9b31m.jsonl"
    with Progress("plain") as display, display.task(evil, 1) as task:
        task.advance()
        task.say(evil)
        display.say(evil)
    notice(evil)
    assert set(lines(capsys)) == {
        "rows.jsonl: 0/1",
        "rows.jsonl: 1/1",
        "rows.jsonl: rows.jsonl",
        "rows.jsonl",
    }


def test_on_a_terminal_there_is_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("GLASSHOUSE_PROGRESS", raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    with Progress() as outer:
        assert outer.mode == "bar"
        with Progress() as inner, inner.task("layer [bold]3\x1b[2J", 4) as task:
            assert inner.mode == "bar"
            task.advance(4)
            inner.say("half-way [red]text")
            notice("seen")
    text = terminal.getvalue()
    assert "layer [bold]3" in text and "/4" in text and "half-way [red]text" in text and "seen" in text
    assert "\x1b[2J" not in text
    assert progress._active is None


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    list(track([1], "x"))
    assert terminal.getvalue() == "x: 0/1\nx: 1/1\n"


def test_an_error_inside_frees_the_display() -> None:
    with pytest.raises(KeyError), Progress("plain"):
        raise KeyError
    assert progress._active is None


def test_a_stream_that_cannot_hold_the_letters_still_gets_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    notice("naïve")
    assert raw.getvalue() == b"na?ve\n"
