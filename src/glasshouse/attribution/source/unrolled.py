"""The exact derivative of a training run in the weights of its rows: the truth that SOURCE approximates.

Every step of (heavy-ball) gradient descent is kept in one graph and differentiated backwards, so this is for
toys: memory grows with steps times parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from glasshouse.attribution.objectives import Measurement, Objective
from glasshouse.attribution.units import Batch, Units
from glasshouse.runtime.errors import InputError

MOST_FLOATS = 1 << 28
"""Parameters times steps that the graph may hold."""


@dataclass(frozen=True)
class Adam:
    """Constants of AdamW."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def step(self, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Direction of step t (from 1) and the moments after it."""
        m = self.beta1 * state[0] + (1 - self.beta1) * g
        v = self.beta2 * state[1] + (1 - self.beta2) * g.square()
        root = (v / (1 - self.beta2**t)).clamp_min(1e-30).sqrt()  # the root's slope at zero is infinite
        return m / (1 - self.beta1**t) / (root + self.eps), (m, v)


def _heavy_ball(g: Tensor, state: tuple[Tensor, Tensor], beta: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    speed = beta * state[0] + g
    return speed, (speed, state[1])


class _Called(nn.Module):
    """A model whose parameters are given from outside, for losses that call `model(...)`."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self._inner, self._values = [model], parameters

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        found: Tensor = functional_call(self._inner[0], self._values, args, kwargs)
        return found


def unrolled_influence(
    start: nn.Module,
    rows: Units,
    queries: Units,
    *,
    objective: Objective,
    measurement: Measurement,
    order: Sequence[Sequence[int]],
    rates: Sequence[float],
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    adam: Adam | None = None,
) -> Tensor:
    """`d f_q(theta_T) / d w_n` at all weights one, `[Q, N]`: same sign and scale as scores.

    `start` holds the weights before the first step; step k descends the mean of `objective` over the rows
    `order[k]` with rate `rates[k]`, as `torch.optim.SGD` does (momentum and decay coupled), or with `adam` as
    `torch.optim.AdamW`. Raises InputError for lengths that differ and for runs too long to keep.
    """
    initial = {k: v.detach() for k, v in start.named_parameters()}
    size = sum(v.numel() for v in initial.values())
    if len(order) != len(rates):
        raise InputError(f"{len(order)} batches but {len(rates)} learning rates", fix="give one rate a step")
    if size * len(order) > MOST_FLOATS:
        raise InputError(
            f"{len(order)} steps of {size} parameters cannot be kept", fix="use SOURCE, or a smaller run"
        )
    batches = [(list(at), rows.batch(list(at))) for at in order]
    asked = queries.batch(range(len(queries)))

    def final(weights: Tensor) -> Tensor:
        parameters = {k: v.clone() for k, v in initial.items()}
        state = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in initial.items()}
        for t, ((at, batch), rate) in enumerate(zip(batches, rates, strict=True), 1):
            push = _gradients(start, parameters, objective, batch, weights[at])
            for name, g in push.items():
                value = parameters[name]
                if adam is None:
                    step, state[name] = _heavy_ball(g + weight_decay * value, state[name], momentum)
                else:
                    step, state[name] = adam.step(g, state[name], t)
                    step = step + weight_decay * value
                parameters[name] = value - rate * step
        return measurement(_Called(start, parameters), asked)

    ones = torch.ones(len(rows), dtype=next(iter(initial.values())).dtype)
    values, back = vjp(final, ones)[:2]
    found: Tensor = vmap(lambda direction: back(direction)[0])(torch.eye(len(values), dtype=values.dtype))
    return found.detach()


def _gradients(
    model: nn.Module, parameters: dict[str, Tensor], objective: Objective, batch: Batch, weights: Tensor
) -> dict[str, Tensor]:
    """Gradient of the weighted mean loss, itself differentiable."""

    def loss(values: dict[str, Tensor]) -> Tensor:
        return (weights * objective(_Called(model, values), batch)).sum() / len(weights)

    found: dict[str, Tensor] = torch.func.grad(loss)(parameters)
    return found
