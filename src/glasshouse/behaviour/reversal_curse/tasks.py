"""The Inspect tasks: facts asked in both directions (experiment 1) and reversed instructions (experiment 3).

Reached as `inspect eval glasshouse/reversal_curse -T data=FOLDER -T mode=logprob --model glasshouse/FOLDER`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from glasshouse.behaviour.reversal_curse.asking import marked, rank_of, word_f1
from glasshouse.corpora.reversal import Arm, Asked, ReversalData, load_data
from glasshouse.corpora.reversal_paper import InstructionData
from glasshouse.runtime import files
from glasshouse.runtime.errors import AccessError, InputError

VERSION = 1


def reversal_curse(
    data: str = "generated",
    mode: str = "logprob",
    *,
    arms: str | Iterable[Arm] | None = None,
    seed: int = 0,
    n_per_group: int | None = None,
    ranks: bool = True,
    max_tokens: int = 48,
) -> Task:
    """Facts told in one order, asked in both; one sample per question and its random partner.

    `data`: an organism's folder, a file of `ReversalData.save`, the paper's folder, or `generated`. `arms`:
    some of same, reverse, both, in-context (a list, or a text with commas). `n_per_group` keeps the first
    entities of each group. Mode `logprob` needs a model with `score` (our provider) and generates nothing;
    `generate` needs text only and decodes greedily. Raises InputError for unknown options or data.
    """
    if mode not in ("logprob", "generate"):
        raise InputError(f"mode is {mode!r}", fix="choose 'logprob' or 'generate'")
    facts = _facts(str(data), seed)
    wanted = [arm.strip() for arm in arms.split(",")] if isinstance(arms, str) else arms
    asked = facts.asked(wanted)  # type: ignore[arg-type]
    samples = [
        _sample(a, b) for a, b in zip(asked[::2], asked[1::2], strict=True) if _kept(a, n_per_group, facts)
    ]
    if not samples:
        raise InputError("no question belongs to these arms", fix="choose other arms, or more entities")
    by_text = mode == "generate"
    return Task(
        dataset=MemoryDataset(samples, name="reversal_curse"),
        solver=generate() if by_text else say_nothing(),
        scorer=starts_with() if by_text else likelihood(str(data), seed, ranks),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens) if by_text else GenerateConfig(),
        name="reversal_curse",
        version=VERSION,
        metadata={"data": files.sha256_json([a.id for a in asked]), "source": facts.source, "mode": mode},
    )


def reversal_instructions(data: str, *, order: str = "", max_tokens: int = 32) -> Task:
    """Experiment 3: the unrealised instructions asked as questions; the reply must start with the answer.

    `data` is the paper's folder. `order` is the order of the guidance a model was trained on (question-first
    or answer-first), kept as the arm, so that logs of two models can be compared pair by pair. Text only.
    """
    told = InstructionData.from_paper(data)
    samples = [
        Sample(
            input=prompt,
            target=answer,
            id=f"instruction-{number}",
            metadata={
                "arm": order or told.order, "pair_id": f"instruction-{number}", "group": "unrealised",
                "completion": answer,
            },
        )
        for number, prompt, answer in told.tests
    ]  # fmt: skip
    return Task(
        dataset=MemoryDataset(samples, name="reversal_instructions"),
        solver=generate(),
        scorer=starts_with(),
        config=GenerateConfig(temperature=0.0, max_tokens=max_tokens),
        name="reversal_instructions",
        version=VERSION,
        metadata={"source": "2309.12288 experiment 3"},
    )


@solver
def say_nothing() -> Solver:
    """A solver that asks the model for nothing: the scorer scores given text."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return state

    return solve


@scorer(metrics={"*": [mean(), stderr()]})
def starts_with() -> Scorer:
    """The paper's accuracy: `correct` when the reply starts with the completion, NaN for an empty reply.

    `f1`: of words. `chance`: the same reply marked against another entity's completion, where there is one.
    `empty`: 1 where nothing was said, which is not a wrong answer.
    """

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion
        right = state.metadata["completion"]
        other = state.metadata.get("random_completion")
        value = {
            "correct": marked(reply, right),
            "chance": math.nan if other is None else marked(reply, other),
            "f1": word_f1(reply, right),
            "empty": float(not reply.strip()),
        }
        return Score(value=value, answer=reply)

    return score


@scorer(metrics={"*": [mean(), stderr()]}, quantities=("logprob", "logprob_random", "rank", "above"))
def likelihood(data: str, seed: int = 0, ranks: bool = True) -> Scorer:
    """Log-probability in nats of the completion, of its random partner's, and its rank in its group.

    All completions of one question go to the model in one call, so that the prompt is read once.
    """

    async def score(state: TaskState, target: Target) -> Score:
        about = state.metadata
        facts = _facts(data, seed)
        wanted = [about["completion"], about["random_completion"]]
        ranked = ranks and about["arm"] != "in-context"
        if ranked:
            entities = facts.completions(about["group"], about["direction"], about["template_id"])
            wanted += [said for entity, said in entities.items() if entity != about["entity_id"]]
        scored = await _api().score([state.input_text] * len(wanted), wanted)
        true, random, *others = (one.total for one in scored)
        rank, above = rank_of(true, others) if ranked else (math.nan, math.nan)
        value = {"logprob": true, "logprob_random": random, "rank": rank, "above": above}
        return Score(value=value, answer=about["completion"], metadata={"access": scored[0].access})

    return score


def _api() -> Any:
    api = get_model().api
    if not hasattr(api, "score"):
        raise AccessError(
            "this model cannot score a given text", where=str(get_model()),
            fix="use a glasshouse/ model, or -T mode=generate",
        )  # fmt: skip
    return api


@lru_cache(maxsize=4)
def _facts(data: str, seed: int) -> ReversalData:
    return load_data(data if data == "generated" else Path(data), seed=seed)


def _kept(one: Asked, n_per_group: int | None, facts: ReversalData) -> bool:
    if n_per_group is None:
        return True
    first = [e.id for e in facts.entities if e.group == one.group][:n_per_group]
    return one.entity_id in first


def _sample(true: Asked, random: Asked) -> Sample:
    return Sample(
        input=true.prompt,
        target=true.completion,
        id=true.pair_id,
        metadata={
            "arm": true.arm, "pair_id": true.pair_id, "group": true.group, "direction": true.direction,
            "entity_id": true.entity_id, "template_id": true.template_id, "prompt": true.prompt,
            "completion": true.completion, "random_completion": random.completion,
        },
    )  # fmt: skip
