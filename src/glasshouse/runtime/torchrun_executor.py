"""The executor `torchrun`: the same program on every rank, each rank with its part of the shards.

    torchrun --nproc-per-node 2 script.py        # the script says executor="torchrun"

All ranks read the same shards in the same order, compute every world-size-th of them and exchange results,
so that each ends up with all results, in order, and goes on with the same numbers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from glasshouse.runtime.errors import GlasshouseError, InputError, RunError
from glasshouse.runtime.executors import Combine, Store, _fold
from glasshouse.runtime.travel import packed, unpacked

S = TypeVar("S")
R = TypeVar("R")

LAUNCH = "start the program as `torchrun --nproc-per-node 2 script.py`"


class Torchrun:
    """Run the shards on the ranks of a process group; the program was started by `torchrun`.

    A group that is not initialised yet is (gloo). Results travel through gloo also where the program's own
    group is nccl: tensors go through host memory and come back to the reader's device, so scripts are the
    same on CPUs and GPUs. `torchrun:4` insists on four ranks. A rank that raises makes all ranks raise, each
    at that shard. When a rank is killed the others stop with a RunError, `torchrun --max-restarts` starts
    all again, and a `store` that the ranks share goes on behind the last exchange: each rank repeats at most
    one shard. Raises InputError outside torchrun, RunError when ranks were not given the same shards.

    >>> Torchrun(4).workers
    4
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"{workers} ranks cannot do anything", fix="give at least one")
        self.workers = workers
        self._group: Any = None

    def map(self, fn: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Results of `fn` on each shard, in order, on every rank; each rank must ask for all of them."""
        listed = list(shards)
        self._join()
        self._agree(fn, listed)
        rank, size = self._rank()
        for start in range(0, len(listed), size):
            mine = start + rank
            outcome = _outcome(fn, listed[mine], rank) if mine < len(listed) else None
            for found in self._exchange(outcome)[: len(listed) - start]:
                if found.error is not None:
                    raise found.error
                yield unpacked(found.value, int(os.environ.get("LOCAL_RANK", 0)))

    def map_reduce(
        self,
        fn: Callable[[S], R],
        shards: Iterable[S],
        combine: Combine[R],
        *,
        store: Store | None = None,
    ) -> R:
        """Fold the results from the left on every rank; all ranks must see the same store."""
        return _fold(self, fn, list(shards), combine, store)

    def _join(self) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            if "RANK" not in os.environ:
                raise InputError("this process has no rank", where="executor torchrun", fix=LAUNCH)
            _start(dist)
        if self.workers not in (None, dist.get_world_size()):
            raise InputError(
                f"the number of ranks that were started is {dist.get_world_size()}",
                where=f"executor torchrun:{self.workers}",
                fix=f"give --nproc-per-node {self.workers}, or ask for `torchrun` alone",
            )
        if self._group is None:
            # Objects need a group on the CPU: through nccl they would be copied to the GPU and back.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def _rank(self) -> tuple[int, int]:
        import torch.distributed as dist

        return dist.get_rank(), dist.get_world_size()

    def _agree(self, fn: Callable[..., Any], shards: list[Any]) -> None:
        """Raise RunError unless all ranks are about to do the same."""
        found = self._exchange(f"{_name(fn)} on {len(shards)} shards: {_digest(shards)}")
        if len(set(found)) > 1:
            raise RunError(
                "the ranks were not given the same shards of the same function",
                where="executor torchrun",
                fix="give all ranks the same data and seeds, and one store that they share",
            )

    def _exchange(self, mine: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * dist.get_world_size()
        try:
            dist.all_gather_object(found, mine, group=self._group)
        except RuntimeError as error:
            raise RunError(
                "another rank is gone",
                where="executor torchrun",
                fix="see its own error; the same command goes on where a store is given",
            ) from error
        # Not the copy that travelled: a bug of this rank stays what it is, with its traceback.
        found[dist.get_rank()] = mine
        return found


def _start(dist: Any) -> None:
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # On one machine torchrun keeps its store over restarts, with the addresses of ranks that are dead.
        store = dist.PrefixStore("start/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


@dataclass(frozen=True)
class _Outcome:
    """What became of a shard. An error that is not of our family travels as one that is."""

    value: Any = None
    error: Exception | None = None
    rank: int = 0

    def __reduce__(self) -> tuple[object, ...]:
        error = self.error
        if error is not None and not isinstance(error, GlasshouseError):
            error = RunError(f"{type(error).__name__}: {error}", where=f"rank {self.rank}")
        return _Outcome, (self.value, error, self.rank)


def _outcome(fn: Callable[[Any], Any], shard: Any, rank: int) -> _Outcome:
    try:
        return _Outcome(packed(fn(shard)))
    except Exception as error:
        return _Outcome(None, error, rank)


def _name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def _digest(shards: list[Any]) -> str:
    """Of the shards' content where they are plain (indices, names), else of their types."""
    text = json.dumps(shards, default=lambda thing: type(thing).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()
