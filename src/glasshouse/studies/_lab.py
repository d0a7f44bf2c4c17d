"""The lab: what a study may use besides its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import glasshouse._registry as _registry
from glasshouse.evidence.claims import Claim
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.runs import Run
from glasshouse.statistics.estimate import Estimate
from glasshouse.studies._study import Study


class Lab:
    """Seeds, device, progress, journal and cache of one run of a study.

    `step` belongs to this run and survives a kill; `cached`, `cached_folder` and `grow` are shared by all
    runs, keyed by their arguments and by the code that makes them.
    """

    def __init__(
        self, study: Study, run: Run, *, seeds: tuple[int, ...], device: str, progress: Progress, cache: Cache
    ) -> None:
        self.seeds, self.device, self.progress, self.cache = seeds, device, progress, cache
        self._study, self._run = study, run

    def step(self, name: str, build: Callable[[], Any]) -> Any:
        """`build()`, journalled: after a kill the stored value comes back and `build` is not called again.

        The value is plain JSON (tuples come back as lists); arrays go to `save_array` of `self.run`.
        """
        return self._run.step(f"step/{name}", build)

    @property
    def run(self) -> Run:
        """The run itself: `save_array`, `load_array`, `folder`, `note`."""
        return self._run

    def cached(self, name: str, function: Callable[..., Any], **args: Any) -> Any:
        """`function(**args)`, a plain JSON value, computed once for all runs with these arguments."""

        def build(folder: Path) -> None:
            files.write_json(folder / "value.json", function(**args))

        return files.read_json(self._fetch(name, function, args, build) / "value.json")

    def cached_folder(self, name: str, function: Callable[..., None], **args: Any) -> Path:
        """The folder that `function(folder, **args)` filled once for all runs (models, arrays); read-only."""

        def build(folder: Path) -> None:
            function(folder, **args)

        return self._fetch(name, function, args, build)

    def grow(self, organism: str, seed: int) -> Path:
        """The folder of the organism called `organism`, grown with `seed` (once; then from the cache).

        Raises InputError for an unknown organism, OrganismError when its property did not install.
        """
        grown = _registry.load("organisms", organism)
        args = {"organism": organism, "version": str(grown.version), "seed": seed}
        return self.cache.fetch(
            "organism",
            args,
            lambda folder: grown.grow(seed, folder, self.progress),
            code=code_version(type(grown)),
        )

    def claim(self, claim: str, estimate: Estimate, control: Estimate | None = None, note: str = "") -> Claim:
        """The declared claim with what was measured; raises InputError for an id that was not declared."""
        return Claim(self._study.spec(claim), estimate, control, note)

    def _fetch(
        self, name: str, function: Callable[..., Any], args: dict[str, Any], build: Callable[[Path], None]
    ) -> Path:
        if getattr(function, "__closure__", None):
            free = ", ".join(function.__code__.co_freevars)
            raise InputError(
                f"the function behind cached {name!r} captures {free}",
                fix="pass them as arguments, so that the cache knows them",
            )
        key = {"study": self._study.slug, "name": name, "args": args}
        return self.cache.fetch("study", key, build, code=code_version(function))
