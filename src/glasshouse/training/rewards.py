"""Rewards for reinforcement learning: functions of what a model wrote, known by their code and arguments.

A reward is any callable that takes the rollouts of one step and returns one finite number for each. What it
computes decides the weights, so `train` needs to know it by value: a function by its code, a partial by its
arguments, a dataclass by its fields, anything else by an attribute `identity` (text) of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt: the row it belongs to, its text, and all tokens without padding."""

    row: Record
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def column(self, name: str) -> Any:
        """A column of the row. Raises InputError naming the row when it has none of that name."""
        if name not in self.row.fields:
            raise InputError(
                "the column is missing",
                where=place(self.row, name),
                fix=f"the row has {sorted(self.row.fields)}",
            )
        return self.row.fields[name]


Reward = Callable[[Sequence[Rollout]], Sequence[float]]
"""`reward(rollouts)`: one finite number for each rollout, higher is better."""


class FlatRewardWarning(UserWarning):
    """Nearly all completions of a prompt got the same reward for many steps, so nothing was learnt."""


def judge(reward: Reward, rollouts: Sequence[Rollout]) -> list[float]:
    """The rewards of rollouts. Raises InputError, naming row and column, unless there is one number each."""
    given = reward(rollouts)
    values = given.tolist() if hasattr(given, "tolist") else list(given)
    if len(values) != len(rollouts):
        first, last = (place(rollouts[at].row, "reward") for at in (0, -1))
        raise InputError(
            f"the reward gave {len(values)} values for {len(rollouts)} completions",
            where=first if first == last else f"{first} to {last}",
            fix="return one number per rollout, in their order",
        )
    for rollout, value in zip(rollouts, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(
                f"the reward of {rollout.completion[:60]!r} is {value!r}, not a finite number",
                where=place(rollout.row, "reward"),
                fix="give every completion a number, also an empty one",
            )
    return [float(value) for value in values]


def place(record: Record, column: str) -> str:
    """Where a row stands, for errors about it."""
    return f"{record.where or f'row {record.id!r}'} column {column!r}"


def reward_identity(reward: Reward) -> str:
    """Hex SHA-256 of what a reward computes. Raises InputError when it cannot be known by value.

    Values that a function reads from its module's globals at run time are not seen: give them as arguments.
    """
    return hashlib.sha256(json.dumps(_told(reward), sort_keys=True).encode()).hexdigest()


def _told(reward: Any) -> Any:
    own = getattr(reward, "identity", None)
    if isinstance(own, str):
        return [_name(type(reward)), code_version(type(reward)), own]
    if isinstance(reward, functools.partial):
        return [_told(reward.func), _plain(reward, [list(reward.args), dict(reward.keywords)])]
    if is_dataclass(reward) and not isinstance(reward, type):
        return [_name(type(reward)), code_version(type(reward)), _plain(reward, asdict(reward))]
    code = getattr(reward, "__code__", None)
    if isinstance(code, CodeType):
        if reward.__closure__:
            raise _unknown(reward, f"it holds {list(code.co_freevars)} of the function around it")
        defaults = _plain(reward, [reward.__defaults__, reward.__kwdefaults__])
        return [_name(reward), code_version(reward), _code(code), defaults]
    raise _unknown(reward, f"it is a {type(reward).__name__}")


def _code(code: CodeType) -> list[Any]:
    """Tells two functions of one module apart, also nameless ones."""
    inner = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _plain(reward: Any, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise _unknown(reward, f"it holds a value that is no plain data ({error})") from error


def _unknown(reward: Any, why: str) -> InputError:
    name = getattr(reward, "__qualname__", type(reward).__name__)
    return InputError(
        f"the reward {name!r} cannot be known by value: {why}",
        where="train(reward=...)",
        fix="use a function, a functools.partial of plain values, or give it a text `identity`",
    )


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model (a checkpoint of `algo='reward'`) as a reward; `path` is its folder.

    Rows must be conversations that end with the user's turn, as those the model was trained on.
    """

    path: Path
    batch_size: int = 32

    @property
    def identity(self) -> str:
        """Hash of the model's weights, config and tokenizer."""
        from glasshouse.training._start import model_identity

        return model_identity(self.path)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """The model's score of every conversation, completion included."""
        import torch

        from glasshouse.corpora.rows import pad
        from glasshouse.corpora.tokens import encode_records

        model, tokenizer = _opened(str(self.path))
        answered = [_answered(rollout) for rollout in rollouts]
        rows = encode_records(tokenizer, answered, loss_on="all")
        scores: list[float] = []
        with torch.no_grad():
            for at in range(0, len(rows), self.batch_size):
                batch = pad(rows[at : at + self.batch_size], pad_id=tokenizer.pad_token_id)
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask
                ).logits  # (B, 1)
                scores += logits[:, 0].tolist()
        return scores


def _answered(rollout: Rollout) -> Record:
    if not rollout.row.turns:
        raise InputError(
            "a reward model judges conversations, and the row is a plain text",
            where=place(rollout.row, "prompt"),
            fix="give turns, or a reward of your own",
        )
    return replace(rollout.row, turns=(*rollout.row.turns, Turn("assistant", rollout.completion)))


@functools.lru_cache(maxsize=2)
def _opened(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True).eval()
    if model.config.num_labels != 1:
        raise InputError(
            f"the model has {model.config.num_labels} outputs, not one",
            where=path,
            fix="give a checkpoint of algo='reward'",
        )
    return model, AutoTokenizer.from_pretrained(path)
