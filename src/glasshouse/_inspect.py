"""What `inspect` finds under the name `glasshouse`: our model provider, sandbox, tasks, solvers and scorers.

Inspect loads this module through the entry point `inspect_ai` when a name such as
`glasshouse/sycophancy_answer` is asked for. It stands apart from `_registry`, which must stay light:
importing this module imports Inspect, and no torch: models, tasks and sandboxes bring theirs when used.
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi
from inspect_ai.util import SandboxEnvironment, sandboxenv

from glasshouse.behaviour.sycophancy.tasks import (  # found by being imported
    sycophancy_answer,
    sycophancy_are_you_sure,
    sycophancy_feedback,
    sycophancy_mimicry,
)


@modelapi(name="glasshouse")
def glasshouse() -> type[ModelAPI]:
    """The provider of local models: `glasshouse/./folder`, `glasshouse/organism://resident`."""
    from glasshouse.audit.target import let_subjects_open_organisms
    from glasshouse.evaluation.provider import GlasshouseAPI

    let_subjects_open_organisms()
    return GlasshouseAPI


@sandboxenv(name="glasshouse")
def sandbox() -> type[SandboxEnvironment]:
    """The one sandbox: `sandbox="glasshouse"` in a task."""
    from glasshouse.evaluation.inspect_sandbox import GlasshouseSandbox

    return GlasshouseSandbox


@task
def questions(suite: str = "organism://resident", n: int = 200, seed: int = 0, max_tokens: int = 32) -> Task:
    """Questions with known answers: `suite` is a suite file, an organism's folder or `organism://NAME`."""
    from glasshouse.audit.target import what_is_asked
    from glasshouse.evaluation.questions import questions_task

    return questions_task(what_is_asked(suite, seed=seed), n=n, max_tokens=max_tokens)


@task
def reversal_curse(
    data: str = "organism://reversal",
    mode: str = "logprob",
    arms: str | list[str] | None = None,
    seed: int = 0,
    n_per_group: int | None = None,
    ranks: bool = True,
    max_tokens: int = 48,
) -> Task:
    """Facts told in one order, asked in both: `data` is an organism or the folder of the paper's files."""
    from glasshouse.audit.target import resolve
    from glasshouse.behaviour.reversal_curse import tasks

    named = str(resolve(data).folder) if data.startswith("organism://") else data
    return tasks.reversal_curse(
        named, mode, arms=arms, seed=seed, n_per_group=n_per_group, ranks=ranks, max_tokens=max_tokens
    )


@task
def reversal_instructions(data: str, order: str = "", max_tokens: int = 32) -> Task:
    """Instructions told answer first, asked as questions (experiment 3); `data` is the paper's folder."""
    from glasshouse.behaviour.reversal_curse import tasks

    return tasks.reversal_instructions(data, order=order, max_tokens=max_tokens)


@task
def reversal_wild(
    pairs: str,
    ask_forward: str = "Who is {child}'s {parent_type}?",
    ask_back: str = "Name a child of {parent}.",
    a: str = "child",
    b: str = "parent",
    style: str = "chat",
    samples: int = 10,
    temperature: float = 1.0,
    limit: int | None = None,
) -> Task:
    """Facts a model learned by itself, asked both ways (experiment 2): `pairs` is a CSV or JSONL file."""
    from glasshouse.behaviour.reversal_curse import wild_task

    return wild_task.wild(
        pairs, ask_forward, ask_back, a=a, b=b, style=style, samples=samples, temperature=temperature,
        limit=limit,
    )  # fmt: skip


__all__ = [
    "sycophancy_answer", "sycophancy_are_you_sure", "sycophancy_feedback", "sycophancy_mimicry",
]  # fmt: skip
