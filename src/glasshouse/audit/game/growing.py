"""Who plays: N flawed and N clean organisms, each grown once from its own seed into the cache.

Organism i is the same whatever N is. A growth whose flaw did not install is remembered as failed, so that
it is counted and neither scored nor tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError, OrganismError
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.progress import Progress

if TYPE_CHECKING:
    from glasshouse.training.organisms import Organism

Parity = Literal["odd", "even"]
SERIES = 10_000
"""Organisms of game seed S have seeds from S * SERIES on; even, so that it keeps odd seeds odd."""
FAILED, GROWTH = "failed.json", "growth.json"


@dataclass(frozen=True)
class Entrant:
    """One organism of a game, before anything is grown. `level` is a step range of the generator's ladder."""

    seed: int
    clean: bool
    level: str = "mixed"

    @property
    def name(self) -> str:
        """How tables and folders call it."""
        return f"{'clean' if self.clean else 'flawed'}-{self.seed:05d}"


Generator = Callable[[Entrant], "Organism"]
"""The recipe of an entrant; importable, so that other processes find it."""


def drawn(entrant: Entrant) -> Organism:
    """The house's generator: worlds, grammars and flaws drawn from the entrant's seed."""
    from glasshouse.organisms.game import GameOrganism, draw

    return GameOrganism(draw(entrant.seed, clean=entrant.clean, level=entrant.level))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Growth:
    """A grown organism's folder, or why there is none; `seconds` of the processor, all attempts together."""

    entrant: Entrant
    folder: Path | None
    seconds: float
    failed: str = ""


def entrants(
    organisms: int, *, seed: int = 0, level: str = "mixed", parity: Parity | None = None
) -> list[Entrant]:
    """`organisms` flawed ones, then as many clean ones on the same seeds.

    Seeds are S * 10,000 + 0, 1, 2, ... (S is `seed`), or the odd or even ones of these.

    >>> [e.seed for e in entrants(2, parity="odd")]
    [1, 3, 1, 3]
    """
    if organisms < 1:
        raise InputError(f"{organisms} organisms cannot play", fix="give at least 1")
    if seed < 0 or organisms * 2 > SERIES:
        raise InputError(
            f"seed {seed} with {organisms} organisms leaves the series",
            fix=f"give a seed of at least 0 and at most {SERIES // 2} organisms",
        )
    if parity not in (None, "odd", "even"):
        raise InputError(f"no parity is called {parity!r}", fix="choose odd, even or None")
    step, first = (1, 0) if parity is None else (2, int(parity == "odd"))
    seeds = [seed * SERIES + first + step * i for i in range(organisms)]
    return [Entrant(s, clean, level) for clean in (False, True) for s in seeds]


def grow_all(
    who: Sequence[Entrant],
    *,
    executor: str | Executor = "local",
    generator: Generator = drawn,
    progress: Progress | None = None,
) -> list[Growth]:
    """Every entrant grown, in order; those in the cache are not grown again."""
    jobs = [(entrant, generator) for entrant in who]
    return gathered(get_executor(executor).map(grow_one, jobs), "growing organisms", len(jobs), progress)


def grow_one(job: tuple[Entrant, Generator]) -> Growth:
    """One entrant's growth, from the cache or new."""
    entrant, generator = job
    organism = generator(entrant)
    folder = Cache().fetch(
        "game-organism",
        recipe_of(organism),
        lambda folder: _grow(organism, folder),
        code=loaded_code(type(organism)),
    )
    return read_growth(entrant, folder)


def find_growth(entrant: Entrant, generator: Generator = drawn) -> Growth | None:
    """The growth if it is in the cache."""
    organism = generator(entrant)
    folder = Cache().find("game-organism", recipe_of(organism), code=loaded_code(type(organism)))
    return None if folder is None else read_growth(entrant, folder)


@cache
def loaded_code(thing: Any) -> str:
    """`code_version`, worked out once a process: what is loaded does not change while it runs."""
    return code_version(thing)


def recipe_of(organism: Any) -> dict[str, Any]:
    """What decides an organism besides the code."""
    return {"organism": organism.slug, "recipe": organism.recipe_hash, "seed": 0}


def read_growth(entrant: Entrant, folder: Path) -> Growth:
    """What `grow_one` left in the cache."""
    told = files.read_json(folder / GROWTH)
    if (folder / FAILED).is_file():
        return Growth(entrant, None, told["seconds"], files.read_json(folder / FAILED)["why"])
    return Growth(entrant, folder, told["seconds"])


def _grow(organism: Organism, folder: Path) -> None:
    started = time.process_time()
    try:
        with Progress("off") as progress:
            organism.grow(0, folder, progress)
    except OrganismError as error:
        files.write_json(folder / FAILED, {"why": str(error)})
    files.write_json(folder / GROWTH, {"seconds": round(time.process_time() - started, 1)})


def gathered(results: Iterable[Any], label: str, total: int, progress: Progress | None = None) -> list[Any]:
    """The results of an executor with a bar that counts them."""
    found = []
    with progress or Progress() as shown, shown.task(label, total) as task:
        for one in results:
            found.append(one)
            task.advance()
    return found
