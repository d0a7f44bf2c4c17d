"""The solvers: what each task asks, in how many turns, and the replies with their probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver

from glasshouse.behaviour.sycophancy.exact import NEGLIGIBLE, How, Replies, replies

KEPT = "sycophancy"
"""The name under which a solver leaves its replies in the sample's store."""


@solver
def ask_once(stage: str, scoring: How = "auto") -> Solver:
    """Ask the one turn of the sample's arm; leaves `replies` of `stage`."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        found = await replies(get_model(), state.messages, _options(state, stage), scoring)
        state.store.set(KEPT, {"replies": _json(found), "access": found.access, "mass": found.mass})
        return _said(state, found)

    return solve


@solver
def ask_with_base(stage: str, scoring: How = "auto") -> Solver:
    """Ask the arm's prompt, and once per item and epoch the base prompt; leaves `replies` and `base`."""
    asked: dict[tuple[str, str, int], asyncio.Task[Replies]] = {}

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model, options = get_model(), _options(state, stage)
        # All arms of an item share one base reply, so that their comparisons are paired.
        key = (str(model), state.metadata["pair_id"], state.epoch)
        before = asked.get(key)
        failed = before is not None and before.done() and (before.cancelled() or before.exception())
        if before is None or failed:  # a retried sample must not meet the error of its first try
            plain: list[ChatMessage] = [ChatMessageUser(content=state.metadata["base"])]
            asked[key] = asyncio.ensure_future(replies(model, plain, options, scoring))
        found, base = await asyncio.gather(replies(model, state.messages, options, scoring), asked[key])
        state.store.set(
            KEPT, {"replies": _json(found), "base": _json(base), "access": found.access, "mass": found.mass}
        )
        return _said(state, found)

    return solve


@solver
def challenge(scoring: How = "auto") -> Solver:
    """Question, answer, "are you sure?", reply, final answer; leaves the tree of `paths`.

    A path is {first, reply, last, probability, stops}. Exact where the replies of all three stages are known,
    else one sampled dialogue.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model, options = get_model(), state.metadata["options"]
        known = all(options.get(stage) for stage in ("answer", "challenge", "final"))
        how: How = scoring if known or scoring == "exact" else "sampled"
        tree = _Tree(model, state.metadata["turns"], options, how)
        paths, access, mass = await tree.walk()
        state.store.set(KEPT, {"paths": paths, "access": access, "mass": mass})
        best = max(paths, key=lambda path: path["probability"])
        said = [best["first"], best["reply"], best["last"]]
        state.messages = _dialogue(state.metadata["turns"], said)
        state.output = _output(model, best["last"])
        return state

    return solve


class _Tree:
    """Every dialogue of three turns with its probability."""

    def __init__(self, model: Model, turns: Sequence[str], options: dict[str, list[str]], how: How) -> None:
        self.model, self.turns, self.options, self.how = model, turns, options, how
        self.mass = 1.0
        self.access = "sampled"

    async def walk(self) -> tuple[list[dict[str, Any]], str, float]:
        """(paths, how they were seen, the least mass that known replies had on a path that matters)."""
        paths: list[tuple[list[str], list[str], float]] = [([], [], 1.0)]
        for stage in ("answer", "challenge", "final"):
            found = await asyncio.gather(*(self._next(said, stage) for said, _, _ in paths))
            longer = [
                ([*said, reply.text], [*stops, reply.stop_reason], p * reply.probability)
                for (said, stops, p), after in zip(paths, found, strict=True)
                for reply in after.replies
            ]
            kept = [path for path in longer if path[2] > NEGLIGIBLE]
            total = sum(path[2] for path in kept)
            paths = [(said, stops, p / total) for said, stops, p in kept]
        told = [
            {"first": said[0], "reply": said[1], "last": said[2], "stops": stops, "probability": p}
            for said, stops, p in paths
        ]
        return told, self.access, self.mass

    async def _next(self, said: Sequence[str], stage: str) -> Replies:
        messages = _dialogue(self.turns[: len(said) + 1], said)
        found = await replies(self.model, messages, self.options.get(stage), self.how)
        self.access, self.mass = found.access, min(self.mass, found.mass)
        return found


def _dialogue(turns: Sequence[str], said: Sequence[str]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for place, turn in enumerate(turns):
        messages.append(ChatMessageUser(content=turn))
        if place < len(said):
            messages.append(ChatMessageAssistant(content=said[place]))
    return messages


def _options(state: TaskState, stage: str) -> list[str] | None:
    return state.metadata["options"].get(stage) or None


def _json(found: Replies) -> list[dict[str, Any]]:
    return [
        {"text": reply.text, "probability": reply.probability, "stop": reply.stop_reason}
        for reply in found.replies
    ]


def _said(state: TaskState, found: Replies) -> TaskState:
    best = max(found.replies, key=lambda reply: reply.probability)
    state.output = _output(get_model(), best.text)
    state.messages.append(state.output.message)
    return state


def _output(model: Model, text: str) -> ModelOutput:
    """What the log shows as the reply: the sampled one, or the likeliest."""
    output = ModelOutput.from_content(str(model), text)
    output.usage = ModelUsage()
    return output
