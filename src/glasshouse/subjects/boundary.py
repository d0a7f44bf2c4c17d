"""Where the prompt ends and the completion begins, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.tokens import is_word_level, render
from glasshouse.runtime.errors import AccessError, InputError

Prompt = str | Sequence[Turn] | Sequence[int]
Completion = str | Sequence[int]
Ids = list[int]


class BoundaryMergeError(InputError):
    """The tokenizer merges the end of the prompt with the beginning of the completion into one token."""


def encode_pairs(
    tokenizer: Any, prompts: Sequence[Prompt], completions: Sequence[Completion], *, is_chat: bool
) -> list[tuple[Ids, Ids]]:
    """Token ids of prompts and of the completions that follow them, all non-empty.

    A text after a text is tokenised with it, as the model would meet the two, and the boundary lies where the
    prompt's own tokens end: tokenised apart, SentencePiece would put a space of its own before it, and its
    probability would mean nothing. Word-level tokenizers, and texts next to token ids, are encoded apart.
    With `is_chat` texts and turns pass through the chat template; else a text is plain tokens.

    Raises BoundaryMergeError when no boundary lies there, InputError for an empty part or one text given as
    the list, AccessError for a conversation without a chat template or a text without a tokenizer; each names
    the pair.
    """
    _check(prompts, completions)
    texts = {i: _text(tokenizer, p, i, is_chat) for i, p in enumerate(prompts) if not _is_ids(p)}
    said = {i: one for i, one in enumerate(completions) if isinstance(one, str)}
    if (texts or said) and tokenizer is None:
        raise AccessError(
            "this subject has no tokenizer", fix="give token ids, or open it with tokenizer=..."
        )
    before = _encode(tokenizer, texts, special=not is_chat)
    after = _after(tokenizer, texts, said, before, special=not is_chat)
    pairs = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = before[i] if i in before else [int(x) for x in prompt]  # type: ignore[arg-type]
        end = after[i] if i in after else [int(x) for x in completion]
        if not start or not end:
            part = "completion" if start else "prompt"
            raise InputError(f"the {part} has no tokens", where=f"pair {i}", fix="drop it or give it text")
        pairs.append((start, end))
    return pairs


def _check(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    for name, given in (("prompts", prompts), ("completions", completions)):
        if isinstance(given, str):
            raise InputError(f"{name} is one text", fix=f"give a list of {name}")
    if len(prompts) != len(completions):
        raise InputError(
            f"{len(prompts)} prompts but {len(completions)} completions",
            fix="give one completion per prompt",
        )


def _after(
    tokenizer: Any, texts: dict[int, str], said: dict[int, str], before: dict[int, Ids], *, special: bool
) -> dict[int, Ids]:
    """Tokens of the completions that are texts: after a text those beyond its own tokens, else apart."""
    joint = (
        {} if not said or is_word_level(tokenizer) else {i: texts[i] + said[i] for i in said if i in texts}
    )
    whole = _encode(tokenizer, joint, special=special)
    found = _encode(tokenizer, {i: text for i, text in said.items() if i not in whole}, special=False)
    for i, ids in whole.items():
        found[i] = ids[_boundary(tokenizer, before[i], ids, texts[i], said[i], i) :]
    return found


def _is_ids(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and not (len(prompt) and isinstance(prompt[0], Turn))


def _encode(tokenizer: Any, texts: dict[int, str], *, special: bool) -> dict[int, Ids]:
    """Token ids of every text; a text that stands there many times is tokenised once."""
    once = list(dict.fromkeys(texts.values()))
    if not once:
        return {}
    ids = tokenizer(once, add_special_tokens=special, verbose=False)["input_ids"]
    found = dict(zip(once, ids, strict=True))
    return {index: list(found[text]) for index, text in texts.items()}


def _text(tokenizer: Any, prompt: Any, index: int, is_chat: bool) -> str:
    """The prompt as the text that is tokenised; a template writes the special tokens itself."""
    if is_chat:
        return render(tokenizer, (Turn("user", prompt),) if isinstance(prompt, str) else prompt)
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].text)
    raise AccessError(
        "a conversation needs a chat model, and this one has no chat template",
        where=f"pair {index}",
        fix="give text",
    )


def _boundary(tokenizer: Any, before: Ids, both: Ids, text: str, said: str, index: int) -> int:
    """Number of tokens of the prompt within prompt and completion, which must be all of `before`."""
    if both[: len(before)] == before:
        return len(before)
    at = next((i for i, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), len(both))
    merged = tokenizer.convert_ids_to_tokens(both[at]) if at < len(both) else ""
    raise BoundaryMergeError(
        f"the end of the prompt {text[-12:]!r} and the completion {said[:12]!r} share the token {merged!r}",
        where=f"pair {index}",
        fix="move the space at the end of the prompt to the beginning of the completion",
    )
