"""Rows of a training, checked and tokenised before training starts; errors name the row and the column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glasshouse.corpora.rows import IGNORE, Record, TokenRow, Turn
from glasshouse.corpora.tokens import completion_ids, encode_records, plain_ids, render
from glasshouse.runtime.errors import InputError
from glasshouse.training.spec import PAIRED, SAMPLED, LossOn, TrainSpec


@dataclass(frozen=True)
class Pair:
    """A tokenised preference: two rows with the same prompt."""

    chosen: TokenRow
    rejected: TokenRow

    @property
    def prompt(self) -> int:
        """Number of prompt tokens."""
        return _prompt_length(self.chosen)

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Encoded:
    """The rows as they are trained on; `truncated` counts rows cut at `max_length`."""

    rows: Sequence[TokenRow | Pair]
    truncated: int

    @property
    def labelled(self) -> int:
        """Tokens that carry loss."""
        return sum(sum(label != IGNORE for label in row.labels) for row in flat(self.rows))


def flat(rows: Sequence[TokenRow | Pair]) -> list[TokenRow]:
    """Token rows, a pair giving two."""
    return [one for row in rows for one in ((row.chosen, row.rejected) if isinstance(row, Pair) else (row,))]


def encode(spec: TrainSpec, tokenizer: Any) -> Encoded:
    """Tokenise the data of a spec. Raises InputError for the first row that cannot be trained on."""
    if tokenizer.pad_token_id is None:
        raise InputError(
            "the tokenizer has no pad token",
            where=str(spec.start),
            fix="set tokenizer.pad_token (often to its eos_token) and save it there",
        )
    if spec.algo in SAMPLED:
        return Encoded(_prompts(spec, tokenizer), 0)
    whole = _pairs(spec, tokenizer) if spec.algo in PAIRED else _replies(spec, tokenizer)
    kept = [_cut(row, spec.max_length) for row in whole]
    return Encoded(kept, sum(a != b for a, b in zip(whole, kept, strict=True)))


def _replies(spec: TrainSpec, tokenizer: Any) -> list[TokenRow]:
    for row in spec.data.rows:
        _check_reply(spec, row.record)
    return _tokenise(spec, tokenizer, [row.record for row in spec.data.rows], spec.loss_on)


def _check_reply(spec: TrainSpec, record: Record) -> None:
    if record.text is not None:
        if not record.text.strip():
            raise _wrong(record, "text", "the text is empty")
    elif not record.turns:
        raise _wrong(record, "turns", "the row has neither turns nor text")
    elif spec.loss_on != "all":
        last = record.turns[-1]
        if last.role != "assistant":
            raise _wrong(
                record, "completion", f"the last turn is the {last.role}'s, so there is no completion"
            )
        if not last.text.strip():
            raise _wrong(record, "completion", "the completion is empty")


def _pairs(spec: TrainSpec, tokenizer: Any) -> list[Pair]:
    answered = [_both_answers(row.record) for row in spec.data.rows]
    chosen = _tokenise(spec, tokenizer, [pair[0] for pair in answered], "reply")
    rejected = _tokenise(spec, tokenizer, [pair[1] for pair in answered], "reply")
    pairs = [Pair(a, b) for a, b in zip(chosen, rejected, strict=True)]
    for row, pair in zip(spec.data.rows, pairs, strict=True):
        at = pair.prompt
        if at != _prompt_length(pair.rejected) or pair.chosen.ids[:at] != pair.rejected.ids[:at]:
            raise _wrong(row.record, "prompt", "chosen and rejected do not tokenise to one prompt")
    return pairs


def _prompts(spec: TrainSpec, tokenizer: Any) -> list[TokenRow]:
    """Prompts to complete: no token carries a label. A completion must fit behind each of them."""
    room = spec.max_length - spec.options["max_new_tokens"]
    rows = []
    for row in spec.data.rows:
        ids = _prompt_ids(tokenizer, row.record)
        if len(ids) > room:
            raise InputError(
                f"the prompt has {len(ids)} tokens, a completion up to {spec.options['max_new_tokens']}, and "
                f"max_length is {spec.max_length}",
                where=_place(row.record, "prompt"),
                fix="raise max_length, lower max_new_tokens or shorten the prompt",
            )
        rows.append(TokenRow(tuple(ids), (IGNORE,) * len(ids), row.row_id))
    return rows


def _prompt_ids(tokenizer: Any, record: Record) -> list[int]:
    if record.text is None and (not record.turns or record.turns[-1].role != "user"):
        raise _wrong(record, "prompt", "a prompt to complete is a text, or turns that end with the user's")
    if not record.plain.strip():
        raise _wrong(record, "prompt", "the prompt is empty")
    if record.text is not None:
        return plain_ids(tokenizer, record.text)
    if getattr(tokenizer, "chat_template", None):
        return completion_ids(tokenizer, render(tokenizer, record.turns))
    if len(record.turns) > 1:
        raise _wrong(record, "prompt", "a conversation needs a chat template, which this tokenizer lacks")
    return plain_ids(tokenizer, record.turns[0].text)


def _both_answers(record: Record) -> tuple[Record, Record]:
    """The record answered as chosen and as rejected; a reply that is already there counts as chosen."""
    turns, columns = record.turns, dict(record.fields)
    if turns and turns[-1].role == "assistant" and "chosen" not in columns:
        columns["chosen"], turns = turns[-1].text, turns[:-1]
    if not turns or turns[-1].role != "user":
        raise _wrong(record, "prompt", "a preference needs turns that end with the user's")
    for column in ("chosen", "rejected"):
        text = columns.get(column)
        if text is None:
            raise _wrong(record, column, "the column is missing")
        if not isinstance(text, str):
            raise _wrong(record, column, f"the column holds a {type(text).__name__}, not text")
        if not text.strip():
            raise _wrong(record, column, "the completion is empty")
    chosen, rejected = (Turn("assistant", columns[name]) for name in ("chosen", "rejected"))
    return replace(record, turns=(*turns, chosen)), replace(record, turns=(*turns, rejected))


def _tokenise(spec: TrainSpec, tokenizer: Any, records: Sequence[Record], loss_on: LossOn) -> list[TokenRow]:
    rows = encode_records(tokenizer, records, loss_on=loss_on)
    for record, row in zip(records, rows, strict=True):
        _check_prompt(spec, record, row)
    return [replace(row, row_id=ref.row_id) for row, ref in zip(rows, spec.data.rows, strict=True)]


def _check_prompt(spec: TrainSpec, record: Record, row: TokenRow) -> None:
    prompt = _prompt_length(row)
    if prompt >= len(row):
        raise _wrong(record, "completion", "no token of the row carries a label")
    if prompt >= spec.max_length:
        raise InputError(
            f"the prompt has {prompt} tokens and max_length is {spec.max_length}",
            where=_place(record, "prompt"),
            fix="raise max_length or shorten the prompt",
        )


def _prompt_length(row: TokenRow) -> int:
    """Tokens before the first that carries loss; the first token of a row never does."""
    return next((at for at in range(1, len(row)) if row.labels[at] != IGNORE), len(row))


def _cut(row: Any, max_length: int) -> Any:
    if isinstance(row, Pair):
        return Pair(_cut(row.chosen, max_length), _cut(row.rejected, max_length))
    return replace(row, ids=row.ids[:max_length], labels=row.labels[:max_length])


def _wrong(record: Record, column: str, what: str) -> InputError:
    return InputError(what, where=_place(record, column), fix="repair or drop the row")


def _place(record: Record, column: str) -> str:
    return f"{record.where or f'row {record.id!r}'} column {column!r}"
