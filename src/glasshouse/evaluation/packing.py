"""Many continuations of one prompt in one row: the prompt is read once, and no continuation sees another.

A row is `prompt | continuation 1 | continuation 2 | ...` with positions that begin anew after the prompt for
each continuation, under a mask that lets a token see the prompt and its own continuation. What several
prompts begin with (the examples of a few-shot test) is read once for all of them and kept as keys and values.
The numbers are those of `Subject.score`; `packs` verifies that for each model before it is relied on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.subjects import Subject
from glasshouse.subjects.modes import evaluating

Ids = Sequence[int]
Pair = tuple[Ids, Ids]

WORTH_SHARING = 256
"""Tokens that must be saved before the beginning of several prompts is run apart."""

ROOM = 256
"""Tokens of continuations one row holds at least; attention grows with the square of a row."""

CPU_TOKENS = 2048
"""Tokens of a batch on a processor, whose caches larger ones leave."""

LEVELS = 12
"""Depth of the tree of common beginnings that is searched."""

PROBE = 3e-4
"""Largest difference in nats allowed between packed and plain scores of the probe, in fp32."""

PROBE_LENGTH = 10
"""Tokens of the longest text of the probe."""

_PACKS: WeakKeyDictionary[Subject, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Row:
    """A prompt and the continuations (indices of pairs) that share its row."""

    prompt: tuple[int, ...]
    pairs: tuple[int, ...]


def packs(subject: Subject, pairs: Sequence[Pair]) -> bool:
    """Whether this model gives the plain scores for packed rows of these pairs; tried once, on a probe."""
    config: Any = subject.parts.base.config
    # A sliding window is not in our mask: texts must lie inside it.
    window = getattr(config, "sliding_window", None) or subject.context
    longest = max(len(prompt) + len(said) for prompt, said in pairs)
    if config._attn_implementation not in ("sdpa", "eager") or longest > window or window < PROBE_LENGTH:
        return False
    if subject not in _PACKS:
        _PACKS[subject] = _probe(subject)
    return _PACKS[subject]


def score_packed(subject: Subject, pairs: Sequence[Pair], *, batch_tokens: int) -> list[Tensor]:
    """Log-probability of every token of each continuation after its prompt, in nats: float32 [n] per pair."""
    found: list[Tensor] = [torch.empty(0)] * len(pairs)
    rows = _rows(pairs)
    if subject.device == "cpu":
        batch_tokens = min(batch_tokens, CPU_TOKENS)
    with evaluating(subject.model), torch.inference_mode():
        for group, shared in _families(rows):
            prefix = _prefix(subject, group[0].prompt[:shared]) if shared else None
            sizes = [len(row.prompt) - shared + _length(row, pairs) for row in group]
            for bucket in length_buckets(sizes, batch_tokens):
                _score_batch(subject, [group[i] for i in bucket], pairs, shared, prefix, found)
    return [part.clone() for part in found]


def _probe(subject: Subject) -> bool:
    """Compare both ways on a few random tokens; architectures that ignore the mask or positions differ."""
    ids = torch.randint(0, subject.vocab_size, (19,), generator=torch.Generator().manual_seed(0)).tolist()
    start, other = ids[:6], [*ids[:5], ids[7]]
    pairs = [(start, ids[a:b]) for a, b in ((6, 9), (9, 13), (13, 14))]
    pairs += [(other, ids[a:b]) for a, b in ((14, 17), (17, 19))]
    plain = subject.score([p for p, _ in pairs], [c for _, c in pairs], per_token=True)
    tolerance = PROBE if subject.dtype == torch.float32 else 0.1
    try:
        packed = score_packed(subject, pairs, batch_tokens=1024)
    except (TypeError, ValueError, RuntimeError, IndexError):  # a model that cannot take such a mask
        return False
    return all(bool(torch.allclose(a, b, atol=tolerance, rtol=0)) for a, b in zip(plain, packed, strict=True))


def _rows(pairs: Sequence[Pair]) -> list[_Row]:
    """Pairs by prompt, in order of first appearance, cut where a row would hold too many tokens."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        groups.setdefault(tuple(prompt), []).append(index)
    return [_Row(prompt, part) for prompt, group in groups.items() for part in _cut(prompt, group, pairs)]


def _cut(prompt: Ids, group: Sequence[int], pairs: Sequence[Pair]) -> Iterator[tuple[int, ...]]:
    room, part, size = max(ROOM, len(prompt)), [group[0]], len(pairs[group[0]][1]) - 1
    for index in group[1:]:
        more = len(pairs[index][1]) - 1
        if size + more > room:
            yield tuple(part)
            part, size = [], 0
        part.append(index)
        size += more
    yield tuple(part)


def _length(row: _Row, pairs: Sequence[Pair]) -> int:
    return sum(len(pairs[index][1]) - 1 for index in row.pairs)


def _families(rows: Sequence[_Row]) -> Iterator[tuple[list[_Row], int]]:
    """Rows whose prompts begin alike, with the number of tokens to read once for all of them (or 0)."""
    rows = sorted(rows, key=lambda one: one.prompt)
    # alike[i]: tokens row i has in common with the one before it. A prompt's last token is always read in its
    # row, since it predicts the first token of every continuation.
    alike = [0] + [_common(a.prompt[:-1], b.prompt[:-1]) for a, b in pairwise(rows)]
    alone: list[_Row] = []
    for start, end, common in _best_cuts(alike, 0, len(rows), LEVELS):
        if (end - start - 1) * common >= WORTH_SHARING:
            yield rows[start:end], common
        else:
            alone += rows[start:end]
    if alone:
        yield alone, 0


def _best_cuts(alike: Sequence[int], start: int, end: int, levels: int) -> list[tuple[int, int, int]]:
    """Families (start, end, common) of sorted rows that save the most tokens, over cuts of their tree."""
    common = min(alike[start + 1 : end], default=0)
    whole = [(start, end, common)]
    if end - start < 2 or levels == 0:
        return whole
    cuts = [start, *(i for i in range(start + 1, end) if alike[i] == common), end]
    parts = [cut for a, b in pairwise(cuts) for cut in _best_cuts(alike, a, b, levels - 1)]
    return parts if _saved(parts) > _saved(whole) else whole


def _saved(families: Sequence[tuple[int, int, int]]) -> int:
    return sum((end - start - 1) * common for start, end, common in families)


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _prefix(subject: Subject, ids: Ids) -> Any:
    """Keys and values of the tokens several prompts begin with."""
    from transformers import DynamicCache

    cache = DynamicCache(config=subject.parts.base.config)
    inputs = torch.tensor([list(ids)], device=subject.device)
    subject.parts.base(input_ids=inputs, past_key_values=cache, use_cache=True)
    return cache


def _widened(prefix: Any, rows: int) -> Any:
    cache = copy.deepcopy(prefix)
    for layer in cache.layers:  # views: the layer copies when it appends
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def _score_batch(
    subject: Subject,
    rows: Sequence[_Row],
    pairs: Sequence[Pair],
    shared: int,
    prefix: Any,
    found: list[Tensor],
) -> None:
    """One pass over a batch of rows; the scores are written into `found`."""
    device = subject.device
    ids, segments, positions = _layout(rows, pairs, shared)
    options: dict[str, Any] = {"use_cache": False}
    if prefix is not None:
        options = {"use_cache": True, "past_key_values": _widened(prefix, len(rows))}
    hidden = subject.parts.base(
        input_ids=ids.to(device),
        attention_mask=_mask(segments, shared, subject.dtype).to(device),
        position_ids=positions.to(device),
        **options,
    ).last_hidden_state
    lines: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for line, row in enumerate(rows):
        last, at = len(row.prompt) - shared - 1, len(row.prompt) - shared
        for index in row.pairs:
            said = pairs[index][1]
            columns += [last, *range(at, at + len(said) - 1)]
            lines += [line] * len(said)
            targets += said
            owners.append(index)
            at += len(said) - 1
    logits = subject.parts.logits(hidden[lines, columns])  # [tokens asked for, V]
    logprobs = logits.float().log_softmax(-1)
    values = logprobs.gather(1, torch.tensor(targets, device=logprobs.device)[:, None])[:, 0].cpu()
    for index, part in zip(owners, values.split([len(pairs[i][1]) for i in owners]), strict=True):
        found[index] = part


def _layout(rows: Sequence[_Row], pairs: Sequence[Pair], shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, segments (0 the prompt, 1.. the continuations, -1 padding) and positions, each [B, T]."""
    width = max(len(row.prompt) - shared + _length(row, pairs) for row in rows)
    ids, segments, positions = [], [], []
    for row in rows:
        tokens = list(row.prompt[shared:])
        segment, place = [0] * len(tokens), list(range(shared, len(row.prompt)))
        for number, index in enumerate(row.pairs, start=1):
            read = list(pairs[index][1][:-1])  # the last token is predicted, never read
            tokens += read
            segment += [number] * len(read)
            place += range(len(row.prompt), len(row.prompt) + len(read))
        missing = width - len(tokens)
        ids.append(tokens + tokens[-1:] * missing)
        segments.append(segment + [-1] * missing)
        positions.append(place + [0] * missing)
    return torch.tensor(ids), torch.tensor(segments), torch.tensor(positions)


def _mask(segments: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What each token may see, to be added to the scores of attention: [B, 1, T, shared + T]."""
    width = segments.shape[1]
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    before = torch.ones(len(segments), width, shared, dtype=torch.bool)
    allowed = torch.cat([before, seen], dim=-1)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
