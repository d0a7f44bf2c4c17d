"""Pairs (a, g) kept in memory between the passes of one fit, so that a batch is differentiated once.

Covariance and Lambda need the same pairs (labels drawn for a row depend on seed, row and token only), and
with the data's own labels the score pass needs them too. What does not fit is computed again, with the same
result. The cache lives in one process: a pickled one arrives empty.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from glasshouse.runtime.doctor import memory_gib
from glasshouse.subjects.capture import Pair

MOST_BYTES = 4 << 30
SHARE_OF_FREE = 0.25
"""The "auto" budget: 4 GiB, or a quarter of the free memory where that is less."""


class PairCache:
    """Pairs by batch, up to `budget` bytes; first come, first kept."""

    def __init__(self, budget: int = 0) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: dict[Hashable, dict[str, Pair]] = {}
        self._alive: dict[int, object] = {}

    def __reduce__(self) -> tuple[type[PairCache], tuple[()]]:
        return PairCache, ()

    def key(self, model: nn.Module, *parts: object) -> Hashable:
        """What pairs depend on besides the rows: the state of the model, and `parts` by identity."""
        for part in parts:
            self._alive[id(part)] = part  # an id is unique only while its object lives
        return fingerprint(model), tuple(id(part) for part in parts)

    def get(self, key: Hashable) -> dict[str, Pair] | None:
        """The pairs kept under `key`, not to be written to."""
        return self._kept.get(key)

    def put(self, key: Hashable, pairs: dict[str, Pair]) -> bool:
        """Keep `pairs` if the budget allows it."""
        blocks = {
            part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
            for pair in pairs.values()
            for part in (pair.a, pair.g)
        }
        size = sum(blocks.values())  # layers that read one activation share it
        if self.bytes + size > self.budget:
            return False
        self._kept[key] = pairs
        self.bytes += size
        return True

    def clear(self) -> None:
        """Let the memory go."""
        self._kept, self._alive, self.bytes = {}, {}, 0


def budget_bytes(choice: int | str, device: torch.device) -> int:
    """The budget in bytes: `choice` itself, or for "auto" as `SHARE_OF_FREE` says."""
    if choice != "auto":
        return int(choice)
    return min(MOST_BYTES, int(SHARE_OF_FREE * _free_bytes(device)))


def fingerprint(model: nn.Module) -> Hashable:
    """Changes when weights, buffers, modes or hooks of the model do; cheap beside any pass through it."""
    modules = tuple((m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules())
    return modules, tuple(_mark(t) for group in (model.parameters(), model.buffers()) for t in group)


def _mark(tensor: Tensor) -> tuple[int, int, float]:
    # Not the version alone: writes through `.data` leave it as it is.
    return tensor.data_ptr(), tensor._version, float(tensor.detach().float().sum())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0  # unknown here: recompute rather than swap
    allowed = memory_gib()
    return free if allowed is None else min(free, int(allowed * 2**30))
