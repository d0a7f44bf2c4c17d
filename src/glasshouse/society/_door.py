"""A door: what a system of this wing gives to `glasshouse society`, so that the command line knows no system.

Each system has `door.py` with a `DOOR`. Functions named here are importable by name (executors run them in
other processes) and return plain JSON values, so that a run can be killed and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from glasshouse.society._page import Page
    from glasshouse.society._scenario import Scenario

Rows = list[dict[str, Any]]
"""Flat rows: numbers, texts, booleans and None (undefined); all rows of a system have the same columns."""


class Solution(Protocol):
    """What `solve` returns: a result object with its certificate."""

    converged: bool
    """False where the certificate exceeds its tolerance: then no equilibrium is claimed."""

    def summary(self) -> list[str]:
        """A few lines for a person: the value, the regime, the certificate and how it was searched."""
        ...

    def to_frame(self) -> pd.DataFrame:
        """All numbers."""
        ...

    def save(self, folder: Path) -> Path:
        """Arrays and JSON; `load` reads them back."""
        ...


@dataclass(frozen=True)
class Door:
    """One system's entrance.

    `solve(scenario, seed)` solves one market. `point(scenario JSON, seed)` is one point of a sweep: its rows.
    `page(scenario, rows, seeds)` turns the rows of the sweeps in `report_grids(scenario)` into the report;
    every row then carries the column `sweep`, the name of its grid.
    """

    name: str
    question: str
    scenario: type[Scenario]
    solve: Callable[[Any, int], Solution]
    point: Callable[[dict[str, Any], int], Rows]
    default_grid: Callable[[Any], Mapping[str, Sequence[Any]]]
    """The sweep that is made when none is asked for: field -> values."""
    report_grids: Callable[[Any], Mapping[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]]
    """Name -> (changes to the scenario, grid); the mechanism-off control is one of them."""
    page: Callable[[Any, Rows, Sequence[int]], Page]
    x_axis: Mapping[str, str] = field(default_factory=dict)
    """Axis titles of fields, for plots of sweeps."""
    value: str = "value"
    """The column that a sweep's plot shows."""


def doors() -> dict[str, str]:
    """Name -> module of each door; nothing is imported."""
    return {
        "entry": "glasshouse.society.market_entry.door",
        "competition": "glasshouse.society.model_competition.door",
        "content": "glasshouse.society.content_incentives.door",
    }


def open_door(name: str) -> Door:
    """The door called `name`; raises InputError with the choices."""
    from importlib import import_module

    from glasshouse.runtime.errors import InputError

    if name not in doors():
        raise InputError(f"there is no system {name!r}", fix="use one of: " + ", ".join(doors()))
    door: Door = import_module(doors()[name]).DOOR
    return door
