"""Prompts as the user gives them (text, turns or token ids) turned into token ids, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.tokens import render
from glasshouse.runtime.errors import AccessError, InputError

Prompt = str | Sequence[Turn] | Sequence[int]


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt], *, is_chat: bool) -> list[list[int]]:
    """Token ids of every prompt. Raises InputError naming an empty one, AccessError without a tokenizer."""
    if isinstance(prompts, str):
        raise InputError("prompts is one text", fix="give a list of prompts")
    found: list[list[int]] = [[] for _ in prompts]
    texts: dict[int, str] = {}
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            texts[index] = render(tokenizer, (Turn("user", prompt),)) if is_chat else prompt
        elif len(prompt) and isinstance(prompt[0], Turn):
            texts[index] = _conversation(tokenizer, prompt, index, is_chat)  # type: ignore[arg-type]
        else:
            found[index] = [int(i) for i in prompt]  # type: ignore[arg-type]
    if texts:
        need_tokenizer(tokenizer)
        # A rendered conversation holds its special tokens already.
        encoded = tokenizer(list(texts.values()), add_special_tokens=not is_chat)["input_ids"]
        for index, ids in zip(texts, encoded, strict=True):
            found[index] = ids
    for index, ids in enumerate(found):
        if not ids:
            raise InputError("the prompt has no tokens", where=f"row {index}", fix="drop it or give it text")
    return found


def need_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, or AccessError."""
    if tokenizer is None:
        raise AccessError(
            "this subject has no tokenizer", fix="give token ids, or open it with tokenizer=..."
        )
    return tokenizer


def _conversation(tokenizer: Any, turns: Sequence[Turn], index: int, is_chat: bool) -> str:
    if is_chat:
        return render(tokenizer, turns)
    if len(turns) == 1:
        return turns[0].text
    raise AccessError(
        "a conversation needs a chat model, and this one has no chat template",
        where=f"row {index}",
        fix="give text",
    )
