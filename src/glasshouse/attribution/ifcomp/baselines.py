"""Plain rivals of the code length and the complexity, as functions of logits, features or gradients.

Higher means more suspicious in all of them: more likely out of distribution, or mislabelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax

from glasshouse.attribution.stages.contract import Scratch, squared_norms
from glasshouse.attribution.stages.steps import Job, steps
from glasshouse.runtime.errors import InputError

Floats = NDArray[np.float64]


def msp(logits: Any) -> Floats:
    """Minus the maximal softmax probability, [n] (Hendrycks and Gimpel 2017)."""
    return -np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1).max(1))


def energy(logits: Any, temperature: float = 1.0) -> Floats:
    """Minus T logsumexp(z / T), [n] (Liu et al. 2020)."""
    z = np.asarray(logits, dtype=np.float64)
    return -temperature * np.asarray(logsumexp(z / temperature, axis=1))


def loss(logits: Any, y: Any) -> Floats:
    """Cross-entropy of the given labels, [n] in nats."""
    logp = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return -np.asarray(np.take_along_axis(logp, np.asarray(y)[:, None], axis=1)[:, 0])


def el2n(logits: Any, y: Any) -> Floats:
    """Squared error `|p - e_y|^2` of the probabilities, [n] (Paul et al. 2021: its root, same order)."""
    p = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    p[np.arange(len(p)), np.asarray(y)] -= 1
    return np.asarray(np.square(p).sum(1))


def grad_norm(logits: Any, features: Any) -> Floats:
    """Minus the L1 norm of the last layer's gradient of KL(uniform | softmax), [n] (Huang et al. 2021).

    It is the product of |features|_1 and |1 / C - p|_1; large for points like those trained on.
    """
    p = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    away = np.abs(1 / p.shape[1] - p).sum(1)
    return -np.abs(np.asarray(features, dtype=np.float64)).sum(1) * away


def knn(train_features: Any, features: Any, k: int = 20) -> Floats:
    """Distance to the k-th nearest training row, features scaled to length one, [n] (Sun et al. 2022)."""
    from sklearn.neighbors import NearestNeighbors

    def unit(x: Any) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)

    nearest = NearestNeighbors(n_neighbors=min(k, len(train_features))).fit(unit(train_features))
    return np.asarray(nearest.kneighbors(unit(features))[0][:, -1])


def grand(job: Job) -> Floats:
    """Norm of each row's loss gradient over the tracked modules, [n] (GraNd; Paul et al. 2021)."""
    out = torch.zeros(len(job.units))
    scratch = Scratch()
    for step in steps(replace(job, sampled=False), range(len(job.units))):
        total = torch.zeros(len(step.at))
        for pair in step.pairs.values():
            total += squared_norms(pair, scratch=scratch).cpu()
        out[step.at] = total
    return np.sqrt(out.double().numpy())


def ensemble(members: Sequence[Any]) -> Floats:
    """Probabilities [n, C] of a deep ensemble: the mean of its members' (Lakshminarayanan et al. 2017)."""
    if not members:
        raise InputError("the ensemble has no members", fix="give the logits of two or more models")
    return np.asarray(np.mean([softmax(np.asarray(z, dtype=np.float64), axis=1) for z in members], axis=0))


def fit_temperature(logits: Any, y: Any) -> float:
    """The temperature that minimises the validation loss (Guo et al. 2017), in [0.01, 100].

    The loss is convex in 1 / T, so the minimum on a logarithmic scale is found by golden section.
    """
    z = np.asarray(logits, dtype=np.float64)
    return float(np.exp(_golden(lambda t: float(loss(z / np.exp(t), y).mean()), np.log(0.01), np.log(100))))


def _golden(f: Callable[[float], float], low: float, high: float) -> float:
    ratio = (5**0.5 - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(60):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = f(b)
    return (low + high) / 2
