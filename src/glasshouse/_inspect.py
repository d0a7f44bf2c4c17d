"""What `inspect` finds under the name `glasshouse`: our model provider, sandbox, tasks, solvers and scorers.

Inspect loads this module through the entry point `inspect_ai` when a name such as
`glasshouse/sycophancy_answer` is asked for. It stands apart from `_registry`, which must stay light:
importing this module imports Inspect, and no torch: models, tasks and sandboxes bring theirs when used.
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="glasshouse")
def glasshouse() -> type[ModelAPI]:
    """The provider of local models: `glasshouse/./folder`, `glasshouse/organism://resident`."""
    from glasshouse.audit.target import let_subjects_open_organisms
    from glasshouse.evaluation.provider import GlasshouseAPI

    let_subjects_open_organisms()
    return GlasshouseAPI


@task
def questions(suite: str = "organism://resident", n: int = 200, seed: int = 0, max_tokens: int = 32) -> Task:
    """Questions with known answers: `suite` is a suite file, an organism's folder or `organism://NAME`."""
    from glasshouse.audit.target import what_is_asked
    from glasshouse.evaluation.questions import questions_task

    return questions_task(what_is_asked(suite, seed=seed), n=n, max_tokens=max_tokens)
