"""Other things that could predict test accuracy from training alone, each as its authors define it.

Those that are no accuracies (perplexity, distance, gradient variance) get the best straight line that the
other runs allow, which is more than pre-memorization accuracy is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from glasshouse.attribution.pre_memorization import measure
from glasshouse.attribution.pre_memorization.prediction import Runs, as_runs
from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError

GRADIENT_ROWS = 32


def train_accuracy(traj: Trajectory) -> Array:
    """Mean accuracy on the rows the run was trained on, float64 [T]."""
    return np.asarray(traj.accuracy[:, traj.trained].mean(1))


def mean_logppl(traj: Trajectory) -> Array:
    """Mean log-perplexity of the reference solutions, nats a token, float64 [T]."""
    return np.asarray(traj.train_logppl[:, traj.trained].astype(float).mean(1))


def held_out_accuracy(trajs: Runs) -> Array:
    """Accuracy on the training-set rows that a run left out, float64 [T].

    Several runs of the same steps that left out different folds are pooled row by row: k-fold. Raises
    InputError where a run left nothing out or the steps differ.
    """
    runs = as_runs(trajs)
    right, rows = np.zeros(len(runs[0])), 0
    for one in runs:
        left = np.setdiff1d(np.arange(one.n_rows), one.trained)
        if not len(left):
            raise InputError("the run was trained on every row", where=one.name, fix="leave a fold out")
        if not np.array_equal(one.steps, runs[0].steps):
            raise InputError("its steps are not those of the first fold", where=one.name)
        right += one.accuracy[:, left].sum(1)
        rows += len(left)
    return np.asarray(right / rows)


def thresholded_confidence(source: Any, correct: Any, target: Any) -> float:
    """ATC (Garg et al. 2022): predicted accuracy on unlabelled target rows, in [0, 1].

    The share of `target` confidences [M] above the threshold that leaves as many `source` confidences [N]
    below it as the source answers hold mistakes (`correct` [N], shares in [0, 1]).
    """
    a, right, b = (np.asarray(x, float) for x in (source, correct, target))
    if a.shape != right.shape or a.ndim != 1 or not a.size or not b.size:
        raise InputError(f"{a.shape} confidences, {right.shape} answers, {b.shape} targets", fix="give lists")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a confidence is not finite", fix="drop the row or repair it")
    wrong = round((1 - right.mean()) * len(a))
    if wrong == 0:
        return 1.0 if b.min() >= a.min() else float((b >= a.min()).mean())
    return float((b > np.sort(a)[wrong - 1]).mean())


def confidence(samples: measure.Samples) -> Array:
    """Mean log-probability a token of each row's samples, float64 [N]; NaN where the subject gives none."""
    return np.array([np.mean(group) for group in samples.confidence])


def distance_from_start(model: Any, start: Any) -> float:
    """L2 distance between the weights of two models of one shape."""
    other = dict(start.named_parameters())
    mine = dict(model.named_parameters())
    if mine.keys() != other.keys():
        raise InputError("the two models have different weights", fix="give the start of this very run")
    return math.sqrt(sum(float((mine[k].detach() - other[k].detach()).double().pow(2).sum()) for k in mine))


def gradient_variance(subject: Any, rows: Sequence[Record], *, n: int = GRADIENT_ROWS) -> float:
    """Mean squared distance of per-row loss gradients from their mean, over `n` evenly spaced rows.

    Needs gradients; one backward pass a row, loss a mean over the solution's tokens.
    """
    import torch

    at = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))
    pairs = measure.solution_pairs(subject, [rows[i] for i in at])
    total, squares = None, 0.0
    for gradient in _gradients(subject, pairs):
        squares += float(gradient.double().pow(2).sum())
        total = gradient.double() if total is None else total + gradient.double()
    assert isinstance(total, torch.Tensor)
    mean = total / len(pairs)
    return squares / len(pairs) - float(mean.pow(2).sum())


def from_other_runs(feature: Mapping[str, Array], measured: Mapping[str, Array]) -> dict[str, Array]:
    """Each run's test accuracy, by the least-squares line of the other runs from feature to accuracy.

    Both map a run's name to its values [T]. Raises InputError for fewer than two runs.
    """
    names = list(feature)
    if len(names) < 2:
        raise InputError("one run has no others to learn a line from", fix="give two or more")
    found = {}
    for name in names:
        x = np.concatenate([feature[other] for other in names if other != name])
        y = np.concatenate([measured[other] for other in names if other != name])
        slope, shift = (0.0, y.mean()) if np.ptp(x) == 0 else np.polyfit(x, y, 1)
        found[name] = slope * np.asarray(feature[name], float) + shift
    return found


def _gradients(subject: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Any]:
    import torch

    model = subject.model
    weights = [p for p in model.parameters() if p.requires_grad]
    was = model.training
    model.eval()
    try:
        for asked, said in pairs:
            ids = torch.tensor([[*asked, *said]], device=weights[0].device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(asked) - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, len(asked) :])
            parts = torch.autograd.grad(loss, weights, allow_unused=True)
            yield torch.cat([part.reshape(-1) for part in parts if part is not None])
    finally:
        model.train(was)
