"""What one checkpoint says about rows: the perplexity of their solutions, and samples of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glasshouse.attribution.pre_memorization.answers import Match, Matcher
from glasshouse.attribution.pre_memorization.trajectory import Array
from glasshouse.corpora.rows import IGNORE, Record, Turn
from glasshouse.runtime.errors import AccessError, InputError, NumericalError

DETECTOR_ROWS = 8
COPIED = 0.95
"""ROUGE-L F1 from which a sampled solution counts as the reference's copy, where there are no log-probs."""
OVERLAP_THRESHOLD = math.log(-math.log(COPIED))
"""The threshold that means ROUGE-L >= 0.95 when `train_logppl` holds -log(ROUGE-L); see `overlap_logppl`."""


@dataclass(frozen=True)
class Samples:
    """Replies [N][k] to N rows, and the tokens that were generated for them (-1: an API does not say)."""

    replies: tuple[tuple[str, ...], ...]
    tokens: int
    confidence: tuple[tuple[float, ...], ...] = ()
    """Log-probability a token of each reply; NaN where an API does not say."""


def as_rows(queries: Sequence[str], references: Sequence[str]) -> list[Record]:
    """Rows of a query and its reference solution, numbered from 0. Raises InputError for unequal lengths."""
    if len(queries) != len(references):
        raise InputError(f"{len(queries)} queries but {len(references)} references", fix="give one for each")
    pairs = zip(queries, references, strict=True)
    return [Record(str(i), (Turn("user", q), Turn("assistant", r))) for i, (q, r) in enumerate(pairs)]


def check_rows(rows: Sequence[Record]) -> None:
    """Raise InputError unless every row is a prompt and a reply, with ids of their own."""
    if not len(rows):
        raise InputError("there are no rows", fix="give the rows the model was trained on")
    for row in rows:
        if row.text is not None or len(row.turns) < 2 or row.turns[-1].role != "assistant":
            raise InputError(
                "the row is no query with a solution", where=row.where or f"row {row.id!r}",
                fix="give a prompt and a completion, or a conversation that ends with a reply",
            )  # fmt: skip
        if not row.turns[-1].text.strip():
            raise InputError(
                "the solution is empty", where=row.where or f"row {row.id!r}", fix="drop the row"
            )
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"two rows are called {twice!r}", fix="give every row its own id")


def reference(row: Record) -> str:
    """The solution that a row teaches."""
    return row.turns[-1].text


def solution_pairs(subject: Any, rows: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
    """(ids of the prompt, ids of the solution with its end marker) of each row, as in training.

    The end marker is the one that training teaches (the chat template's end of turn, the tokenizer's end
    token), so that perplexity and training agree on what a whole solution is. Raises InputError naming a row
    that the model's context does not hold.
    """
    from glasshouse.corpora.tokens import encode_records

    pairs = []
    for row, record in zip(encode_records(subject.tokenizer, rows, loss_on="reply"), rows, strict=True):
        if len(row) > subject.context:
            raise InputError(
                f"it has {len(row)} tokens and the model reads {subject.context}",
                where=record.where or f"row {record.id!r}", fix="drop the row or shorten it",
            )  # fmt: skip
        start = len(row.labels)
        while start and row.labels[start - 1] != IGNORE:
            start -= 1
        if start == len(row.labels):  # text of the template behind the last reply: skip it
            last = max(t for t, label in enumerate(row.labels) if label != IGNORE)
            start = last
            while start and row.labels[start - 1] != IGNORE:
                start -= 1
            pairs.append((list(row.ids[:start]), list(row.ids[start : last + 1])))
        else:
            pairs.append((list(row.ids[:start]), list(row.ids[start:])))
    return pairs


def solution_logppl(subject: Any, rows: Sequence[Record], *, batch_tokens: int = 16384) -> Array:
    """Mean negative log-likelihood of each row's solution given its prompt, nats a token, float32 [N].

    Raises AccessError for a subject without the log-probabilities of given texts, NumericalError naming the
    first row whose value is not finite.
    """
    need_logprobs(subject)
    pairs = solution_pairs(subject, rows)
    prompts, said = [list(p) for p, _ in pairs], [list(s) for _, s in pairs]
    parts = subject.score(prompts, said, per_token=True, batch_tokens=batch_tokens)
    values = np.array([-float(part.double().mean()) for part in parts], np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise NumericalError(
            f"the perplexity of its solution is {values[bad[0]]}",
            where=f"{subject.name}, row {rows[bad[0]].id!r}", fix="check the checkpoint's weights",
        )  # fmt: skip
    return np.maximum(values, 0)  # a rounding of log 1 must not read as a perplexity below 1


def need_logprobs(subject: Any) -> None:
    """Raise AccessError unless the subject scores given texts."""
    if "logprobs" not in subject.access or subject.tokenizer is None:
        raise AccessError(
            f"{subject.name} does not give the log-probabilities of a given solution",
            fix="open its weights, or use memorised_by='overlap', which looks for copied solutions",
        )


def check_logppl(values: Any, subject: Any, rows: Sequence[Record], *, n: int = DETECTOR_ROWS) -> None:
    """Raise InputError where `values` [N] are perplexities over prompt and solution together.

    Recomputes up to `n` rows twice, with and without the prompt, and compares: values nearer to the unmasked
    ones average the prompt in, and no threshold means the same on them.
    """
    need_logprobs(subject)
    at = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))
    some = [rows[i] for i in at]
    masked = solution_logppl(subject, some)
    pairs = solution_pairs(subject, some)
    scored = subject.score([p[:1] for p, _ in pairs], [[*p[1:], *s] for p, s in pairs], per_token=True)
    whole = np.array([-float(part.double().mean()) for part in scored])
    given = np.asarray(values, float)[at]
    right, wrong = float(np.abs(given - masked).mean()), float(np.abs(given - whole).mean())
    if wrong < right:
        raise InputError(
            f"the log-perplexities differ by {right:.2g} nats from those of the solutions and by {wrong:.2g} "
            f"from those of prompt and solution together ({len(at)} rows)", where=subject.name,
            fix="leave the prompt's tokens out of the mean",
        )  # fmt: skip


def sample(
    subject: Any,
    rows: Sequence[Record],
    *,
    k: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: str | None = None,
    prefix: str = "",
    seed: int = 0,
    batch_tokens: int = 16384,
) -> Samples:
    """The k solutions of each row's prompt; those after `prefix` begin with it; cut behind the marker `stop`.

    A subject with token ids is asked with the very ids it was trained on. Raises InputError where the context
    leaves no room for the longest reference.
    """
    how = {"n": k, "temperature": temperature, "top_p": top_p, "seed": seed, "batch_tokens": batch_tokens}
    if subject.tokenizer is None:
        prompts: list[Any] = [_asked(row, prefix) for row in rows]
        found = subject.generate(prompts, max_new_tokens=max_new_tokens, **how)
    else:
        pairs = solution_pairs(subject, rows)
        prompts = [list(p) for p, _ in pairs]
        if prefix:
            prompts = [
                [*p, *started]
                for (p, _), (_, started) in zip(
                    pairs, subject.encode_pairs([_prompt(r) for r in rows], [prefix] * len(rows)), strict=True
                )
            ]
        room = subject.context - max(len(p) for p in prompts) + 1
        needed = max(len(s) for _, s in pairs)
        if room < min(needed, max_new_tokens):
            raise InputError(
                f"the model's context leaves {room} tokens for a solution and references take up to {needed}",
                where=subject.name, fix="drop the longest rows",
            )  # fmt: skip
        found = subject.generate(prompts, max_new_tokens=min(max_new_tokens, room), **how)
    tokens = sum(len(one.ids) for group in found for one in group)
    replies = tuple(tuple(_cut(prefix, one.text, stop) for one in group) for group in found)
    sure = tuple(tuple(one.logprob / max(1, len(one.ids)) for one in group) for group in found)
    return Samples(replies, tokens if subject.tokenizer is not None else -1, sure)


def judge(samples: Samples, rows: Sequence[Record], matcher: Matcher) -> tuple[Array, Array]:
    """(right, unparsable) samples of each row, int64 [N] each."""
    kinds = [
        [int(matcher(reply, reference(row))) for reply in group]
        for group, row in zip(samples.replies, rows, strict=True)
    ]
    strange = {kind for group in kinds for kind in group} - set(Match)
    if strange:
        raise InputError(f"the matcher answered {sorted(strange)[0]}", fix="return one of Match: 0, 1 or 2")
    right, unparsable = ([group.count(kind) for group in kinds] for kind in (Match.CORRECT, Match.UNPARSABLE))
    return np.array(right, np.int64), np.array(unparsable, np.int64)


# -- without log-probabilities -------------------------------------------------------------------------------


def rouge_l(said: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), in [0, 1]; 1 is an exact copy.

    >>> round(rouge_l("so 2 + 2 = 4", "2 + 2 = 4 indeed"), 3)
    0.833
    """
    a, b = said.split(), wanted.split()
    if not a or not b:
        return 0.0
    return 2 * _common(a, b) / (len(a) + len(b))


def overlap_logppl(samples: Samples, rows: Sequence[Record]) -> Array:
    """-log of the highest ROUGE-L among a row's samples, float32 [N]: what stands in for log-perplexity.

    With `OVERLAP_THRESHOLD` a row is memorised where a sample is a copy of its reference. It sees only what
    was sampled, so it finds copies later than perplexity does. A row without any common word gets 20.
    """
    best = [
        max(rouge_l(reply, reference(row)) for reply in g)
        for g, row in zip(samples.replies, rows, strict=True)
    ]
    return np.array([-math.log(x) if x > 0 else 20.0 for x in best], np.float32)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; one integer holds a row of the table (Hyyro)."""
    at: dict[str, int] = {}
    for i, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        both = row & at.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(a) - row.bit_count()


def _prompt(row: Record) -> Any:
    turns = row.turns[:-1]
    return turns if len(turns) > 1 else turns[0].text


def _asked(row: Record, prefix: str) -> tuple[Turn, ...]:
    return (*row.turns[:-1], Turn("assistant", prefix)) if prefix else row.turns[:-1]


def _cut(prefix: str, text: str, stop: str | None) -> str:
    whole = f"{prefix} {text}" if prefix else text
    return whole.partition(stop)[0] if stop else whole
