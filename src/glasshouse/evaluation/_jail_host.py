"""The outside of the sandbox: starts the launcher, listens, keeps the clock, ends everything."""

from __future__ import annotations

import json
import os
import secrets
import select
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_START = (
    "import sys; sys.path[:0] = [{here!r}]; from _jail.main import main; sys.path.pop(0); main({a}, {b}, {c})"
)
_MOST_SAID = 1 << 21
NOBODY = 65534


@dataclass
class Seen:
    """The keeper's report (`said`), why we ended it (`stopped`), why it never began (`setup`)."""

    said: dict[str, Any] = field(default_factory=dict)
    stdout: str = ""
    stderr: str = ""
    stopped: str = ""
    why: str = ""
    setup: str = ""


def run(request: dict[str, Any], check: str | None, stdin: bytes, wall_seconds: float, most: int) -> Seen:
    """Run one request and return what was heard; nothing of it is left running."""
    nonce = secrets.token_hex(16)
    asked = _hold(json.dumps(request).encode())
    secret = _hold(json.dumps({"nonce": nonce, "check": check}).encode())
    hear, say = os.pipe()
    given = _hold(stdin)
    try:
        start = _START.format(here=str(Path(__file__).parent), a=asked, b=secret, c=say)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", start, mark()],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/", close_fds=True,
            pass_fds=(asked, secret, say), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(hear)
        return Seen(setup=f"the interpreter cannot be started: {error}")
    finally:
        for handle in (asked, secret, say, given):
            os.close(handle)
    assert process.stdout is not None and process.stderr is not None
    parts: dict[int, bytearray] = {
        h: bytearray() for h in (process.stdout.fileno(), process.stderr.fileno(), hear)
    }
    try:
        stopped, why = _listen(parts, hear, time.monotonic() + wall_seconds, wall_seconds, most)
    finally:
        _end(process)
        _wait_for_silence(list(parts))
    out, err = (parts[pipe.fileno()] for pipe in (process.stdout, process.stderr))
    seen = Seen(stdout=_text(out, most), stderr=_text(err, most), stopped=stopped, why=why)
    process.stdout.close()
    process.stderr.close()
    os.close(hear)
    _read_report(seen, bytes(parts[hear]), nonce)
    return seen


def _listen(
    parts: dict[int, bytearray], hear: int, deadline: float, wall_seconds: float, most: int
) -> tuple[str, str]:
    """Read all pipes to their ends; why it was stopped, if it was."""
    with selectors.DefaultSelector() as selector:
        for handle in parts:
            selector.register(handle, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout", f"it took longer than {wall_seconds:g} seconds"
            for key, _ in selector.select(left):
                part = os.read(key.fd, 65536)
                if not part:
                    selector.unregister(key.fd)
                    continue
                held = parts[key.fd]
                held += part
                if len(held) > (_MOST_SAID if key.fd == hear else most):
                    return "output", f"it printed more than {most // 1024} KB"
    return "", ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the launcher's group; the keeper dies with the launcher, and all else with the keeper."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for_silence(handles: list[int], most_seconds: float = 5.0) -> None:
    """Until nobody holds the other ends: the kernel kills what is left a moment after its PID 1."""
    deadline = time.monotonic() + most_seconds
    while handles and (left := deadline - time.monotonic()) > 0:
        for handle in select.select(handles, [], [], left)[0]:
            if not os.read(handle, 65536):
                handles.remove(handle)


def mark() -> str:
    """An argument without effect, by which `ps` tells whose sandbox a process belongs to."""
    return f"glasshouse-sandbox-of-{os.getpid()}"


def _read_report(seen: Seen, said: bytes, nonce: str) -> None:
    """Take a report only when it carries this run's nonce."""
    try:
        report = json.loads(said) if said else {}
    except ValueError:
        report = {}
    if "setup" in report:
        seen.setup = str(report["setup"])
    elif report.pop("nonce", None) == nonce:
        seen.said = report
    elif not seen.stopped and not report:
        seen.setup = "" if said or not seen.stderr.startswith("Traceback") else seen.stderr.splitlines()[-1]


def hand_over(folder: Path) -> None:
    """Let `nobody` write in a folder of ours, where we are root; links are never followed."""
    if os.geteuid() != 0:
        return
    for _, folders, names, handle in os.fwalk(folder):  # by handles, which no program inside can swap
        os.fchown(handle, NOBODY, NOBODY)
        for name in (*folders, *names):
            os.chown(name, NOBODY, NOBODY, dir_fd=handle, follow_symlinks=False)


def _hold(data: bytes) -> int:
    """A file in memory with `data`, read from its start."""
    handle = os.memfd_create("glasshouse", 0)  # Linux alone, as all of this
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(data)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _text(data: bytearray, most: int) -> str:
    return bytes(data[:most]).decode("utf-8", "replace")
