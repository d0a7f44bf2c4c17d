"""Unembed inversion: residuals that the head turns into given logits, to seed interventions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens import measures
from glasshouse.internals.tuned_lens.head import Head
from glasshouse.runtime.errors import InputError, NumericalError


@dataclass(frozen=True)
class Inversion:
    """`h` fp32 [..., d] before the final norm, and KL(target || U(h)) in nats [...]."""

    h: Tensor
    kl: Tensor


def invert(
    head: Head,
    logits: Tensor,
    *,
    h0: Tensor | None = None,
    prior: Tensor | None = None,
    prior_weight: float = 0.0,
    max_iter: int = 500,
) -> Inversion:
    """States h minimising KL(softmax(logits) || softmax U(h)) + prior_weight |h - prior|^2 / d, by L-BFGS.

    `logits` is [..., V]. `h0` [..., d] is where the search starts: by default the mean row of W under the
    target, which a norm without centring already sends near it. Not unique: a norm forgets the length of h,
    and a wide vocabulary has targets that no h reaches, which `kl` then shows. Raises InputError for shapes
    that do not fit, NumericalError for NaN.
    """
    if logits.shape[-1] != head.vocab_size:
        raise InputError(f"logits of width {logits.shape[-1]} for a vocabulary of {head.vocab_size}")
    if bool(torch.isnan(logits).any()):
        raise NumericalError("the target logits hold NaN")
    target = logits.detach().to(head.device, torch.float32).log_softmax(-1)
    if h0 is None:
        h0 = _first_guess(head, target)
    if h0.shape[:-1] != logits.shape[:-1]:
        raise InputError(f"h0 {tuple(h0.shape)} for logits {tuple(logits.shape)}", fix="give one per target")
    free = h0.detach().to(target).clone().requires_grad_()
    centre = torch.zeros_like(free) if prior is None else prior.to(free).expand_as(free)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=max_iter, line_search_fn="strong_wolfe", tolerance_change=1e-9, history_size=20
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = measures.kl(target, head.logits(free).log_softmax(-1)).sum()
        loss = loss + prior_weight * ((free - centre) ** 2).mean(-1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found = free.detach()
        return Inversion(found, measures.kl(target, head.logits(found).log_softmax(-1)))


def _first_guess(head: Head, target: Tensor) -> Tensor:
    mean = target.exp() @ head.weight.float() - head.weight.float().mean(0)
    if head.after is not None:
        mean = mean @ head.after.get_parameter("weight").float()
    return mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-6) * mean.shape[-1] ** 0.5
