"""The one sandbox: code written by a model runs here or not at all.

A bare interpreter in its own process gives up, in this order: users, network, processes, mounts and IPC of
the host (namespaces), its root (only the standard library, system libraries and an empty folder remain), its
user and capabilities, then under rlimits and two layers of Landlock runs the code. Checks run in another
process that the code cannot reach and that asks it by messages of plain values; only that process can report
a pass. `docs/sandbox.md` says what this stops and what it does not.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from glasshouse.evaluation import _jail_host
from glasshouse.evaluation._jail import wire
from glasshouse.runtime.doctor import landlock_version, user_namespaces
from glasshouse.runtime.errors import AccessError, InputError

Status = Literal[
    "passed", "finished", "failed", "error", "exited", "cpu", "memory", "timeout", "output", "killed",
]  # fmt: skip
LEAST_LANDLOCK = 4
"""The version that can forbid TCP."""
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
PROGRAMS = ("/bin", "/sbin", "/usr")


class SandboxUnavailable(AccessError):
    """This machine cannot confine code; it is refused, never run bare."""


@dataclass(frozen=True)
class Limits:
    """What the code may use. CPU and memory are per process, `processes` per run; `file_kb` is the longest
    file it may write (0: none), `work_kb` its folder, `output_kb` what it may print to each of stdout and
    stderr before it is stopped.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 16
    file_kb: int = 0
    work_kb: int = 16384
    open_files: int = 16
    output_kb: int = 64

    def __post_init__(self) -> None:
        for name, least in (("cpu_seconds", 1), ("memory_mb", 32), ("processes", 1), ("open_files", 8),
                            ("file_kb", 0), ("work_kb", 64), ("output_kb", 1)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}", fix=f"give a whole number of at least {least}")
        if not 0 < self.wall_seconds <= 86400:
            raise InputError(f"wall_seconds is {self.wall_seconds!r}", fix="give seconds up to a day")


@dataclass(frozen=True)
class SandboxResult:
    """What came of a run.

    `status`: passed (the checks reached their end), finished (no checks; the code says that it reached its
    end), failed (an assertion of the checks), error (an exception), exited (the process left before the
    end), cpu, memory, timeout, output (printed too much), killed. `value` is the plain value of the global
    `result` of the checks (of the code where there are none), `reason` one sentence, `code` the exit code
    where the process left by itself, `usage` CPU seconds and peak MB of the code's process.
    """

    status: Status
    value: Any = None
    stdout: str = ""
    stderr: str = ""
    reason: str = ""
    code: int | None = None
    usage: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the checks passed; without checks nothing passes."""
        return self.status == "passed"


def run_python(
    code: str,
    *,
    check: str | None = None,
    stdin: str = "",
    files: Mapping[str, str | bytes] | None = None,
    limits: Limits | None = None,
) -> SandboxResult:
    """Run Python source, then the trusted `check` against it, and say what came of it.

    `check` sees the functions and plain globals of the code; each call is a message to the code's process and
    gives a copy of a plain value (number, string, bytes, list, tuple, dict, set, None); any other object
    arrives as one that equals nothing. A name of the code never hides a builtin: call such a function as
    `solution.sorted(...)`. `files` (relative names) lie in the working folder. Raises
    SandboxUnavailable where the kernel lacks what is needed, InputError for names that leave the folder.

    >>> run_python("def add(a, b): return a + b", check="assert add(2, 3) == 5").status
    'passed'
    """
    need_sandbox()
    if "\0" in code:
        raise InputError("the code holds a NUL character", fix="remove it")
    request = {
        "code": code,
        "name": "__main__" if check is None else "solution",
        "argv": [],
        "files": {name: _hex(held) for name, held in _checked(files or {}).items()},
        "read": [*_libraries(), *LIBRARIES],
        "work": "/work",
        "keep": False,
    }
    return _run(request, check, stdin.encode(), limits or Limits())


def run_command(
    argv: Sequence[str],
    folder: Path | str,
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    limits: Limits | None = None,
) -> SandboxResult:
    """Run a program with `folder` as the one place it may write to; files stay there afterwards.

    Programs of the system (/usr, /bin) and this Python are there to run, read-only; /etc, /home, /proc and
    the network are not. `cwd` lies in `folder`. The status is 'finished' with `code` when it left by itself.
    """
    need_sandbox()
    root = Path(folder).resolve()
    place = Path(cwd).resolve() if cwd is not None else root
    if not place.is_relative_to(root) or not place.is_dir():
        raise InputError(f"cwd {cwd!r} is no folder in the sandbox", fix=f"give one below {root}")
    python = Path(sys.base_prefix)
    path = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{python}/bin"
    request = {
        "code": "",
        "name": "",
        "argv": list(argv),
        "env": {"PATH": path, "HOME": str(root), "LANG": "C.UTF-8", **(env or {})},
        "cwd": str(place),
        "files": {},
        "read": [*PROGRAMS, *LIBRARIES, *([] if python.is_relative_to("/usr") else [str(python)])],
        "work": str(root),
        "keep": True,
    }
    _jail_host.hand_over(root)
    return _run(request, None, stdin, limits or Limits(file_kb=65536, open_files=256, processes=64))


def need_sandbox() -> None:
    """Raise SandboxUnavailable, in one sentence, where this kernel cannot confine code. Tried once."""
    problem = _problem()
    if problem:
        raise SandboxUnavailable(
            f"code written by a model cannot be confined here ({problem})",
            fix="use Linux 6.7 or newer with unprivileged user namespaces, or Inspect's docker sandbox",
        )


@cache
def _problem() -> str:
    """Why there is no sandbox, or nothing; ends with a trial run, because only that proves it."""
    version = landlock_version()
    if version < LEAST_LANDLOCK:
        return f"Landlock is at version {version}, {LEAST_LANDLOCK} is needed"
    if not user_namespaces():
        return "user namespaces are off"
    request = {
        "code": "", "name": "trial", "argv": [], "files": {}, "read": [*_libraries(), *LIBRARIES],
        "work": "/work", "keep": False,
    }  # fmt: skip
    try:
        _run(request, "", b"", Limits())
    except SandboxUnavailable as error:
        return error.what
    return ""


def _run(request: dict[str, Any], check: str | None, stdin: bytes, limits: Limits) -> SandboxResult:
    with tempfile.TemporaryDirectory(prefix="glasshouse-") as root:
        told = asdict(limits)
        told["work_kb"] = limits.work_kb + sum(len(held) for held in request["files"].values()) // 1024
        whole = {**request, "root": root, "limits": told, "abi": landlock_version()}
        seen = _jail_host.run(whole, check, stdin, limits.wall_seconds, limits.output_kb * 1024)
    if seen.setup:
        raise SandboxUnavailable(seen.setup)
    said = seen.said
    if seen.stopped or not said:
        status: Status = seen.stopped or "killed"  # type: ignore[assignment]
        return SandboxResult(status, None, seen.stdout, seen.stderr, seen.why or "the sandbox was killed")
    try:
        value = wire.decode(said.get("value"))
    except wire.Gone:
        value = None
    return SandboxResult(
        said["status"], value, seen.stdout, seen.stderr, said["reason"], said.get("code"), said["usage"]
    )


def _checked(given: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    for name in given:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise InputError(f"the file name {name!r} leaves the folder", fix="give relative names")
    return dict(given)


def _hex(held: str | bytes) -> str:
    return (held.encode() if isinstance(held, str) else held).hex()


def _libraries() -> list[str]:
    """The folders of the standard library of the interpreter that runs the code."""
    found = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    return sorted({os.path.realpath(found["stdlib"]), os.path.realpath(found["platstdlib"])})
