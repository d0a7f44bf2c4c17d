"""What a scenario's report holds, before it is drawn: charts, assumptions, theory beside measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from glasshouse.evidence.report.curves import Chart, Line, Mark, Points
from glasshouse.statistics.estimate import Estimate

__all__ = ["Certificate", "Chart", "Compared", "Line", "Mark", "Page", "Points", "Source"]

Source = Literal["theorem", "simulated", "fitted to your data"]
"""Where a number comes from; every report says it."""


@dataclass(frozen=True)
class Compared:
    """One line of the table 'theory | measured | interval | agree?'; `theory` None: nothing to compare."""

    quantity: str
    theory: float | None
    measured: Estimate
    agree: bool | None
    source: Source = "simulated"


@dataclass(frozen=True)
class Certificate:
    """How far from an equilibrium a result is: the largest gain of any searched unilateral deviation."""

    what: str
    eps_nash: float
    tolerance: float
    search: str

    @property
    def met(self) -> bool:
        """Whether the gain stays within the tolerance (NaN does not)."""
        return self.eps_nash <= self.tolerance


@dataclass(frozen=True)
class Page:
    """A scenario's report. The first chart is the phase diagram. It never recommends a policy."""

    title: str
    """The question, as a reader would ask it."""
    lead: str
    """Two or three sentences: what was found, with intervals."""
    assumptions: tuple[str, ...]
    charts: tuple[Chart, ...]
    compared: tuple[Compared, ...]
    control: str
    """What the same market does with the mechanism switched off, in sentences with numbers."""
    control_charts: tuple[Chart, ...]
    certificates: tuple[Certificate, ...]
    notes: tuple[str, ...] = ()
    """Which numbers are theorem-backed, simulated or fitted, and what is not covered."""
    provenance: dict[str, Any] = field(default_factory=dict)
