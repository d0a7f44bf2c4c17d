"""Where shards of work run: in this process, or in several. Results come in the order of the shards.

A function of shards must not depend on how many there are; `map_reduce` combines the results from left to
right in the order of the shards, so that sums round the same way on every executor.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from glasshouse.runtime.errors import GlasshouseError, InputError, RunError

S = TypeVar("S")
R = TypeVar("R")

Combine = Callable[[R, R], R]
"""Joins the total of the shards so far with the next result."""

Store = Callable[[str, Callable[[], Any]], Any]
"""`store(name, build)` returns what is stored under the name or stores `build()`, as `Run.step` does."""


@runtime_checkable
class Executor(Protocol):
    """What a third party must offer under the entry point group `glasshouse.executors`."""

    def map(self, fn: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Results of `fn` on each shard, in the order of the shards."""
        ...

    def map_reduce(
        self,
        fn: Callable[[S], R],
        shards: Iterable[S],
        combine: Combine[R],
        *,
        store: Store | None = None,
    ) -> R:
        """`combine(... combine(r0, r1) ..., rn)`; with a store, shards that are stored are not computed."""
        ...


class Local:
    """Run the shards here, one after the other."""

    def map(self, fn: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Results of `fn` on each shard, in order, computed as they are asked for."""
        return (fn(shard) for shard in shards)

    def map_reduce(
        self,
        fn: Callable[[S], R],
        shards: Iterable[S],
        combine: Combine[R],
        *,
        store: Store | None = None,
    ) -> R:
        """Fold the results from the left; the store's names are `shard/0`, `shard/1`, ..."""
        return _fold(self, fn, list(shards), combine, store)


class Processes:
    """Run the shards in `workers` fresh processes, each with one torch thread.

    `fn` must be importable (defined at the top of a module) and shards and results must be picklable. An
    error of our family raised in a worker is raised here with the same sentence.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers cannot do anything", fix="give at least one")
        self.workers = workers

    def map(self, fn: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Results of `fn` on each shard, in order; at most twice as many shards as workers are in flight."""
        import multiprocessing
        from concurrent.futures import Future, ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        _check_importable(fn)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker)
        flying: deque[Future[R]] = deque()
        try:
            for shard in shards:
                flying.append(pool.submit(_call, fn, shard))
                if len(flying) >= 2 * self.workers:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died without an error, most often for lack of memory",
                where=f"executor processes:{self.workers}",
                fix="use fewer workers or smaller shards; scripts need `if __name__ == '__main__':`",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def map_reduce(
        self,
        fn: Callable[[S], R],
        shards: Iterable[S],
        combine: Combine[R],
        *,
        store: Store | None = None,
    ) -> R:
        """Fold the results from the left; the store is asked here, never in a worker."""
        return _fold(self, fn, list(shards), combine, store)


def get_executor(name: str | Executor = "local") -> Executor:
    """The executor called `local`, `processes`, `processes:4`, or one that a plug-in registered.

    Raises InputError for an unknown name, listing the known ones.
    """
    if not isinstance(name, str):
        return name
    kind, _, option = name.partition(":")
    if option and not option.isdigit():
        raise InputError(f"{name!r} is not an executor", fix="put a number of workers after the colon")
    known = _known()
    if kind not in known:
        raise InputError(f"there is no executor {kind!r}", fix="use one of: " + ", ".join(sorted(known)))
    made: Executor = known[kind]()(int(option)) if option else known[kind]()()
    return made


def _known() -> dict[str, Callable[[], Callable[..., Executor]]]:
    from importlib.metadata import entry_points

    plugins = {point.name: point.load for point in entry_points(group="glasshouse.executors")}
    return {**plugins, "local": lambda: Local, "processes": lambda: Processes}


def _fold(
    executor: Executor,
    fn: Callable[[S], R],
    shards: list[S],
    combine: Combine[R],
    store: Store | None,
) -> R:
    if not shards:
        raise InputError("there are no shards to reduce", fix="give at least one")
    done = _stored(store, len(shards))
    fresh = executor.map(fn, [shard for index, shard in enumerate(shards) if index not in done])
    total: Any = None
    for index in range(len(shards)):
        if index in done:
            result = done.pop(index)
        else:
            result = next(fresh)
            if store is not None:
                result = store(f"shard/{index}", functools.partial(_same, result))
        total = result if index == 0 else combine(total, result)
    return total


def _same(value: R) -> R:
    return value


class _Absent(Exception):
    """Raised instead of building, to learn what a store already holds."""


def _stored(store: Store | None, count: int) -> dict[int, Any]:
    def absent() -> Any:
        raise _Absent

    found: dict[int, Any] = {}
    for index in range(count if store is not None else 0):
        assert store is not None
        try:
            found[index] = store(f"shard/{index}", absent)
        except _Absent:
            continue
    return found


def _check_importable(fn: Callable[..., Any]) -> None:
    name = getattr(fn, "__qualname__", "")
    if "<lambda>" in name or "<locals>" in name:
        raise InputError(
            f"{name} cannot be sent to another process", fix="define it at the top of a module, or use local"
        )


def _start_worker() -> None:
    # Before torch is imported, so that its thread pools start with one thread.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", GLASSHOUSE_PROGRESS="off")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _call(fn: Callable[[S], R], shard: S) -> R:
    try:
        return fn(shard)
    except GlasshouseError as error:
        raise error.with_traceback(None) from None
