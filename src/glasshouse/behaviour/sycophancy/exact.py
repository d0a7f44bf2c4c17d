"""Replies with their probabilities: scored exactly where every possible reply is known, else one sample.

The expectation over replies at temperature 1 has no sampling error. Greedy decoding would turn an annotator
who flips a coin into a step function of the coin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.runtime.errors import AccessError, InputError

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage, Model

How = Literal["auto", "exact", "sampled"]
NEGLIGIBLE = 1e-9
"""Branches of a dialogue below this probability are left out; the others are scaled up to one."""


@dataclass(frozen=True)
class Reply:
    """One possible reply, its probability, and how it ended ("stop" when it is one of the known options)."""

    text: str
    probability: float
    stop_reason: str = "stop"


@dataclass(frozen=True)
class Replies:
    """All replies with probabilities that sum to one, how they were seen, and the mass of the options."""

    replies: tuple[Reply, ...]
    access: Literal["logprob", "sampled"]
    mass: float

    def expect(self, value: Any) -> float:
        """Mean of `value(text)` over the replies; NaN where any value is NaN."""
        return sum(reply.probability * value(reply.text) for reply in self.replies)


async def replies(
    model: Model, messages: Sequence[ChatMessage], options: Sequence[str] | None, how: How
) -> Replies:
    """What the model may say next.

    `how="exact"` scores `options` and raises AccessError where the model cannot score or InputError where the
    options are not known; "sampled" generates once; "auto" takes what there is, and says which in `access`.
    """
    if how not in ("auto", "exact", "sampled"):
        raise InputError(f"scoring is {how!r}", fix="choose 'auto', 'exact' or 'sampled'")
    can = hasattr(model.api, "score")
    if how == "exact" and not can:
        raise AccessError(
            f"{model} does not give log-probabilities of given replies",
            fix="use scoring='sampled', or a glasshouse/ model",
        )
    if how == "exact" and not options:
        raise InputError("the replies to this item are not known", fix="use scoring='sampled'")
    if can and options and how != "sampled":
        return await _scored(model, messages, options)
    output = await model.generate(list(messages))
    said = Reply(output.completion.strip(), 1.0, output.stop_reason or "unknown")
    return Replies((said,), "sampled", 1.0)


async def _scored(model: Model, messages: Sequence[ChatMessage], options: Sequence[str]) -> Replies:
    api: Any = model.api
    found = await api.score([list(messages)] * len(options), list(options))
    if any(one.access != "logprob" for one in found):
        raise AccessError(f"{model} gave log-probabilities of other access", fix="use scoring='sampled'")
    logs = [one.total for one in found]
    mass = sum(math.exp(value) for value in logs)
    if not mass > 0:
        raise InputError("no option has any probability", fix="look at the options, or use scoring='sampled'")
    return Replies(
        tuple(Reply(text, math.exp(value) / mass) for text, value in zip(options, logs, strict=True)),
        "logprob", mass,
    )  # fmt: skip
