"""What `inspect` finds under the name `glasshouse`: our model provider, sandbox, tasks, solvers and scorers.

Inspect loads this module through the entry point `inspect_ai` when a name such as
`glasshouse/sycophancy_answer` is asked for. It stands apart from `_registry`, which must stay light:
importing this module imports Inspect.
"""

from __future__ import annotations

from glasshouse.audit.target import let_subjects_open_organisms
from glasshouse.evaluation.provider import glasshouse

let_subjects_open_organisms()

__all__ = ["glasshouse"]
