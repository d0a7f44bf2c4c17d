"""The executor `ray`: shards on the workers of a Ray cluster, or of one started on this machine.

Each worker is an actor that keeps the function of the current map, with the model in it, between shards; the
function travels once a map, not once a shard. Ray restarts an actor that dies and gives it its shard again.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from glasshouse.runtime.errors import GlasshouseError, InputError, MissingDependency, RunError
from glasshouse.runtime.executors import Combine, Store, _fold, _start_worker
from glasshouse.runtime.travel import packed, unpacked

S = TypeVar("S")
R = TypeVar("R")

LIVES = 3
"""How often a worker is started again, and a shard tried again, before the map gives up."""


class RayExecutor:
    """Run the shards on `workers` Ray actors, each with one torch thread; `ray:4` asks for four.

    Where RAY_ADDRESS names a cluster (or the program has called `ray.init` itself) it is used, and each
    worker takes one CPU of it; else a cluster of this machine alone is started, without dashboard or usage
    reports, and ends with the program. GPUs are shared out evenly. Workers need glasshouse installed. A
    worker that is killed costs the shard it was in, which is computed again.

    Shards and results must be picklable; results wait in Ray's object store until they are asked for, at
    most twice as many as there are workers. Raises MissingDependency without Ray, InputError for a cluster
    that is too small, RunError when it cannot be reached or a shard kills its workers again and again.

    >>> RayExecutor(2).workers
    2
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers cannot do anything", fix="give at least one")
        self.workers = workers
        self._crew: list[Any] = []
        self._node = ""

    def map(self, fn: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Results of `fn` on each shard, in order; at most twice as many shards as workers are in flight."""
        ray = _import_ray()
        self._gather(ray)
        work = ray.put(fn)
        flying: deque[Any] = deque()
        busy: dict[Any, list[Any]] = {worker: [] for worker in self._crew}
        finished = False
        try:
            for shard in shards:
                flying.append(self._send(ray, busy, work, shard))
                if len(flying) >= 2 * self.workers:
                    yield self._result(ray, flying.popleft())
            while flying:
                yield self._result(ray, flying.popleft())
            finished = True
        finally:
            if not finished:  # shards under way would run to their end for nobody
                self.close()

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

    def close(self) -> None:
        """End the workers; the next map starts new ones."""
        crew, self._crew = self._crew, []
        if crew and (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
            for worker in crew:
                ray.kill(worker)

    def _gather(self, ray: Any) -> None:
        alone = _connect(ray, self.workers)
        node = ray.get_runtime_context().get_node_id()
        if self._crew and self._node == node:
            return
        cpus, gpus = _shares(ray, self.workers, alone)
        actor = ray.remote(_Worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
            max_restarts=LIVES,
            max_task_retries=LIVES,
        )
        self._crew, self._node = [actor.remote(sys.path) for _ in range(self.workers)], node

    def _send(self, ray: Any, busy: dict[Any, list[Any]], work: Any, shard: Any) -> Any:
        """Give the shard to the worker with the fewest that are not done."""
        for worker, given in busy.items():
            busy[worker] = ray.wait(given, num_returns=len(given), timeout=0)[1] if given else []
        worker = min(busy, key=lambda w: len(busy[w]))
        # In a list, so that the worker fetches the function once and not with each call.
        reference = worker.run.remote([work], shard)
        busy[worker].append(reference)
        return reference

    def _result(self, ray: Any, reference: Any) -> Any:
        try:
            return unpacked(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, GlasshouseError):
                raise cause.with_traceback(None) from None
            raise cause from error
        except ray.exceptions.RayError as error:
            raise RunError(
                f"a worker died {LIVES + 1} times on its shard, or its node is gone ({type(error).__name__})",
                where=f"executor ray:{self.workers}",
                fix="use fewer workers, smaller shards or machines with more memory",
            ) from error


class _Worker:
    """One process of the cluster. Holds the function of the map it works for."""

    def __init__(self, path: list[str]) -> None:
        _start_worker()  # before the function, and with it torch, arrives
        sys.path += [folder for folder in path if folder not in sys.path]
        self._held: tuple[Any, Callable[[Any], Any]] | None = None

    def run(self, work: list[Any], shard: Any) -> Any:
        import ray

        [reference] = work
        if self._held is None or self._held[0] != reference:
            self._held = None  # two models need not fit at once
            self._held = (reference, ray.get(reference))
        return packed(self._held[1](shard))


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at import; no reports to anybody
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(
            "the executor ray needs Ray, which is not installed",
            fix="pip install 'glasshouse[ray]', or use processes:N",
        ) from error
    return ray


def _connect(ray: Any, workers: int) -> bool:
    """Join the cluster of RAY_ADDRESS, or start one here; true when it is ours alone."""
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        here = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        more = here if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the Ray cluster cannot be reached ({error})",
                where=f"RAY_ADDRESS={address}",
                fix="check that `ray start --head` runs there, or unset RAY_ADDRESS to work on this machine",
            ) from error
        if address == "local":
            _started.add(ray.get_runtime_context().get_node_id())
    return ray.get_runtime_context().get_node_id() in _started


_started: set[str] = set()
"""Nodes of the clusters that this process started."""


def _shares(ray: Any, workers: int, alone: bool) -> tuple[int, float]:
    """CPUs and GPUs that each worker takes: on our own cluster no CPUs, since nobody else counts them."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
    if not alone and cpus < workers:
        raise InputError(
            f"the Ray cluster has {cpus:g} CPUs for {workers} workers",
            where=f"executor ray:{workers}",
            fix="ask for fewer workers, or add machines",
        )
    return int(not alone), 1 / -(-workers // gpus) if gpus else 0
