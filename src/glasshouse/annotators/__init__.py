"""Propose, rate, compare and assign: every judgement about texts, with budgets, caching and agreement.

Names are loaded when first used: importing this package loads neither numpy nor inspect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

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
    from glasshouse.annotators.agreement import (
        cohen_kappa,
        fleiss_kappa,
        gwet_ac1,
        krippendorff_alpha,
        percent_agreement,
    )
    from glasshouse.annotators.calibration import Calibration, Labelled, LabelledPairs, calibrate
    from glasshouse.annotators.embedding import EmbeddingAnnotator, Encoder
    from glasshouse.annotators.human import HumanAnnotator
    from glasshouse.annotators.judging import judge
    from glasshouse.annotators.lexical import LexicalAnnotator
    from glasshouse.annotators.lm import LMAnnotator
    from glasshouse.annotators.oracle import OracleAnnotator, RuleAnnotator
    from glasshouse.annotators.panel import PanelAnnotator
    from glasshouse.annotators.prevalence import corrected_prevalence
    from glasshouse.annotators.probe import ProbeAnnotator
    from glasshouse.annotators.style import STYLE_AXES, StyleAnnotator

_HOMES = {
    "_errors": (
        "AnnotatorUnavailable",
        "BudgetExceeded",
        "LowCoverageError",
        "LowCoverageWarning",
        "PositionBiasWarning",
    ),
    "_results": (
        "ComparisonTensor",
        "LabelVector",
        "Mark",
        "Outcome",
        "RatingMatrix",
        "Verdict",
    ),
    "_spending": (
        "Budget",
        "CostPlan",
        "Usage",
    ),
    "_types": (
        "Annotator",
        "AssignRequest",
        "Axis",
        "CompareRequest",
        "Direction",
        "Hypothesis",
        "Pair",
        "Predicate",
        "ProposeRequest",
        "RateRequest",
        "TermSet",
    ),
    "agreement": (
        "cohen_kappa",
        "fleiss_kappa",
        "gwet_ac1",
        "krippendorff_alpha",
        "percent_agreement",
    ),
    "calibration": (
        "Calibration",
        "Labelled",
        "LabelledPairs",
        "calibrate",
    ),
    "embedding": (
        "EmbeddingAnnotator",
        "Encoder",
    ),
    "human": ("HumanAnnotator",),
    "judging": ("judge",),
    "lexical": ("LexicalAnnotator",),
    "lm": ("LMAnnotator",),
    "oracle": (
        "OracleAnnotator",
        "RuleAnnotator",
    ),
    "panel": ("PanelAnnotator",),
    "prevalence": ("corrected_prevalence",),
    "probe": ("ProbeAnnotator",),
    "style": (
        "STYLE_AXES",
        "StyleAnnotator",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Annotator",
    "AnnotatorUnavailable",
    "AssignRequest",
    "Axis",
    "Budget",
    "BudgetExceeded",
    "Calibration",
    "CompareRequest",
    "ComparisonTensor",
    "CostPlan",
    "Direction",
    "EmbeddingAnnotator",
    "Encoder",
    "HumanAnnotator",
    "Hypothesis",
    "LMAnnotator",
    "LabelVector",
    "Labelled",
    "LabelledPairs",
    "LexicalAnnotator",
    "LowCoverageError",
    "LowCoverageWarning",
    "Mark",
    "OracleAnnotator",
    "Outcome",
    "Pair",
    "PanelAnnotator",
    "PositionBiasWarning",
    "Predicate",
    "ProbeAnnotator",
    "ProposeRequest",
    "RateRequest",
    "RatingMatrix",
    "RuleAnnotator",
    "STYLE_AXES",
    "StyleAnnotator",
    "TermSet",
    "Usage",
    "Verdict",
    "calibrate",
    "cohen_kappa",
    "corrected_prevalence",
    "fleiss_kappa",
    "gwet_ac1",
    "judge",
    "krippendorff_alpha",
    "percent_agreement",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
