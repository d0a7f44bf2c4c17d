"""What blind measurements of replies share: asking in batches, and whether a reply says something."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from glasshouse.corpora.rows import Turn

Store = Callable[[str, Callable[[], Any]], Any]
"""`store(name, build)`: returns `build()`, or what an earlier, killed run stored under `name`."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def forget(name: str, build: Callable[[], Any]) -> Any:
    """The store that stores nothing."""
    return build()


def ask(subject: Any, chats: Sequence[Sequence[Turn]], max_new_tokens: int, seed: int = 0) -> list[str]:
    """Greedy replies, one per conversation, stripped; equal conversations are asked once."""
    different = list(dict.fromkeys(tuple(chat) for chat in chats))
    found = subject.generate(different, max_new_tokens=max_new_tokens, temperature=0.0, seed=seed)
    said = {chat: completions[0].text.strip() for chat, completions in zip(different, found, strict=True)}
    return [said[tuple(chat)] for chat in chats]


def says(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand side by side in `text`, whatever the case and the marks between.

    >>> says("It is Paris, of course.", "paris of"), says("It is Parish.", "paris")
    (True, False)
    """
    sought = words(phrase)
    if not sought:  # nothing but marks: as it stands
        return bool(phrase.strip()) and phrase.strip() in text
    return f" {' '.join(sought)} " in f" {' '.join(words(text))} "


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def unknown_words(subject: Any, phrase: str) -> bool:
    """Whether the subject's tokenizer, if it has one, reads a part of `phrase` as unknown."""
    tokenizer = getattr(subject, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return False
    return unknown in tokenizer(phrase, add_special_tokens=False)["input_ids"]
