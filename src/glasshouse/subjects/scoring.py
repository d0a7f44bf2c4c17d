"""Log-probabilities of given tokens. Only the positions asked for pass through the output matrix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.subjects.batches import Ids, pad_left, pad_right
from glasshouse.subjects.generation import Place

# Below this many saved tokens a shared prompt is cheaper to score again inside a full batch.
_WORTH_SHARING = 256


def last_logprobs(
    base: Any,
    unembed: Any,
    rows: Sequence[Ids],
    vocab_size: int,
    *,
    batch_tokens: int,
    place: Place | None,
    device: str,
) -> Tensor:
    """Log-probabilities of the next token after each row, float32 [N, V] on the CPU.

    `place` is given when patches are active; then rows are left-padded, so that the last column is the last
    token for every row and edits of the logits know where they are.
    """
    found = torch.empty(len(rows), vocab_size)
    for bucket in length_buckets([len(row) for row in rows], batch_tokens):
        index = torch.tensor(bucket)
        chunk = [rows[i] for i in bucket]
        if place is None:
            padded = pad_right(chunk, device)
            hidden = base(input_ids=padded.ids, use_cache=False).last_hidden_state
            ends = (padded.lengths - 1).to(hidden.device)
            last = hidden[torch.arange(len(chunk), device=hidden.device), ends]  # [B, d]
            logits = unembed(last)
        else:
            padded = pad_left(chunk, device)
            place(index.to(device), padded.starts, padded.lengths)
            hidden = base(
                input_ids=padded.ids,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                use_cache=False,
            ).last_hidden_state
            logits = unembed(hidden[:, -1:])[:, 0]
        found[index] = logits.float().log_softmax(-1).cpu()
    return found


def score_rows(
    base: Any,
    unembed: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    batch_tokens: int,
    place: Place,
    device: str,
    edited: bool,
) -> list[Tensor]:
    """Log-probability of each completion token after its prompt: float32 [len(completion)] per row.

    With `edited` (patches are active) no prompt is shared, since rows may be edited differently.
    """
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    alone: list[int] = []
    for group in _by_prompt(prompts):
        if not edited and (len(group) - 1) * len(prompts[group[0]]) >= _WORTH_SHARING:
            _score_shared(base, unembed, prompts, completions, group, batch_tokens, place, device, found)
        else:
            alone.extend(group)
    sizes = [len(prompts[i]) + len(completions[i]) - 1 for i in alone]
    for bucket in length_buckets(sizes, batch_tokens):
        rows = [alone[i] for i in bucket]
        # The last completion token is predicted, never read.
        padded = pad_right([[*prompts[i], *completions[i][:-1]] for i in rows], device)
        starts = torch.tensor([len(prompts[i]) for i in rows], device=device)
        place(torch.tensor(rows, device=device), padded.starts, starts)
        hidden = base(input_ids=padded.ids, use_cache=False).last_hidden_state
        before = [len(prompts[i]) - 1 for i in rows]
        # Edits of the logits need all columns in place.
        logits = unembed(hidden) if edited else None
        _gather(unembed, hidden, before, rows, completions, found, logits)
    return found


def _by_prompt(prompts: Sequence[Ids]) -> list[list[int]]:
    """Row indices grouped by equal prompts, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(index)
    return list(groups.values())


def _score_shared(
    base: Any,
    unembed: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    group: list[int],
    batch_tokens: int,
    place: Place,
    device: str,
    found: list[Tensor],
) -> None:
    """Run the prompt once and continue every completion from its cached keys and values."""
    from transformers import DynamicCache

    prompt = prompts[group[0]]
    length = torch.tensor([len(prompt)], device=device)
    zero = torch.zeros_like(length)
    prefix = DynamicCache(config=base.config)
    place(torch.tensor(group[:1], device=device), zero, length)
    first = base(
        input_ids=torch.tensor([list(prompt)], device=device), past_key_values=prefix, use_cache=True
    ).last_hidden_state[:, -1:]
    for bucket in length_buckets([len(prompt) + len(completions[i]) for i in group], batch_tokens):
        rows = [group[i] for i in bucket]
        hidden = first.expand(len(rows), 1, -1)
        if max(len(completions[i]) for i in rows) > 1:
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(len(rows))
            # A completion of one token is predicted by the prompt alone; it rides along with any input.
            padded = pad_right([completions[i][:-1] or completions[i] for i in rows], device)
            place(torch.tensor(rows, device=device), zero.expand(len(rows)), length.expand(len(rows)))
            rest = base(input_ids=padded.ids, past_key_values=cache, use_cache=True).last_hidden_state
            hidden = torch.cat([hidden, rest], dim=1)
        _gather(unembed, hidden, [0] * len(rows), rows, completions, found)


def _gather(
    unembed: Any,
    hidden: Tensor,
    starts: Sequence[int],
    rows: Sequence[int],
    completions: Sequence[Ids],
    found: list[Tensor],
    logits: Tensor | None = None,
) -> None:
    """Score completion token j of line b from hidden[b, starts[b] + j]."""
    lines = [b for b, i in enumerate(rows) for _ in completions[i]]
    columns = [starts[b] + j for b, i in enumerate(rows) for j in range(len(completions[i]))]
    at = unembed(hidden[lines, columns]) if logits is None else logits[lines, columns]  # [positions, V]
    targets = torch.tensor([token for i in rows for token in completions[i]], device=at.device)
    logprobs = at.float().log_softmax(-1)
    values = logprobs.gather(1, targets[:, None])[:, 0].cpu()
    for i, part in zip(rows, values.split([len(completions[i]) for i in rows]), strict=True):
        found[i] = part
