"""Loss and gradient of a lens on a block of tokens, without keeping the logits.

For a head without a soft cap, z = W x + beta, the KL to the model's distribution p needs p only through its
mean row of W, e = sum_v p(v) W_v:

    KL(p || softmax z) = sum_v p log p - sum_v p beta - x . e + logsumexp(z),    dKL/dx = softmax(z) W - e

so e (as wide as the stream, not as the vocabulary) is computed once per token and serves every layer and
every epoch. Cross entropy to token y is the same with e = W_y. What is left per layer and token is two
products with W (4 dV flops) and two with the translator (4 d^2), one softmax, and one block of logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.head import Head

LEAST, MOST = 256, 1024
"""Tokens at a time on a processor: products reach full speed, and logits stay in its cache where V allows."""


@dataclass(frozen=True)
class Goal:
    """What the lens of every layer should predict at n tokens.

    `pull` [n, d'] is e, `const` [n] the part of the loss that no lens changes, `mark` [n] a likely token
    (any would do: it serves to read logsumexp off the softmax), `p` [n, V] the distribution itself, kept only
    where a soft cap makes it necessary, `scale` [n] weighs the tokens' gradients.
    """

    pull: Tensor
    const: Tensor
    mark: Tensor
    scale: Tensor
    final: Tensor | None = None

    def __getitem__(self, which: slice | Tensor) -> Goal:
        final = None if self.final is None else self.final[which]
        return Goal(self.pull[which], self.const[which], self.mark[which], self.scale[which], final)

    @staticmethod
    def cat(goals: list[Goal]) -> Goal:
        """The goals of several batches as one."""
        finals = [g.final for g in goals if g.final is not None]
        return Goal(
            torch.cat([g.pull for g in goals]), torch.cat([g.const for g in goals]),
            torch.cat([g.mark for g in goals]), torch.cat([g.scale for g in goals]),
            torch.cat(finals) if finals else None,
        )  # fmt: skip


@dataclass
class Gradient:
    """Sums over tokens: `weight` [L, d, d], `bias` [L, d] and the loss [L], in fp32."""

    weight: Tensor
    bias: Tensor
    loss: Tensor

    @classmethod
    def zeros(cls, weight: Tensor, bias: Tensor) -> Gradient:
        """An empty sum of the shape of a lens."""
        return cls(torch.zeros_like(weight), torch.zeros_like(bias), bias.new_zeros(len(bias)).double())


def block_elements(device: torch.device) -> int:
    """Logits held at once: what a processor's cache or an accelerator's memory likes."""
    return 2**21 if device.type == "cpu" else 2**27


def blocks(head: Head, tokens: int, layers: int) -> Iterator[tuple[slice, slice]]:
    """(layers, tokens) slices that cover everything, each within the block of logits."""
    budget = block_elements(head.device) // head.vocab_size
    most = MOST if head.device.type == "cpu" else tokens
    width = max(1, min(tokens, most, max(budget, LEAST)))
    group = max(1, min(layers, budget // width))
    for start in range(0, tokens, width):
        for layer in range(0, layers, group):
            yield slice(layer, min(layer + group, layers)), slice(start, min(start + width, tokens))


def kl_goal(head: Head, final: Tensor) -> Goal:
    """The goal of imitating the model, from its last residuals [n, d] (before the final norm)."""
    parts = []
    for _, at in blocks(head, len(final), 1):
        z = head.capped(head.raw(head.normed(final[at])))  # [c, V]
        mark = z.argmax(-1)
        p = z.softmax(-1)
        negative_entropy = (p * z).sum(-1) - z.logsumexp(-1)
        if head.bias is not None and head.cap is None:
            negative_entropy = negative_entropy - p @ head.bias
        pull = torch.mm(p.to(head.weight.dtype), head.weight).float() if head.cap is None else p[:, :0]
        kept = None if head.cap is None else final[at]
        parts.append(Goal(pull, negative_entropy, mark, torch.ones_like(negative_entropy), kept))
    return Goal.cat(parts)


def ce_goal(head: Head, following: Tensor) -> Goal:
    """The goal of predicting the tokens `following` [n]."""
    pull = head.weight[following].float()
    const = pull.new_zeros(len(pull)) if head.bias is None else -head.bias[following]
    return Goal(pull, const, following, torch.ones_like(const))


def add_gradient(
    head: Head,
    weight: Tensor,
    bias: Tensor,
    h: Tensor,
    goal: Goal,
    into: Gradient,
    *,
    bias_only: bool = False,
) -> None:
    """Add loss and gradient of the translators at tokens h [L, n, d] to `into`.

    weight [L, d, d] and bias [L, d] are A and b of every layer, in the layout of a torch Linear.
    """
    for group, at in blocks(head, h.shape[1], len(weight)):
        source = h[group, at].to(head.device, torch.float32)  # [g, c, d]
        moved = torch.baddbmm(source, source, weight[group].transpose(1, 2)).add_(bias[group, None])
        with torch.enable_grad():
            moved.requires_grad_()
            x = head.normed(moved)
        loss, dx = _loss(head, x.detach(), goal[at])
        (dmoved,) = torch.autograd.grad(x, moved, dx)
        into.loss[group] += loss
        into.bias[group] += dmoved.sum(1)
        if not bias_only:
            into.weight[group] += torch.bmm(dmoved.transpose(1, 2), source)


def _loss(head: Head, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Summed loss [g] and its gradient [g, c, d'] at normed states x [g, c, d']."""
    if head.cap is not None:
        return _capped_loss(head, x, goal)
    z = head.raw(x)  # [g, c, V], the only tensor of this width
    mark = goal.mark.expand(z.shape[:-1]).unsqueeze(-1)
    at_mark = z.gather(-1, mark).squeeze(-1)
    q = torch.softmax(z, -1, out=z)
    lse = at_mark - q.gather(-1, mark).squeeze(-1).log()
    if not bool(torch.isfinite(lse).all()):  # the marked token has underflowed
        lse = head.raw(x).logsumexp(-1)
    loss = ((lse - (x * goal.pull).sum(-1) + goal.const) * goal.scale).sum(-1, dtype=torch.float64)
    dx = (q.to(head.weight.dtype) @ head.weight).float().sub_(goal.pull)
    return loss, dx.mul_(goal.scale[:, None])


def _capped_loss(head: Head, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """The same where logits pass through cap * tanh(z / cap): the whole distribution p is needed."""
    cap = head.cap
    assert cap is not None
    bent = torch.tanh(head.raw(x) / cap)  # [g, c, V]
    z = bent * cap
    if goal.final is None:  # cross entropy
        at_mark = z.gather(-1, goal.mark.expand(z.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        loss, dz = z.logsumexp(-1) - at_mark, z.softmax(-1)
        dz.scatter_add_(-1, goal.mark.expand(z.shape[:-1]).unsqueeze(-1), -torch.ones_like(dz[..., :1]))
    else:
        p = head.logits(goal.final).softmax(-1)
        loss, dz = z.logsumexp(-1) - (p * z).sum(-1) + goal.const, z.softmax(-1) - p
    dz = dz * (1 - bent * bent) * goal.scale[:, None]
    return (loss * goal.scale).sum(-1, dtype=torch.float64), (dz.to(head.weight.dtype) @ head.weight).float()
