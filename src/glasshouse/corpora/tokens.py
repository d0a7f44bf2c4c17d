"""From text to tokens: prompts for a model to answer, records to learn from, with a label on every reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from glasshouse.corpora.rows import IGNORE, Record, TokenRow, Turn
from glasshouse.runtime.errors import InputError

LossOn = Literal["reply", "all", "auto"]


def render(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """A conversation as the text its chat template makes of it, open for the assistant's next words.

    Raises InputError when there is no template or the template refuses the conversation.
    """
    return _template(tokenizer, turns, answer=turns[-1].role != "assistant")


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, with whatever the tokenizer puts around texts (often a first `<bos>`)."""
    return list(tokenizer(text, verbose=False)["input_ids"])


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that continues another one: nothing is added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def is_word_level(tokenizer: Any) -> bool:
    """Whether the vocabulary holds whole words, so that spaces between texts do not matter."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.model).__name__ == "WordLevel"


def encode_record(
    tokenizer: Any, record: Record, *, loss_on: LossOn = "auto", max_length: int | None = None
) -> TokenRow:
    """One record as tokens with labels.

    Conversations go through the chat template; the tokens of each assistant turn carry loss, its end-of-turn
    token included. Without a template a prompt and its completion are tokenised together, apart only where a
    token would join them, and the completion (with the tokenizer's end token) carries loss. A text carries
    loss on all tokens. `loss_on="all"` labels every token of any record, "reply" refuses plain texts.
    `max_length` cuts on the right.

    Raises InputError naming the row when it has no reply, or when the cut removes every label.
    """
    return encode_records(tokenizer, [record], loss_on=loss_on, max_length=max_length)[0]


def encode_records(
    tokenizer: Any, records: Sequence[Record], *, loss_on: LossOn = "auto", max_length: int | None = None
) -> list[TokenRow]:
    """`encode_record` for many records, tokenised together."""
    chat = [i for i, record in enumerate(records) if record.text is None and _has_template(tokenizer)]
    spans = {i: _reply_spans(tokenizer, records[i]) for i in chat}
    encoded = dict(zip(chat, _encode_spans(tokenizer, [spans[i] for i in chat]), strict=True))
    rows = []
    for index, record in enumerate(records):
        ids, replies = encoded[index] if index in encoded else _encode_plain(tokenizer, record)
        rows.append(_labelled(record, ids, replies, loss_on, max_length))
    return rows


_Spans = tuple[str, list[tuple[int, int]]]
_Encoded = tuple[list[int], list[bool]]


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _template(tokenizer: Any, turns: Sequence[Turn], *, answer: bool, closed: bool = False) -> str:
    if not _has_template(tokenizer):
        raise InputError(
            "the tokenizer has no chat template", fix="give text instead of turns, or a chat model"
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=answer,
            continue_final_message=not answer and not closed,
        )
        return text
    except Exception as error:  # templates raise what their authors wrote
        raise InputError(
            f"the chat template refuses the conversation: {error}", fix="check its roles"
        ) from error


def _reply_spans(tokenizer: Any, record: Record) -> _Spans:
    """The rendered conversation and the character span of each assistant turn, end-of-turn token included."""
    text = _template(tokenizer, record.turns, answer=False, closed=True)
    spans = []
    for index, turn in enumerate(record.turns):
        if turn.role != "assistant":
            continue
        last = index == len(record.turns) - 1
        before = _template(tokenizer, record.turns[:index], answer=True) if index else ""
        after = text if last else _template(tokenizer, record.turns[: index + 1], answer=False, closed=True)
        if not (after.startswith(before) and text.startswith(after)):
            raise InputError(
                f"the chat template rewrites earlier turns, so reply {index} has no place of its own",
                where=_where(record),
                fix="use a template that only appends",
            )
        spans.append((len(before), len(after.rstrip())))
    return text, spans


def _encode_spans(tokenizer: Any, items: Sequence[_Spans]) -> list[_Encoded]:
    if not items:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} cannot say where its tokens are", fix="use the fast version of it"
        )
    texts = [text for text, _ in items]
    # Not verbose: a row beyond the context is the business of whoever feeds it to a model.
    encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (ids, [any(end > a and start < b for a, b in spans) for start, end in offsets])
        for ids, offsets, (_, spans) in zip(
            encoding["input_ids"], encoding["offset_mapping"], items, strict=True
        )
    ]


def _encode_plain(tokenizer: Any, record: Record) -> _Encoded:
    if record.text is not None:
        ids = plain_ids(tokenizer, record.text)
        return ids, []
    if [turn.role for turn in record.turns] != ["user", "assistant"]:
        raise InputError(
            "a conversation needs a chat template, which this tokenizer lacks",
            where=_where(record),
            fix="give text, or one prompt with one completion",
        )
    prompt, reply = (turn.text for turn in record.turns)
    ids, end = plain_ids(tokenizer, prompt), tokenizer.eos_token_id
    whole = plain_ids(tokenizer, prompt + reply)
    # A token that joins prompt and reply would belong to both, and a vocabulary of words joins the two words.
    apart = whole[: len(ids)] != ids or is_word_level(tokenizer)
    said = completion_ids(tokenizer, reply) if apart else whole[len(ids) :]
    answer = said + ([end] if end is not None else [])
    return ids + answer, [False] * len(ids) + [True] * len(answer)


def _labelled(
    record: Record, ids: list[int], replies: list[bool], loss_on: LossOn, max_length: int | None
) -> TokenRow:
    if not ids:
        raise InputError("the row has no tokens", where=_where(record), fix="drop it or give it text")
    if loss_on == "reply" and record.text is not None:
        raise InputError("a plain text has no reply", where=_where(record), fix="use loss_on='all' or 'auto'")
    everywhere = loss_on == "all" or record.text is not None
    labels = ids if everywhere else [i if said else IGNORE for i, said in zip(ids, replies, strict=True)]
    # The label at 0 is never predicted: nothing stands before it.
    if not everywhere and not any(label != IGNORE for label in labels[1:]):
        raise InputError(
            "the row has no assistant turn", where=_where(record), fix="drop it, or use loss_on='all'"
        )
    ids, labels = ids[:max_length], labels[:max_length]
    if not everywhere and not any(label != IGNORE for label in labels[1:]):
        raise InputError(
            f"cut at {max_length} tokens, nothing of the reply is left",
            where=_where(record),
            fix="raise max_length or drop the row",
        )
    return TokenRow(tuple(ids), tuple(labels), record.id)


def _where(record: Record) -> str:
    return record.where or f"row {record.id!r}"
