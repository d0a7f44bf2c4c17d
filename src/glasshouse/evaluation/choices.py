"""Multiple choice by log-probability, and what can stand in for it where a model cannot score.

`access="logprob"` scores every option exactly. Only when a caller names them are there two others: `top_k`
looks options of one token up among the likeliest first tokens, and what is not there is known only to lie
below the k-th (censored, never 0); `sampled` counts how often replies say an option. Every result says which.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evaluation.scoring import Access
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.seeds import derive
from glasshouse.statistics import Estimate, wilson

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.model import ChatMessage, Model

TOP_K = 20
"""Alternatives that APIs give at most."""


@dataclass(frozen=True)
class Item:
    """A question: `prompt` (text or messages), `options` that may follow it, the index of the right one."""

    prompt: str | Sequence[ChatMessage]
    options: tuple[str, ...]
    answer: int | None = None
    id: str = ""


@dataclass(frozen=True)
class ItemScores:
    """Scores of one item's options, in the order of the options.

    `logprobs` [n] in nats: of the whole option (`logprob`), of its one token (`top_k`), of its share of the
    draws (`sampled`). Where `censored` [n] is true the value is an upper bound. `shares` are the frequencies
    with Wilson intervals (`sampled` only), `unparsed` the draws that said no option.
    """

    logprobs: np.ndarray[Any, np.dtype[np.float64]]
    per_byte: np.ndarray[Any, np.dtype[np.float64]]
    censored: np.ndarray[Any, np.dtype[np.bool_]]
    access: Access
    shares: tuple[Estimate, ...] = ()
    unparsed: int = 0

    def best(self, *, per_byte: bool = False) -> int | None:
        """Index of the likeliest option, as lm-eval's `acc` (`acc_norm` with `per_byte`).

        None where a censored option might be the likeliest.
        """
        values = self.per_byte if per_byte else self.logprobs
        known = np.where(self.censored, -np.inf, values)
        if not np.isfinite(known).any():
            return None
        at = int(known.argmax())
        # An upper bound per byte says nothing: the bytes of a longer option make it larger.
        unsure = self.censored.any() if per_byte else bool((values[self.censored] > known[at]).any())
        return None if unsure else at


async def score_items(
    model: Model, items: Sequence[Item], *, access: Access = "logprob", draws: int = 50, seed: int = 0
) -> list[ItemScores]:
    """The scores of every item's options, in order.

    `draws` and `seed` belong to `access="sampled"`. Raises AccessError where the model cannot give what
    `access` names (nothing is put in its place), InputError for an item without options.
    """
    for index, item in enumerate(items):
        if not item.options or not all(option.strip() for option in item.options):
            raise InputError("the item lacks options", where=f"item {index}", fix="give each a text")
    if access == "logprob":
        return await _exact(model, items)
    if access == "top_k":
        return await asyncio.gather(*(_top_k(model, item) for item in items))
    if access == "sampled":
        return await asyncio.gather(*(_sampled(model, item, draws, seed) for item in items))
    raise InputError(f"there is no access {access!r}", fix="choose logprob, top_k or sampled")


def accuracy(
    items: Sequence[Item], scores: Sequence[ItemScores], *, per_byte: bool = False, level: float = 0.95
) -> tuple[Estimate, int]:
    """The share of right answers with its Wilson interval, and how many items have no verdict (left out)."""
    said = [(item.answer, one.best(per_byte=per_byte)) for item, one in zip(items, scores, strict=True)]
    known = [(answer, best) for answer, best in said if answer is not None and best is not None]
    right = sum(answer == best for answer, best in known)
    return wilson(right, len(known), level), len(said) - len(known)


def items_frame(items: Sequence[Item], scores: Sequence[ItemScores]) -> pd.DataFrame:
    """One row per option: item, option, right, logprob, per_byte, censored, access."""
    import pandas as pd

    return pd.DataFrame(
        {
            "item": item.id or str(number),
            "option": option,
            "right": None if item.answer is None else index == item.answer,
            "logprob": one.logprobs[index],
            "per_byte": one.per_byte[index],
            "censored": bool(one.censored[index]),
            "access": one.access,
        }
        for number, (item, one) in enumerate(zip(items, scores, strict=True))
        for index, option in enumerate(item.options)
    )


async def _exact(model: Model, items: Sequence[Item]) -> list[ItemScores]:
    score = getattr(model.api, "score", None)
    if score is None:
        raise AccessError(
            f"{model} cannot score given text",
            fix="use a glasshouse/ model, or name access='top_k' or 'sampled'",
        )
    prompts = [item.prompt for item in items for _ in item.options]
    found = iter(await score(prompts, [option for item in items for option in item.options]))
    return [_result(item, [next(found).total for _ in item.options], "logprob") for item in items]


def _result(item: Item, logprobs: Sequence[float], access: Access, **more: Any) -> ItemScores:
    values = np.array(logprobs, dtype=np.float64)
    sizes = np.array([len(option.lstrip().encode()) for option in item.options], dtype=np.float64)
    more.setdefault("censored", np.zeros(len(values), dtype=bool))
    return ItemScores(values, values / sizes, access=access, **more)


async def _top_k(model: Model, item: Item) -> ItemScores:
    from inspect_ai.model import GenerateConfig

    config = GenerateConfig(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=TOP_K)
    output = await model.generate(_input(item), config=config)
    logprobs = output.choices[0].logprobs if output.choices else None
    if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
        raise AccessError(f"{model} sends no log-probabilities", fix="name access='sampled'")
    top = logprobs.content[0].top_logprobs
    # Tokens " A" and "A" both say A; the likelier one stands first.
    values = {one.token.strip(): one.logprob for one in reversed(top)}
    lowest = min(one.logprob for one in top)
    words = [option.strip() for option in item.options]
    found = [values.get(word, lowest) for word in words]
    return _result(item, found, "top_k", censored=np.array([word not in values for word in words]))


async def _sampled(model: Model, item: Item, draws: int, seed: int) -> ItemScores:
    from inspect_ai.model import GenerateConfig

    if draws < 1:
        raise InputError(f"draws={draws} is out of range", fix="give at least 1")
    longest = max(len(option.encode()) for option in item.options)
    seeds = [derive(seed, "choice", draw) % 2**31 for draw in range(draws)]
    outputs = await asyncio.gather(
        *(
            model.generate(
                _input(item), config=GenerateConfig(max_tokens=max(longest, 4), temperature=1.0, seed=one)
            )
            for one in seeds
        )
    )
    said = [_option_said(output.completion, item.options) for output in outputs]
    counts = [said.count(index) for index in range(len(item.options))]
    shares = tuple(wilson(count, draws) for count in counts)
    values = [math.log(share.value or share.high) for share in shares]
    return _result(
        item,
        values,
        "sampled",
        censored=np.array([count == 0 for count in counts]),
        shares=shares,
        unparsed=said.count(None),
    )


def _option_said(reply: str, options: Sequence[str]) -> int | None:
    """The option a reply begins with, the longest where several do; None where it begins with none."""
    start = reply.strip().casefold()
    fits = [index for index, option in enumerate(options) if start.startswith(option.strip().casefold())]
    return max(fits, key=lambda index: len(options[index].strip()), default=None)


def _input(item: Item) -> Any:
    return item.prompt if isinstance(item.prompt, str) else list(item.prompt)
