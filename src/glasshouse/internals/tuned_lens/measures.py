"""Numbers about next-token distributions, from log-probabilities [..., V] in nats; each is fp32 [...]."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.kernel import LEAST, block_elements
from glasshouse.internals.tuned_lens.lens import Lens
from glasshouse.internals.tuned_lens.streams import Streams


def entropy(log_p: Tensor) -> Tensor:
    """-sum p log p; a probability of 0 adds nothing."""
    return -torch.special.xlogy(p := log_p.exp(), p).sum(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), >= 0 up to rounding; infinite where q is 0 and p is not."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0)


def js(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence, in [0, ln 2]."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((kl(log_p, middle) + kl(log_q, middle)) / 2).clamp(0, math.log(2))


def rank(log_p: Tensor, target: Tensor) -> Tensor:
    """How many tokens are more likely than `target` [...]: int64, 0 is the top."""
    own = log_p.gather(-1, target[..., None])
    return (log_p > own).sum(-1)


def with_rest(log_p: Tensor) -> Tensor:
    """Log-probabilities of some tokens [..., S] with one more entry for all the others, [..., S + 1]."""
    rest = torch.log1p(-log_p.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    return torch.cat([log_p, rest], -1)


def token_blocks(lens: Lens, streams: Streams) -> Iterator[slice]:
    """Slices of the tokens of `streams`, few enough for a block of logits."""
    width = max(LEAST // 4, block_elements(lens.head_.device) // lens.head_.vocab_size)
    for start in range(0, len(streams), width):
        yield slice(start, min(start + width, len(streams)))


def layer_log_probs(lens: Lens, streams: Streams, at: slice, layer: int) -> Tensor:
    """Log-probabilities [c, V] read at a layer; layer L is the model's own output."""
    h = streams.h[layer, at]
    z = lens.final_logits(h) if layer == lens.n_layers_ else lens.logits(h, layer)
    return z.log_softmax(-1)
