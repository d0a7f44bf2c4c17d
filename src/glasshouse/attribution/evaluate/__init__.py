"""How good are scores? Retraining (LDS), planted causes, and sanity controls."""

from glasshouse.attribution.evaluate.bank import RetrainBank
from glasshouse.attribution.evaluate.lds import lds, split_half_ceiling
from glasshouse.attribution.evaluate.recall import bm25_recall, recall_at, recall_of
from glasshouse.attribution.evaluate.sanity import randomised, randomised_agreement, top_overlap

__all__ = [
    "RetrainBank",
    "bm25_recall",
    "lds",
    "randomised",
    "randomised_agreement",
    "recall_at",
    "recall_of",
    "split_half_ceiling",
    "top_overlap",
]
