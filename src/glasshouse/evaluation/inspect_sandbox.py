"""`sandbox="glasshouse"` for Inspect tasks: the local environment, every program in the one sandbox."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Literal, overload

from inspect_ai.util import ExecResult, OutputLimitExceededError, SandboxEnvironment
from inspect_ai.util._sandbox.environment import SandboxEnvironmentConfigType, SandboxUserUnsupportedError
from inspect_ai.util._sandbox.limits import SandboxEnvironmentLimits, verify_read_file_size
from inspect_ai.util._sandbox.local import LocalSandboxEnvironment

from glasshouse.evaluation.sandbox import Limits, need_sandbox, run_command

MOST_SECONDS = 3600
_OPENAT2 = 437
_BENEATH, _NO_MAGIC = 0x08, 0x02


class GlasshouseSandbox(LocalSandboxEnvironment):
    """One folder per sample. Programs see the system read-only, this folder, and no network; see run_command.

    Files are read and written by this process below the folder only: a link that leads out is refused. A
    program that outlives its call is killed with it, so background servers do not work here. Raises
    SandboxUnavailable before a sample starts where the kernel lacks what is needed.
    """

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """A fresh folder, or a refusal."""
        need_sandbox()
        return {"default": cls()}

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a program. Raises TimeoutError as Inspect expects, OutputLimitExceededError for a flood."""
        import anyio

        if user is not None:
            raise SandboxUserUnsupportedError("the glasshouse sandbox has one user; leave `user` out")
        folder = Path(self.directory.name).resolve()
        seconds = timeout or MOST_SECONDS
        limits = Limits(
            cpu_seconds=seconds, wall_seconds=seconds, memory_mb=2048, processes=64, file_kb=65536,
            open_files=256, output_kb=SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE // 1024,
        )  # fmt: skip
        place = str(folder / cwd) if cwd is not None else None
        stdin = input.encode() if isinstance(input, str) else input or b""

        def work() -> Any:
            return run_command(cmd, folder, cwd=place, env=env, stdin=stdin, limits=limits)

        found = await anyio.to_thread.run_sync(work)
        if found.status in ("timeout", "cpu"):
            raise TimeoutError(found.reason)
        if found.status == "output":
            raise OutputLimitExceededError(f"{limits.output_kb} KB", found.stdout)
        code = found.code if found.code is not None else -9
        return ExecResult(code == 0, code, found.stdout, found.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write below the folder. Raises PermissionError for a name or a link that leads out."""
        data = contents.encode() if isinstance(contents, str) else contents
        folder = self.directory.name
        name = _relative(folder, file)
        for parent in reversed(Path(name).parents[:-1]):
            if not os.path.lexists(os.path.join(folder, parent)):
                above = _open_beneath(folder, str(parent.parent), os.O_RDONLY | os.O_DIRECTORY)
                os.mkdir(parent.name, dir_fd=above)
                os.close(above)
        with os.fdopen(_open_beneath(folder, name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as handle:
            handle.write(data)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Read below the folder. Raises PermissionError for a name or a link that leads out."""
        folder = self.directory.name
        handle = _open_beneath(folder, _relative(folder, file), os.O_RDONLY)
        with os.fdopen(handle, "rb") as source:
            verify_read_file_size(f"/proc/self/fd/{handle}")
            data = source.read()
        return data.decode("utf-8") if text else data


def _relative(folder: str, file: str) -> str:
    """The name below the folder; absolute names must begin with it."""
    if not os.path.isabs(file):
        return file
    root = os.path.realpath(folder)
    for start in (folder, root):
        if file == start or file.startswith(start + os.sep):
            return os.path.relpath(file, start)
    raise PermissionError(f"{file} is outside the sandbox; give a name below {root}")


def _open_beneath(folder: str, name: str, flags: int) -> int:
    """Open without ever leaving `folder`, by names, `..` or links (openat2 with RESOLVE_BENEATH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    mode = 0o644 if flags & os.O_CREAT else 0
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, mode, _BENEATH | _NO_MAGIC)
    try:
        handle = int(libc.syscall(_OPENAT2, root, os.fsencode(name), how, ctypes.c_size_t(24)))
    finally:
        os.close(root)
    if handle < 0:
        number = ctypes.get_errno()
        if os.strerror(number) == os.strerror(18):  # EXDEV: it would have left the folder
            raise PermissionError(f"{name} leads out of the sandbox")
        raise OSError(number, os.strerror(number), name)
    return handle
