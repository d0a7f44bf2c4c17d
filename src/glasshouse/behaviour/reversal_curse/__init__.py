"""The reversal curse: does a model that was told "A is B" know that B is A?

Nothing heavy is imported here; each name is loaded when it is first used.
"""

from __future__ import annotations

from glasshouse.runtime.lazy import lazy_names

_HOME = {
    "Cell": "cells",
    "DirectionTable": "directions",
    "ReversalReport": "analysis",
    "analyse": "analysis",
    "analyse_wild": "wild_task",
    "ask": "asking",
    "audit_corpus": "directions",
    "finetune": "finetuning",
    "finetune_instructions": "finetuning",
    "parent_child": "wild",
    "read_pairs": "wild",
    "retrieve": "retriever",
    "reversal_curse": "tasks",
    "reversal_instructions": "tasks",
    "wild": "wild_task",
}

__all__ = [
    "Cell",
    "DirectionTable",
    "ReversalReport",
    "analyse",
    "analyse_wild",
    "ask",
    "audit_corpus",
    "finetune",
    "finetune_instructions",
    "parent_child",
    "read_pairs",
    "retrieve",
    "reversal_curse",
    "reversal_instructions",
    "wild",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
