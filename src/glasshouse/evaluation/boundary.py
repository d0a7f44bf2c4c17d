"""Where the prompt ends and the continuation begins, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.tokens import completion_ids, render
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import Subject
from glasshouse.subjects.prompts import need_tokenizer

Prompt = str | Sequence[Turn]


class BoundaryMergeError(InputError):
    """The tokenizer merges the end of the prompt with the beginning of the continuation into one token."""


def encode_pair(
    subject: Subject, prompt: Prompt, continuation: str, *, template: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of the text that continues it, both non-empty.

    Word-level tokenizers encode the two apart. Others encode them together, as the model would meet them, and
    the boundary is where the prompt's own tokens end. Without `template` a chat model reads plain text.
    Raises BoundaryMergeError when no boundary lies there, InputError for an empty part, AccessError for a
    conversation with a model that has no chat template.

    >>> from glasshouse.subjects import as_subject
    >>> subject = as_subject(folder)                                             # doctest: +SKIP
    >>> encode_pair(subject, "The capital of France is", " Paris")               # doctest: +SKIP
    ([464, 3139, 286, 4881, 318], [6342])
    """
    if not continuation:
        raise InputError("the continuation is empty", fix="give it text")
    text, special = _rendered(subject, prompt, template and subject.is_chat)
    tokenizer = need_tokenizer(subject.tokenizer)
    before = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if not before:
        raise InputError("the prompt has no tokens", fix="give it text")
    if _word_level(tokenizer):
        after = completion_ids(tokenizer, continuation)
    else:
        both = tokenizer(text + continuation, add_special_tokens=special, verbose=False)["input_ids"]
        after = list(both[_boundary(tokenizer, before, both, text, continuation) :])
    if not after:
        raise InputError(f"the continuation {continuation[:40]!r} has no tokens", fix="give it other text")
    return before, after


def _rendered(subject: Subject, prompt: Prompt, template: bool) -> tuple[str, bool]:
    """The prompt as text, and whether the tokenizer may add its special tokens (a template wrote them)."""
    if template:
        turns = (Turn("user", prompt),) if isinstance(prompt, str) else prompt
        return render(subject.tokenizer, turns), False
    if isinstance(prompt, str):
        return prompt, True
    if len(prompt) == 1:
        return prompt[0].text, True
    raise AccessError(
        "a conversation needs a chat model, and its template",
        where=subject.name,
        fix="give one text",
    )


def _word_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.model).__name__ == "WordLevel"


def _boundary(
    tokenizer: Any, before: Sequence[int], both: Sequence[int], text: str, continuation: str
) -> int:
    """Length of the longest common prefix, which must be all of `before`."""
    if list(both[: len(before)]) == list(before):
        return len(before)
    at = next((i for i, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), len(both))
    merged = tokenizer.convert_ids_to_tokens(both[at]) if at < len(both) else ""
    raise BoundaryMergeError(
        f"the prompt's end {text[-12:]!r} and the continuation's begin {continuation[:12]!r} share the token"
        f" {merged!r}",
        fix="move the space at the end of the prompt to the beginning of the continuation",
    )
