"""Models of the market and the platform around AI models: entry, competition, recommenders.

Each system lives in its own package; what they share is here: scenarios, sweeps that resume, reports.
`glasshouse society --help` is the command line. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.society._door import Door, open_door
    from glasshouse.society._page import Page
    from glasshouse.society._report import render_page, write_page
    from glasshouse.society._scenario import Scenario
    from glasshouse.society._sweeps import plot, sweep, to_frame

_HOME_OF = {
    "Door": "_door",
    "Page": "_page",
    "Scenario": "_scenario",
    "open_door": "_door",
    "plot": "_sweeps",
    "render_page": "_report",
    "sweep": "_sweeps",
    "to_frame": "_sweeps",
    "write_page": "_report",
}

__all__ = [
    "Door",
    "Page",
    "Scenario",
    "open_door",
    "plot",
    "render_page",
    "sweep",
    "to_frame",
    "write_page",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
