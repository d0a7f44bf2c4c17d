"""Generation for many callers at once: every line of a batch has settings and a random stream of its own.

`Subject.generate` takes one set of settings for a list of prompts. An evaluation has many requests waiting,
each with its own temperature, seed, stop strings and length; here they share forward passes and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.runtime.seeds import rng
from glasshouse.subjects import Subject
from glasshouse.subjects.batches import pad_left
from glasshouse.subjects.modes import evaluating

Reason = Literal["stop", "max_tokens", "model_length"]


@dataclass(frozen=True)
class Request:
    """One completion to generate after the tokens `ids`.

    Prompt and reply together never exceed `max_length`. `temperature` 0 is greedy. `top_logprobs` None keeps
    no log-probabilities, 0 those of the chosen tokens, k > 0 also the k likeliest of each position. `seed`
    decides every draw of this request.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    max_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    top_logprobs: int | None = None


@dataclass
class Reply:
    """What was generated: `ids` with the stop token, `text` without it and cut before a stop string.

    `logprobs` are those of `ids` in nats under the model itself (temperature 1, all tokens); `top` the
    likeliest (token, log-probability) of each position. `reason` is "model_length" where the context ended.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    reason: Reason | None = None


def generate_all(subject: Subject, requests: Sequence[Request], *, batch_tokens: int) -> list[Reply]:
    """The reply to each request, in order; requests never influence one another."""
    lines = [_Line(request) for request in requests]
    sizes = [len(line.request.ids) + line.room for line in lines]
    with evaluating(subject.model), torch.inference_mode():
        for bucket in length_buckets(sizes, batch_tokens):
            _generate_bucket(subject, [lines[i] for i in bucket])
    for line in lines:
        line.finish(subject)
    return [line.reply for line in lines]


class _Line:
    """One request being answered."""

    def __init__(self, request: Request) -> None:
        self.request, self.reply = request, Reply()
        # The last token generated is never read, so it needs no place in the context.
        self.room = min(request.max_new_tokens, request.max_length - len(request.ids) + 1)
        self.draws = rng(request.seed, "generate") if request.temperature > 0 else None

    def add(self, token: int) -> None:
        self.reply.ids.append(token)
        if token in self.request.stop_ids:
            self.reply.reason = "stop"
        elif len(self.reply.ids) == self.room:
            self.reply.reason = "max_tokens" if self.room == self.request.max_new_tokens else "model_length"

    def finish(self, subject: Subject) -> None:
        ids = self.reply.ids
        ended = bool(ids) and ids[-1] in self.request.stop_ids
        text = subject.decode(ids[:-1] if ended else ids)
        cut = _first_stop(text, self.request.stop)
        if cut is not None:
            text, self.reply.reason = text[:cut], "stop"
        self.reply.text = text


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(places) if places else None


def _generate_bucket(subject: Subject, live: list[_Line]) -> None:
    from transformers import DynamicCache

    base, device = subject.parts.base, subject.device
    padded = pad_left([line.request.ids for line in live], device)
    mask, lengths = padded.mask, padded.lengths
    cache = DynamicCache(config=base.config)
    inputs, positions = padded.ids, padded.positions
    while True:
        hidden = base(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        tokens = _choose(subject, live, subject.parts.logits(hidden[:, -1:])[:, 0])
        going = [i for i, line in enumerate(live) if line.reply.reason is None]
        if not going:
            return
        if len(going) < len(live):
            kept = torch.tensor(going, device=device)
            live = [live[i] for i in going]
            cache.batch_select_indices(kept)
            tokens, lengths = tokens[kept], lengths[kept]
            mask = None if mask is None else mask[kept]
        inputs = tokens[:, None]
        positions = None if mask is None else lengths[:, None]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        lengths = lengths + 1


def _choose(subject: Subject, live: Sequence[_Line], logits: Tensor) -> Tensor:
    """One token per line [B], written into the lines with the log-probabilities they asked for."""
    tokens = logits.argmax(-1)
    kept = [i for i, line in enumerate(live) if line.request.top_logprobs is not None]
    drawn = [i for i, line in enumerate(live) if line.draws is not None]
    logprobs = logits.float().log_softmax(-1) if kept or drawn else logits
    if drawn:
        tokens[drawn] = _draw(logprobs[drawn], [live[i] for i in drawn])
    chosen = tokens.tolist()
    for i in kept:
        _keep_logprobs(live[i], logprobs[i], chosen[i])
    for line, token in zip(live, chosen, strict=True):
        line.add(token)
    _stop_at_strings(subject, live)
    return tokens


def _keep_logprobs(line: _Line, logprobs: Tensor, token: int) -> None:
    line.reply.logprobs.append(float(logprobs[token]))
    if line.request.top_logprobs:
        top = logprobs.topk(min(line.request.top_logprobs, len(logprobs)))
        line.reply.top.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _stop_at_strings(subject: Subject, live: Sequence[_Line]) -> None:
    for line in live:
        if line.request.stop and line.reply.reason is None:
            text = subject.decode(line.reply.ids)
            if _first_stop(text, line.request.stop) is not None:
                line.reply.reason = "stop"


def _draw(logprobs: Tensor, lines: Sequence[_Line]) -> Tensor:
    """Inverse-CDF sampling [n]: a line takes the token where its cumulative probability passes its draw."""
    requests = [line.request for line in lines]
    like: dict[str, torch.device | torch.dtype] = {"device": logprobs.device, "dtype": torch.float64}
    heat = torch.tensor([request.temperature for request in requests], **like)  # type: ignore[arg-type]
    nucleus = torch.tensor([request.top_p for request in requests], **like)  # type: ignore[arg-type]
    most = torch.tensor([request.top_k or logprobs.shape[-1] for request in requests], device=logprobs.device)
    uniforms = np.array([line.draws.random() for line in lines if line.draws is not None])
    probs = (logprobs.double() / heat[:, None]).softmax(-1)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(probs.shape[-1], device=probs.device)
    # The smallest set of likeliest tokens whose mass reaches top_p, and no more than top_k of them.
    probs = probs * ((probs.cumsum(-1) - probs < nucleus[:, None]) & (rank < most[:, None]))
    mass = probs.cumsum(-1)
    target = torch.from_numpy(uniforms).to(mass.device)[:, None] * mass[:, -1:]
    at = torch.searchsorted(mass, target, right=True).clamp_max((probs > 0).sum(-1, keepdim=True) - 1)
    return order.gather(1, at)[:, 0]
