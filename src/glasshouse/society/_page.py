"""What a scenario's report holds, before it is drawn: charts, assumptions, theory beside measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from glasshouse.statistics.estimate import Estimate

Source = Literal["theorem", "simulated", "fitted to your data"]
"""Where a number comes from; every report says it."""


@dataclass(frozen=True)
class Line:
    """A curve: a closed form ('theory'), the mechanism switched off ('control'), or joined measurements."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["theory", "control", "measured"] = "theory"


@dataclass(frozen=True)
class Points:
    """Measured points with intervals; hollow where the certificate exceeds its tolerance."""

    name: str
    x: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    solid: tuple[bool, ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line: the boundary of a regime."""

    x: float
    name: str


@dataclass(frozen=True)
class Chart:
    """Theory and simulation on the same axes."""

    title: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...] = ()
    points: tuple[Points, ...] = ()
    marks: tuple[Mark, ...] = ()
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    zero_y: bool = True
    """Whether the y axis of a linear chart starts at 0."""


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
