"""Which device and which number format to use; nothing falls back silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glasshouse.runtime.errors import DeviceError, InputError

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def pick_device(name: str = "auto") -> str:
    """The device string to use: `auto` is `cuda` where there is one, else `cpu`.

    Raises DeviceError when a device that was named is not there, InputError for a name that is no device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is not a device", fix="use auto, cpu, cuda, cuda:0 or mps") from error
    if not _present(device):
        have = ", ".join(available_devices())
        raise DeviceError(f"the device {name!r} is not available", fix=f"use one of: {have}")
    return str(device)


def available_devices() -> list[str]:
    """The devices of this machine, `cpu` first."""
    import torch

    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def pick_dtype(name: str = "auto", device: str = "cpu") -> torch.dtype:
    """The dtype to load a model in: `auto` is bf16 on a GPU that computes in it, else fp32.

    Raises InputError for an unknown name. A name is obeyed on every device.
    """
    import torch

    if name == "auto":
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise InputError(f"{name!r} is not a number format", fix="use auto, " + ", ".join(_DTYPES))
    dtype: torch.dtype = getattr(torch, _DTYPES[name])
    return dtype


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on `count` threads of the processor (None: as many as before); then as before.

    Small models want one: their operations last microseconds, and threads that share busy cores wait for
    each other longer than they compute.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _present(device: torch.device) -> bool:
    import torch

    if device.type == "cpu":
        return True
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "mps" and torch.backends.mps.is_available()
