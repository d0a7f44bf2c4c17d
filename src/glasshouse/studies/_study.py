"""A study: one paper as a runnable experiment.

    @study(
        "ekfac", wing="attribution", paper="Grosse et al. 2023",
        claims=[ClaimSpec("ekfac/3a", "...", Threshold(">=", 0.7), null=0.006)],
        configs={"laptop": Config(), "paper": Config(layers=12)},
    )
    def ekfac(config: Config, lab: Lab) -> Iterator[Yield]:
        model = lab.grow("canary", seed=0)
        recall = lab.step("recall", lambda: measure(model))
        yield lab.claim("ekfac/3a", wilson(recall["found"], recall["planted"]))
        yield Table("recall", [recall])

Thresholds, nulls and controls stand in the decorator, before any run; a claim that departs from its
declaration is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import glasshouse._registry as _registry
from glasshouse.evidence.claims import Claim, ClaimSpec
from glasshouse.runtime.errors import GlasshouseError, InputError

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

CONFIGS = ("laptop", "paper")


@dataclass(frozen=True)
class Figure:
    """A figure of a study: `figure` is a plotly figure or its JSON as a dict."""

    name: str
    figure: Any

    def to_json(self) -> dict[str, Any]:
        """Plotly JSON, arrays as lists."""
        found = json.loads(self.figure.to_json()) if hasattr(self.figure, "to_json") else self.figure
        if not isinstance(found, dict):
            raise InputError(f"figure {self.name!r} is neither a plotly figure nor a dict")
        return found


@dataclass(frozen=True)
class Table:
    """A table of a study: `rows` is a data frame, a list of dicts, or a dict of columns."""

    name: str
    rows: Any

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dict per row; cells of numpy become plain numbers."""
        if hasattr(self.rows, "to_dict") and not isinstance(self.rows, Mapping):
            found = self.rows.to_dict("records")
        elif isinstance(self.rows, Mapping):
            found = [
                dict(zip(self.rows, cells, strict=True)) for cells in zip(*self.rows.values(), strict=True)
            ]
        else:
            found = [dict(row) for row in self.rows]
        return [{str(column): _plain(cell) for column, cell in row.items()} for row in found]


Yield = Claim | Figure | Table


@dataclass(frozen=True)
class Study:
    """A registered study; `function(config, lab)` yields claims, figures and tables."""

    slug: str
    wing: str
    paper: str
    claims: tuple[ClaimSpec, ...]
    configs: Mapping[str, Any]
    function: Callable[[Any, Lab], Iterator[Yield]]

    @property
    def title(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def code(self) -> str:
        """The code version of the study and of everything in glasshouse that it imports."""
        from glasshouse.runtime.codeversion import code_version

        return code_version(self.function)

    @property
    def files(self) -> list[Path]:
        """The source files in which its claims are declared: its module, or all modules of its package."""
        path = Path(self.function.__code__.co_filename)
        inside_package = path.parent.name == self.slug.replace("-", "_")
        return sorted(path.parent.glob("*.py")) if inside_package else [path]

    def config(self, name: str) -> Any:
        """The configuration called `name`; raises InputError with the choices."""
        if name not in self.configs:
            choices = ", ".join(self.configs)
            raise InputError(
                f"study {self.slug!r} has no configuration {name!r}", fix=f"choose from {choices}"
            )
        return self.configs[name]

    def spec(self, claim: str) -> ClaimSpec:
        """The declaration of a claim; raises InputError for an id that was not declared."""
        for spec in self.claims:
            if spec.id == claim:
                return spec
        raise InputError(
            f"study {self.slug!r} declares no claim {claim!r}", fix="declare it in @study(claims=...)"
        )


def study(
    slug: str, *, wing: str, paper: str, claims: Sequence[ClaimSpec], configs: Mapping[str, Any]
) -> Callable[[Callable[[Any, Lab], Iterator[Yield]]], Study]:
    """Turn a generator `run(config, lab)` into a `Study`.

    `configs` holds a frozen dataclass instance under "laptop" (minutes on two cores) and under "paper".
    Raises InputError for a missing or mutable configuration, a claim of another study, or a repeated id.
    """
    ids = [spec.id for spec in claims]
    if sorted(set(ids)) != sorted(ids):
        raise InputError(f"study {slug!r} declares a claim twice", fix="give each claim one id")
    strangers = [claim for claim in ids if not claim.startswith(f"{slug}/")]
    if strangers:
        raise InputError(f"study {slug!r} declares {strangers[0]!r}", fix=f"start its ids with '{slug}/'")
    for name in (*CONFIGS, *configs):
        _check_config(slug, name, configs.get(name))

    def wrap(function: Callable[[Any, Lab], Iterator[Yield]]) -> Study:
        return Study(slug, wing, paper, tuple(claims), dict(configs), function)

    return wrap


def available() -> list[str]:
    """Slugs of all studies: ours, found by walking the folders, then those plugged in by third parties."""
    ours = _walk()
    planned = _registry.BUILT_IN["studies"]
    return [*ours, *(n for n in _registry.names("studies") if n not in ours and n not in planned)]


def find(slug: str) -> Study:
    """The study called `slug`; raises InputError with the choices for an unknown one."""
    ours = _walk()
    if slug in ours:
        return _study_in(importlib.import_module(ours[slug]), slug)
    if slug not in available():
        raise InputError(
            f"no study is called {slug!r}", fix=f"choose from {', '.join(available()) or 'none'}"
        )
    return _study_in(_registry.load("studies", slug), slug)


def _walk() -> dict[str, str]:
    """Slug -> the module that holds it, without importing any: `<wing>/<slug>.py`, or in a package."""
    found: dict[str, str] = {}
    package = importlib.import_module("glasshouse.studies")
    for root in map(Path, package.__path__):
        for path in sorted([*root.glob("*/*.py"), *root.glob("*/*/*.py")]):
            parts = path.relative_to(root).with_suffix("").parts
            if "@study(" in path.read_text(encoding="utf-8"):
                inside = tuple(part for part in parts if part != "__init__")
                found[parts[1].replace("_", "-")] = ".".join(["glasshouse.studies", *inside])
    return found


def _study_in(thing: Any, slug: str) -> Study:
    if isinstance(thing, Study):
        return thing
    for value in vars(thing).values():
        if isinstance(value, Study) and value.slug == slug:
            return value
    raise GlasshouseError(
        f"{getattr(thing, '__name__', thing)} holds no study {slug!r}", fix="use @study there"
    )


def _check_config(slug: str, name: str, config: Any) -> None:
    if config is None:
        raise InputError(f"study {slug!r} has no configuration {name!r}", fix="give 'laptop' and 'paper'")
    frozen = dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen  # type: ignore[union-attr]
    if not frozen or isinstance(config, type):
        raise InputError(f"configuration {name!r} of study {slug!r} is not a frozen dataclass instance")


def _plain(cell: Any) -> Any:
    return cell.item() if hasattr(cell, "item") else cell
