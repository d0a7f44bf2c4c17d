"""Studies: one paper each, as a runnable experiment whose claims go to the ledger."""

from __future__ import annotations

from glasshouse.evidence.claims import Claim, ClaimSpec, Threshold
from glasshouse.studies._study import Figure, Study, Table, Yield, available, find, study

__all__ = [
    "Claim",
    "ClaimSpec",
    "Figure",
    "Study",
    "Table",
    "Threshold",
    "Yield",
    "available",
    "find",
    "study",
]
