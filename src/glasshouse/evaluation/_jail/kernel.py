"""What the kernel does for the sandbox, through ctypes: namespaces, mounts, capabilities, Landlock.

Numbers are those of Linux on x86-64 and arm64 where they agree; `pivot_root`, which differs, is looked up.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

NOBODY = 65534
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
ALL_NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = 41 if os.uname().machine in ("aarch64", "arm64") else 155
_CAPSET = 91 if os.uname().machine in ("aarch64", "arm64") else 126
_MOUNT_SETATTR, _RULESET, _ADD_RULE, _RESTRICT = 442, 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_EVERY_FS = (1 << 15) - 1  # ABI 3: up to TRUNCATE
_IOCTL_DEV = 1 << 15  # ABI 5
_DEVICES = (1 << 6) | (1 << 11) | (1 << 9)  # making character and block devices and sockets
_EVERY_NET = 3  # bind and connect TCP, ABI 4
_EVERY_SCOPE = 3  # abstract sockets and signals, ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """New namespaces for this process (a new PID namespace for its children)."""
    _check(_libc.unshare(flags), "unshare")


def map_user(outer_uid: int, outer_gid: int) -> None:
    """Be `nobody` in the new user namespace, standing for the one user outside."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {outer_uid} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {outer_gid} 1")


def map_root(pid: int) -> None:
    """For a root outside: root and `nobody` of process `pid` stand for themselves."""
    both = f"0 0 1\n{NOBODY} {NOBODY} 1"
    _write(f"/proc/{pid}/uid_map", both)
    _write(f"/proc/{pid}/gid_map", both)


def no_more_namespaces() -> None:
    """Nobody inside gets namespaces, and with them powers, of their own (where /proc/sys can be written)."""
    with suppress(OSError):
        _write("/proc/sys/user/max_user_namespaces", "0")


def private_mounts() -> None:
    """Mounts made from here on are seen by nobody else."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)


def mount_memory(path: str, size_kb: int, mode: str) -> None:
    """An empty file system in memory of limited size."""
    data = f"size={size_kb}k,nr_inodes=4096,mode={mode}"
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, data)


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Show `source` at `target`, read-only with everything mounted below it unless `writable`."""
    _mount(source, target, None, _MS_BIND | _MS_REC, None)
    if not writable:
        read_only(target)


def read_only(target: str) -> None:
    """Make a mount and all below it read-only."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    _check(
        _libc.syscall(
            _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32)
        ),
        f"mount_setattr {target}",
    )


def enter_root(path: str) -> None:
    """Make `path` the root and let go of the old one."""
    os.chdir(path)
    _check(_libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount")
    os.chdir("/")


def become_nobody(*, was_root: bool) -> None:
    """Give up every user, group and capability; from here on nothing can be gained by running a program."""
    if was_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.syscall(_CAPSET, header, (ctypes.c_uint32 * 6)()), "capset")
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _check(_libc.prctl(_PDEATHSIG, 9, 0, 0, 0), "pdeathsig")


def hide_memory() -> None:
    """No process of the same user may trace this one or read its memory."""
    _check(_libc.prctl(_DUMPABLE, 0, 0, 0, 0), "dumpable")


def landlock(abi: int, rules: dict[str, int]) -> None:
    """Confine this process and its children: nothing below the paths but the rights given, no TCP at all.

    A second call nests: what runs under it cannot trace what runs under the first alone.
    """
    every = _EVERY_FS | (_IOCTL_DEV if abi >= 5 else 0)
    size = 24 if abi >= 6 else 16
    attributes = (ctypes.c_uint64 * 3)(every, _EVERY_NET, _EVERY_SCOPE if abi >= 6 else 0)
    ruleset = _check(_libc.syscall(_RULESET, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    for path, rights in rules.items():
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = (rights & every).to_bytes(8, "little") + handle.to_bytes(4, "little")
        _check(_libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(handle)
    _check(_libc.syscall(_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def rights(*, read: bool = False, write: bool = False, execute: bool = False, is_file: bool = False) -> int:
    """Landlock rights below a path; no right ever makes a device or a socket."""
    found = (READ_FILE | (0 if is_file else READ_DIR)) if read else 0
    if write:
        found |= WRITE_FILE | (1 << 14) if is_file else _EVERY_FS & ~_DEVICES & ~EXECUTE
    return found | (EXECUTE if execute else 0)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    made = _libc.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags),
        data.encode() if data else None,
    )  # fmt: skip
    _check(made, f"mount {target}")


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
