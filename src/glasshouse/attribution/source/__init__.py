"""SOURCE: credit for training that stopped early or came in stages (Bae, Lin, Lorraine and Grosse 2024).

Training Data Attribution via Approximate Unrolled Differentiation, arXiv:2405.12186. A run is cut into
segments; inside one, curvature and row gradients are taken as constant, so that differentiating through its
steps becomes two functions of EK-FAC eigenvalues. `SOURCE` scores, `SourceCheckpoints` makes a `Trainer` keep
what it needs, `unrolled_influence` is the exact derivative for toys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from glasshouse.attribution.checkpoints import Checkpoint
    from glasshouse.attribution.source.callback import SourceCheckpoints
    from glasshouse.attribution.source.method import SOURCE, StabilityWarning
    from glasshouse.attribution.source.recorded import RecordedRun, joined, recorded_run
    from glasshouse.attribution.source.unrolled import unrolled_influence

_HOME_OF = {
    "Checkpoint": "method",
    "RecordedRun": "recorded",
    "SOURCE": "method",
    "SourceCheckpoints": "callback",
    "StabilityWarning": "method",
    "joined": "recorded",
    "recorded_run": "recorded",
    "unrolled_influence": "unrolled",
}

__all__ = [
    "SOURCE",
    "Checkpoint",
    "RecordedRun",
    "SourceCheckpoints",
    "StabilityWarning",
    "joined",
    "recorded_run",
    "unrolled_influence",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
