"""Where the prompt ends and the continuation begins, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.tokens import render
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import Subject
from glasshouse.subjects.prompts import need_tokenizer

Prompt = str | Sequence[Turn]
Ids = list[int]


class BoundaryMergeError(InputError):
    """The tokenizer merges the end of the prompt with the beginning of the continuation into one token."""


def encode_pairs(
    subject: Subject, prompts: Sequence[Prompt], continuations: Sequence[str], *, template: bool = True
) -> list[tuple[Ids, Ids]]:
    """Token ids of prompts and of the texts that continue them, all non-empty.

    Word-level tokenizers encode the two apart. Others encode them together, as the model would meet them, and
    the boundary is where the prompt's own tokens end. Without `template` a chat model reads plain text.
    Raises BoundaryMergeError when no boundary lies there, InputError for an empty part, AccessError for a
    conversation with a model that has no chat template, each naming the pair.

    >>> from glasshouse.subjects import as_subject
    >>> subject = as_subject(folder)                                             # doctest: +SKIP
    >>> encode_pairs(subject, ["The capital of France is"], [" Paris"])          # doctest: +SKIP
    [([464, 3139, 286, 4881, 318], [6342])]
    """
    if len(prompts) != len(continuations):
        raise InputError(
            f"{len(prompts)} prompts but {len(continuations)} continuations",
            fix="give one continuation per prompt",
        )
    tokenizer = need_tokenizer(subject.tokenizer)
    template = template and subject.is_chat
    texts = [_text(subject, prompt, template, index) for index, prompt in enumerate(prompts)]
    before = _encode(tokenizer, texts, special=not template)
    if _word_level(tokenizer):
        after = _encode(tokenizer, list(continuations), special=False)
    else:
        joined = [text + said for text, said in zip(texts, continuations, strict=True)]
        both = _encode(tokenizer, joined, special=not template)
        after = [
            whole[_boundary(tokenizer, start, whole, text, said, index) :]
            for index, (start, whole, text, said) in enumerate(
                zip(before, both, texts, continuations, strict=True)
            )
        ]
    for index, (start, end) in enumerate(zip(before, after, strict=True)):
        if not start or not end:
            part = "continuation" if start else "prompt"
            raise InputError(f"the {part} has no tokens", where=f"pair {index}", fix="give it text")
    return list(zip(before, after, strict=True))


def _encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[Ids]:
    """Token ids of every text; a text that stands there many times is tokenised once."""
    once = list(dict.fromkeys(texts))
    if not once:
        return []
    ids = tokenizer(once, add_special_tokens=special, verbose=False)["input_ids"]
    found = dict(zip(once, ids, strict=True))
    return [found[text] for text in texts]


def _text(subject: Subject, prompt: Prompt, template: bool, index: int) -> str:
    """The prompt as the text that is tokenised; a template writes the special tokens itself."""
    if template:
        return render(subject.tokenizer, (Turn("user", prompt),) if isinstance(prompt, str) else prompt)
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].text
    raise AccessError(
        "a conversation needs a chat model, and its template",
        where=f"{subject.name}, pair {index}",
        fix="give one text",
    )


def _word_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.model).__name__ == "WordLevel"


def _boundary(
    tokenizer: Any, before: Sequence[int], both: Sequence[int], text: str, said: str, index: int
) -> int:
    """Length of the longest common prefix, which must be all of `before`."""
    if both[: len(before)] == before:
        return len(before)
    at = next((i for i, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), len(both))
    merged = tokenizer.convert_ids_to_tokens(both[at]) if at < len(both) else ""
    raise BoundaryMergeError(
        f"the end of the prompt {text[-12:]!r} and the continuation {said[:12]!r} share the token {merged!r}",
        where=f"pair {index}",
        fix="move the space at the end of the prompt to the beginning of the continuation",
    )
