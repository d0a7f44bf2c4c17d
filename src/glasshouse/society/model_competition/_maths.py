"""The inner arithmetic, for numpy arrays and for torch tensors alike (both know `exp`, `tanh`, `@`).

n users, d features, S candidate predictors at once; K labels where there are more than two.
Binary predictors are W (S, d), others W (S, d, K). Losses lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Array = Any
"""A numpy array or a torch tensor."""


@dataclass(frozen=True)
class Task:
    """What never changes in a search: users on one device in one number format."""

    xp: Any
    X: Array  # (n, d)
    sign: Array  # (n, 1): +1 where y = 0, -1 where y = 1; None unless binary
    hot: Array  # (n, 1, K) one-hot labels; None where binary
    mass: Array  # (n, 1), sums to 1
    T: float
    c: float

    @property
    def binary(self) -> bool:
        """Whether a predictor is one vector."""
        return self.hot is None


def losses(task: Task, W: Array) -> Array:
    """Loss of each user under each candidate, (n, S)."""
    if task.binary:
        return _sigmoid(task, task.sign * (task.X @ W.T) / task.T)  # |sigmoid(z) - y| = sigmoid(+-z)
    return 1 - (_softmax(task, W) * task.hot).sum(2)  # half the L1 distance to the one-hot label


def share(task: Task, loss: Array, log_w: float, others: Array) -> Array:
    """Probability that each user chooses a candidate, (n, S).

    `others` (n, 1) is log sum_k w_k exp(-loss_k / c) over the other providers.
    """
    return _sigmoid(task, log_w - loss / task.c - others)


def payoff(task: Task, log_w: float, others: Array) -> Callable[[Array], tuple[Array, Array]]:
    """W -> market share of each candidate (S,), and its gradient with respect to W."""

    def value_and_gradient(W: Array) -> tuple[Array, Array]:
        if task.binary:
            loss = losses(task, W)
            chosen = share(task, loss, log_w, others)
            slope = chosen * (1 - chosen) * (-1 / task.c)  # d share / d loss
            return (task.mass * chosen).sum(0), _back_binary(task, loss, slope)
        p = _softmax(task, W)
        loss = 1 - (p * task.hot).sum(2)
        chosen = share(task, loss, log_w, others)
        slope = chosen * (1 - chosen) * (-1 / task.c)
        return (task.mass * chosen).sum(0), _back_softmax(task, p, loss, slope)

    return value_and_gradient


def accuracy(task: Task) -> Callable[[Array], tuple[Array, Array]]:
    """W -> minus the mean loss of each candidate (S,), and its gradient: what a single provider maximises."""

    def value_and_gradient(W: Array) -> tuple[Array, Array]:
        if task.binary:
            loss = losses(task, W)
            return -(task.mass * loss).sum(0), _back_binary(task, loss, -1.0)
        p = _softmax(task, W)
        loss = 1 - (p * task.hot).sum(2)
        return -(task.mass * loss).sum(0), _back_softmax(task, p, loss, 0 * loss - 1)

    return value_and_gradient


def log_sum_others(task: Task, loss: Array, log_w: Array, j: int) -> Array:
    """Log sum over k != j of w_k exp(-loss_k / c), (n, 1); `loss` (n, m)."""
    logit = log_w - loss / task.c
    keep = [k for k in range(loss.shape[1]) if k != j]
    logit = logit[:, keep]
    top = task.xp.amax(logit, 1)[:, None]
    return top + task.xp.log(task.xp.exp(logit - top).sum(1))[:, None]


def choice(task: Task, loss: Array, log_w: Array) -> Array:
    """Probability that each user chooses each provider, (n, m)."""
    logit = log_w - loss / task.c
    e = task.xp.exp(logit - task.xp.amax(logit, 1)[:, None])
    return e / e.sum(1)[:, None]


def maximise(
    value_and_gradient: Callable[[Array], tuple[Array, Array]],
    starts: Array,
    *,
    xp: Any,
    steps: int,
    lr: float,
    patience: int = 25,
    plateau: float = 1e-7,
    keep: int | None = None,
) -> tuple[Array, Array]:
    """Adam ascent from all starts in one batch: the best point that each of them met, and its value.

    Stops early when no start has improved by more than `plateau` in `patience` steps. After each `patience`
    steps only the `keep` best starts go on (None: all of them).
    """
    W, best, best_value = starts, starts, None
    first, second, mark = 0 * starts, 0 * starts, None
    shape = (-1,) + (1,) * (starts.ndim - 1)
    out: list[tuple[Array, Array]] = []
    for step in range(1, steps + 1):
        value, gradient = value_and_gradient(W)
        if best_value is None:
            best_value = mark = value
        better = (value > best_value).reshape(shape)
        best, best_value = xp.where(better, W, best), xp.maximum(best_value, value)
        if step % patience == 0:
            if bool((best_value - mark <= plateau).all()):
                break
            mark = best_value
            if keep is not None and len(best_value) > keep:
                order = (-best_value).argsort()
                stay, leave = order[:keep], order[keep:]
                out.append((best[leave], best_value[leave]))
                W, best, best_value, mark = W[stay], best[stay], best_value[stay], mark[stay]
                first, second, gradient = first[stay], second[stay], gradient[stay]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient * gradient
        scale = lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        W = W + scale * first / (xp.sqrt(second) + 1e-12)
    for points, values in out:
        best = xp.concatenate([best, points])
        best_value = xp.concatenate([best_value, values])
    return best, best_value


def _sigmoid(task: Task, x: Array) -> Array:
    return 0.5 + 0.5 * task.xp.tanh(0.5 * x)


def _softmax(task: Task, W: Array) -> Array:
    """(n, S, K) predicted probabilities."""
    S, d, K = W.shape
    flat = task.xp.swapaxes(W, 0, 1).reshape(d, S * K)
    z = (task.X @ flat).reshape(-1, S, K) / task.T
    e = task.xp.exp(z - task.xp.amax(z, 2)[:, :, None])
    return e / e.sum(2)[:, :, None]


def _back_binary(task: Task, loss: Array, slope: Array) -> Array:
    """Gradient (S, d) of sum(mass * f(loss)) where slope = f'."""
    at_z = task.mass * slope * loss * (1 - loss) * task.sign / task.T  # (n, S)
    return at_z.T @ task.X


def _back_softmax(task: Task, p: Array, loss: Array, slope: Array) -> Array:
    """Gradient (S, d, K); loss = 1 - p_y, so d loss / d z_k = -p_y (1[k = y] - p_k) / T."""
    outer = (task.mass * slope * -(1 - loss) / task.T)[:, :, None]  # (n, S, 1)
    at_z = outer * (task.hot - p)  # (n, S, K)
    n, S, K = at_z.shape
    flat = task.X.T @ at_z.reshape(n, S * K)  # (d, S K)
    return task.xp.swapaxes(flat.reshape(-1, S, K), 0, 1)
