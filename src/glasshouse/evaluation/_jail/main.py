"""Builds the sandbox around itself, in the order that works: namespaces, mounts, user, limits, Landlock.

    launcher (outside's child)         unshares, mounts, pivots the root
    └── keeper, PID 1 of the sandbox   holds the result pipe; runs the checks; its end kills all below
        └── worker                     the untrusted code, one Landlock layer deeper

Started as `python -I -S -c ... REQUEST SECRET RESULT` with three file descriptors.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

from . import checker, kernel, wire, worker

TYPE_CHECKING = False  # typing is slow to load, and a run costs as much as it loads
if TYPE_CHECKING:
    from typing import Any


def main(request_handle: int, secret_handle: int, result_handle: int) -> None:
    """Run one request. Everything that goes wrong before the code runs is a setup error."""
    try:
        request = json.loads(_whole(request_handle))
        os.close(request_handle)
        was_root = os.geteuid() == 0
        _enter_namespaces(was_root)
        kernel.die_with_parent()
        kernel.no_more_namespaces()
        _build_root(request, was_root)
        keeper = os.fork()
    except (OSError, ValueError, KeyError) as error:
        _report(result_handle, {"setup": str(error)})
        os._exit(1)
    if keeper == 0:
        _keep(request, secret_handle, result_handle, was_root)
        os._exit(0)
    os.close(result_handle)
    os.close(secret_handle)
    os.closerange(0, 3)  # the pipes end with the sandbox, not with this process
    os.waitpid(keeper, 0)
    os._exit(0)


def _enter_namespaces(was_root: bool) -> None:
    """New namespaces; a root outside needs a helper there to map the user it will become."""
    uid, gid, me = os.getuid(), os.getgid(), os.getpid()
    if not was_root:
        kernel.unshare(kernel.ALL_NAMESPACES)
        kernel.map_user(uid, gid)
        return
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        told = 1
        if os.read(ready, 1):
            try:
                kernel.map_root(me)
                told = 0
            except OSError:
                pass
        os._exit(told)
    os.close(ready)
    kernel.unshare(kernel.ALL_NAMESPACES)
    os.write(go, b"x")
    os.close(go)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("uid_map cannot be written")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _build_root(request: dict[str, Any], was_root: bool) -> None:
    """A root of its own: system files read-only, a few devices, one folder to work in, nothing else."""
    root, work = request["root"], request["work"]
    kernel.private_mounts()
    kernel.mount_memory(root, 1024, "0755")
    for path in request["read"]:
        if os.path.islink(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path) and not _inside(root + path, root):
            os.makedirs(root + path, exist_ok=True)
            kernel.bind(path, root + path)
    os.makedirs(root + "/dev", exist_ok=True)
    for name in ("null", "zero", "urandom", "random"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        kernel.bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    os.makedirs(root + work, exist_ok=True)
    if request["keep"]:
        kernel.bind(work, root + work, writable=True)
    else:
        kernel.mount_memory(root + work, request["limits"]["work_kb"], "0700")
    if was_root and not request["keep"]:
        os.chown(root + work, kernel.NOBODY, kernel.NOBODY)
    kernel.enter_root(root)


def _inside(path: str, root: str) -> bool:
    """Whether a folder is shown already, as part of one bound before."""
    return os.path.isdir(path) and os.stat(path).st_dev != os.stat(root).st_dev


def _keep(request: dict[str, Any], secret_handle: int, result_handle: int, was_root: bool) -> None:
    """PID 1: confine itself, start the worker, judge, report."""
    try:
        kernel.become_nobody(was_root=was_root)
        kernel.die_with_parent()
        limits, work = request["limits"], request["work"]
        rules = _rules(request)
        kernel.landlock(request["abi"], rules)
        os.chdir(work)
        _put_files(request["files"])
        _limit(limits, cpu=limits["cpu_seconds"] + 1)
        hear, say = os.pipe()
        listen, speak = os.pipe()
        kernel.hide_memory()
        child = os.fork()
        if child == 0:
            os.close(result_handle)
            os.close(secret_handle)
            os.close(hear)
            os.close(speak)
            kernel.landlock(request["abi"], rules)
            _work(request, listen, say)
            os._exit(0)  # in the worker this is reached only when the code ran to its end
    except (OSError, ValueError) as error:
        _report(result_handle, {"setup": str(error)})
        return
    os.close(say)
    os.close(listen)
    secret = json.loads(_whole(secret_handle))
    found = _judge(request, secret.get("check"), wire.Reader(hear, os.pidfd_open(child)), speak, child)
    _report(result_handle, {"nonce": secret["nonce"], **found})


def _work(request: dict[str, Any], listen: int, speak: int) -> None:
    """The worker, from here on untrusted."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_NPROC, (request["limits"]["processes"],) * 2)
    _limit(request["limits"], cpu=request["limits"]["cpu_seconds"])
    if request["argv"]:
        os.close(listen)
        os.set_inheritable(speak, False)
        try:
            os.chdir(request["cwd"])
            os.execvpe(request["argv"][0], request["argv"], request["env"])
        except OSError as error:
            os.write(2, f"{request['argv'][0]}: {os.strerror(error.errno or 0)}\n".encode())
            os._exit(127)
    try:
        worker.serve(request["code"], request["name"], listen, speak)
    except wire.Gone:
        pass
    except MemoryError:
        os._exit(77)


def _judge(
    request: dict[str, Any], check: str | None, reader: wire.Reader, speak: int, child: int
) -> dict[str, Any]:
    """What came of it, by the worker's word (no check) or by the checks (then the word is not taken)."""
    found: dict[str, Any] | None = None
    try:
        if not request["argv"]:
            said = reader.receive()
            if "error" in said:
                status = "memory" if said.get("memory") is True else "error"
                found = {"status": status, "reason": str(said.get("told"))[:2000]}
            elif "left" not in said and check is None:
                result = dict(said.get("plain") or {}).get("result")
                found = {"status": "finished", "reason": "", "value": wire.encode(wire.decode(result))}
            elif "left" not in said:
                assert check is not None
                found = checker.run(check, said, reader, speak)
    except (wire.Gone, checker.Left, TypeError, ValueError, RecursionError):
        found = None
    os.close(speak)
    state, used = _end(child, wait=bool(request["argv"]))
    if found is None:
        found = _ended(state, request, used.ru_utime + used.ru_stime)
    used_up = {"cpu_seconds": used.ru_utime + used.ru_stime, "memory_mb": used.ru_maxrss / 1024}
    return {**found, "usage": used_up}


def _end(child: int, *, wait: bool) -> tuple[int, Any]:
    """Wait for a program; a worker that has said its last word is given a moment, then killed."""
    if not wait:
        for _ in range(50):
            pid, state, used = os.wait4(child, os.WNOHANG)
            if pid:
                return state, used
            _nap()
        os.kill(child, signal.SIGKILL)
    _, state, used = os.wait4(child, 0)
    return state, used


def _nap() -> None:
    import select

    select.select([], [], [], 0.002)


def _ended(state: int, request: dict[str, Any], cpu: float) -> dict[str, Any]:
    """How the worker's process ended without an answer."""
    if os.WIFSIGNALED(state):
        number = os.WTERMSIG(state)
        spent = number == signal.SIGXCPU or cpu >= request["limits"]["cpu_seconds"]
        reason = f"ended by {signal.Signals(number).name}"
        return {"status": "cpu" if spent else "killed", "reason": reason, "code": -number}
    code = os.WEXITSTATUS(state)
    if request["argv"]:
        return {"status": "finished", "reason": "", "code": code}
    if code == 77:
        return {"status": "memory", "reason": "out of memory", "code": code}
    return {"status": "exited", "reason": f"the process left with {code} before the end", "code": code}


def _rules(request: dict[str, Any]) -> dict[str, int]:
    execute = bool(request["argv"])
    rules = {
        "/": kernel.rights(read=True, execute=execute),
        request["work"]: kernel.rights(read=True, write=True, execute=execute),
    }
    for name in ("null", "zero", "urandom", "random"):
        rules[f"/dev/{name}"] = kernel.rights(read=True, write=name == "null", is_file=True)
    return rules


def _limit(limits: dict[str, Any], *, cpu: int) -> None:
    for name, most in (
        ("CORE", 0),
        ("AS", limits["memory_mb"] << 20),
        ("FSIZE", limits["file_kb"] << 10),
        ("NOFILE", limits["open_files"]),
        ("MSGQUEUE", 0),
        ("MEMLOCK", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # a signal that names the reason, then the end


def _put_files(files: dict[str, str]) -> None:
    """The given files (hex), below the working folder."""
    for name, held in files.items():
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(name, "xb") as handle:
            handle.write(bytes.fromhex(held))


def _whole(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    parts = []
    while part := os.read(handle, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _report(handle: int, message: dict[str, Any]) -> None:
    sys.stdout.flush()
    try:
        wire.send(handle, message)
    except wire.Gone:
        os._exit(1)
