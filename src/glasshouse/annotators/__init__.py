"""Propose, rate, compare and assign: every judgement about texts, with budgets, caching and agreement.

Names are loaded when first used: importing this package loads neither numpy nor inspect.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glasshouse.annotators._errors import (
        AnnotatorUnavailable,
        BudgetExceeded,
        LowCoverageError,
        LowCoverageWarning,
        PositionBiasWarning,
    )
    from glasshouse.annotators._results import (
        ComparisonTensor,
        LabelVector,
        Mark,
        Outcome,
        RatingMatrix,
        Verdict,
    )
    from glasshouse.annotators._spending import Budget, CostPlan, Usage
    from glasshouse.annotators._types import (
        Annotator,
        AssignRequest,
        Axis,
        CompareRequest,
        Direction,
        Hypothesis,
        Pair,
        Predicate,
        ProposeRequest,
        RateRequest,
        TermSet,
    )

_HOMES = {
    "_errors": (
        "AnnotatorUnavailable", "BudgetExceeded", "LowCoverageError", "LowCoverageWarning",
        "PositionBiasWarning",
    ),
    "_results": ("ComparisonTensor", "LabelVector", "Mark", "Outcome", "RatingMatrix", "Verdict"),
    "_spending": ("Budget", "CostPlan", "Usage"),
    "_types": (
        "Annotator", "AssignRequest", "Axis", "CompareRequest", "Direction", "Hypothesis", "Pair",
        "Predicate", "ProposeRequest", "RateRequest", "TermSet",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Annotator",
    "AnnotatorUnavailable",
    "AssignRequest",
    "Axis",
    "Budget",
    "BudgetExceeded",
    "CompareRequest",
    "ComparisonTensor",
    "CostPlan",
    "Direction",
    "Hypothesis",
    "LabelVector",
    "LowCoverageError",
    "LowCoverageWarning",
    "Mark",
    "Outcome",
    "Pair",
    "PositionBiasWarning",
    "Predicate",
    "ProposeRequest",
    "RateRequest",
    "RatingMatrix",
    "TermSet",
    "Usage",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
