"""How good are scores? Retraining (LDS, leave-some-out, brittleness), known causes, controls, and costs."""

from glasshouse.attribution.evaluate.bank import RetrainBank
from glasshouse.attribution.evaluate.brittleness import Brittleness, brittleness
from glasshouse.attribution.evaluate.costs import Cost, CostedLDS, LDSTable, auto_damping, lds_table, measured
from glasshouse.attribution.evaluate.lds import lds, lds_by_query, split_half_ceiling
from glasshouse.attribution.evaluate.leave_some_out import LeaveSomeOut, leave_some_out
from glasshouse.attribution.evaluate.mislabel import MislabelCurves, el2n, losses, mislabel
from glasshouse.attribution.evaluate.order import shuffled_rows, token_order
from glasshouse.attribution.evaluate.recall import bm25_recall, recall_at, recall_of
from glasshouse.attribution.evaluate.retraining import Retrainings
from glasshouse.attribution.evaluate.sanity import randomised, randomised_agreement, top_overlap

__all__ = [
    "Brittleness",
    "Cost",
    "CostedLDS",
    "LDSTable",
    "LeaveSomeOut",
    "MislabelCurves",
    "RetrainBank",
    "Retrainings",
    "auto_damping",
    "bm25_recall",
    "brittleness",
    "el2n",
    "lds",
    "lds_by_query",
    "lds_table",
    "leave_some_out",
    "losses",
    "measured",
    "mislabel",
    "randomised",
    "randomised_agreement",
    "recall_at",
    "recall_of",
    "shuffled_rows",
    "split_half_ceiling",
    "token_order",
    "top_overlap",
]
