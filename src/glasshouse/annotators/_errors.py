"""What can go wrong when texts are judged."""

from __future__ import annotations

from typing import Any

from glasshouse.runtime.errors import AccessError, GlasshouseError


class AnnotatorUnavailable(AccessError):
    """The annotator that was named cannot be used here; nothing falls back to another one."""


class BudgetExceeded(GlasshouseError):
    """The next call would exceed the budget. `partial` holds the result so far (NaN where nothing was asked).

    What was paid for is on disk: the same request with more budget repeats no call.
    """

    partial: Any = None


class LowCoverageError(GlasshouseError):
    """More than half of a column could not be judged. `partial` holds the result."""

    partial: Any = None


class LowCoverageWarning(UserWarning):
    """More than a fifth of a column could not be judged."""


class PositionBiasWarning(UserWarning):
    """A judge prefers a place over a text in more than a fifth of the pairs."""
