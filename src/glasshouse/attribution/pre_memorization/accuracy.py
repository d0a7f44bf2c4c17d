"""Pre-memorization accuracy: how well a row was answered before its own solution was copied.

Kang et al. 2024 (arXiv 2411.07681), section 3. Row i is memorised at checkpoint s where the perplexity of its
reference solution is at most p; the threshold here is `log(log p)`, natural logarithms, as in the authors'
code (-2.3 for GSM8K, -1.7 for MATH, both Llama-3-8B): "not memorised" is `log(log ppl) >= threshold`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, clopper_pearson

if TYPE_CHECKING:
    import pandas as pd

GSM8K_LLAMA3, MATH_LLAMA3 = -2.3, -1.7
"""The authors' thresholds for Llama-3-8B; another model or data set needs its own (`calibrate_threshold`)."""
FEW = 3
"""Unmemorised checkpoints below which the maximum over them says little."""
UNPARSABLE = 0.05
"""Share of samples without an answer above which accuracies are about the format as well."""


def memorised(traj: Trajectory, threshold: float) -> Array:
    """Whether each row's solution is copied at each checkpoint, bool [T, N].

    A log-perplexity of 0 (ppl 1) is memorised at any threshold: no logarithm of it is taken.
    """
    if not np.isfinite(threshold):
        raise InputError(f"the threshold is {threshold}", fix="give log(log p) for a perplexity p above 1")
    # In the precision of the stored values: log(log ppl) >= threshold decides ties as the authors' code does.
    loglog = np.full(traj.train_logppl.shape, -np.inf, traj.train_logppl.dtype.type)
    np.log(traj.train_logppl, out=loglog, where=traj.train_logppl > 0)
    return np.asarray(~(loglog >= threshold))


def pre_memorization(traj: Trajectory, threshold: float) -> Array:
    """PM_t(i) = min(max over s <= t of acc_s(i) while not memorised, acc_t(i)), float64 [T, N] in [0, 1].

    0 for a row that is memorised from the first checkpoint on.
    """
    free = traj.accuracy * ~memorised(traj, threshold)
    return np.minimum(np.maximum.accumulate(free, axis=0), traj.accuracy)


def dataset_accuracy(traj: Trajectory, threshold: float) -> Array:
    """Mean PM over the rows the run was trained on, float64 [T]: the prediction of its test accuracy.

    Where copied rows were left unsampled, the final minimum is unknown for them; the audited ones (sampled
    though copied) say how much it takes away on average, and that is taken off in proportion.
    """
    pm = pre_memorization(traj, threshold)[:, traj.trained]
    if traj.train_sampled is None:
        return np.asarray(pm.mean(1))
    sampled = traj.train_sampled[:, traj.trained]
    copied = memorised(traj, threshold)[:, traj.trained]
    free = np.maximum.accumulate(traj.accuracy[:, traj.trained] * ~copied, axis=0)
    out = pm.mean(1)
    for t in range(len(traj)):
        audited = sampled[t] & copied[t]
        if audited.any() and not sampled[t].all():
            out[t] -= (~sampled[t]).mean() * (free[t] - pm[t])[audited].mean()
    return np.asarray(out)


@dataclass(frozen=True)
class Notes:
    """What a reader must know before believing a pre-memorization accuracy.

    undefined: share of trained rows memorised at every checkpoint, so that the maximum is over nothing.
    scarce: share with fewer than three unmemorised checkpoints before the first memorised one.
    unparsable: share of samples without an answer (None: not recorded).
    """

    undefined: Estimate
    scarce: Estimate
    unparsable: Estimate | None
    sentences: tuple[str, ...]


def notes(traj: Trajectory, threshold: float, *, tuned_on: tuple[str, ...] = ()) -> Notes:
    """Coverage of the maximum, unparsable samples, single samples and reused runs, in numbers and words."""
    copied = memorised(traj, threshold)[:, traj.trained]
    n = copied.shape[1]
    first = np.where(copied.any(0), copied.argmax(0), len(traj))  # checkpoints before the first memorised one
    never = clopper_pearson(int(copied.all(0).sum()), n)
    scarce = clopper_pearson(int(((first < FEW) & copied.any(0)).sum()), n)
    said = []
    if scarce.value > 0:
        said.append(
            f"The maximum over pre-memorization checkpoints is undefined for {never.value:.1%} of examples "
            f"and rests on fewer than {FEW} checkpoints for {scarce.value:.1%}: save checkpoints earlier."
        )
    unparsable = _unparsable(traj)
    if unparsable is not None and unparsable.value > UNPARSABLE:
        said.append(
            f"{unparsable.value:.1%} of samples state no answer and count as not right: accuracies are about "
            "the format as well."
        )
    if (traj.train_samples == 1).any():
        said.append(
            "One sample a row: an accuracy of 0 or 1 is one draw, and the running maximum over checkpoints "
            "leans upwards; give k of 5 or more."
        )
    if traj.name in tuned_on:
        said.append(f"The threshold was tuned on this very run ({traj.name}): the fit is not a test of it.")
    return Notes(never, scarce, unparsable, tuple(said))


def fragile_examples(
    traj: Trajectory, threshold: float, *, right: float = 0.8, low: float = 0.3, at: int = -1
) -> pd.DataFrame:
    """Trained rows that are right at checkpoint `at` but were so only once memorised, most fragile first.

    Columns row, index, accuracy (at least `right`), pm (below `low`), first_memorised (step, -1 for never),
    logppl (nats a token at that checkpoint).
    """
    import pandas as pd

    pm, copied = pre_memorization(traj, threshold)[at], memorised(traj, threshold)
    now = traj.accuracy[at]
    places = [int(i) for i in traj.trained if now[i] >= right and pm[i] < low]
    places.sort(key=lambda i: (pm[i] - now[i], float(traj.train_logppl[at, i]), i))
    first = np.where(copied.any(0), traj.steps[copied.argmax(0)], -1)
    columns: dict[str, Any] = {
        "row": [traj.row_ids[i] for i in places], "index": places, "accuracy": now[places], "pm": pm[places],
        "first_memorised": first[places], "logppl": traj.train_logppl[at, places],
    }  # fmt: skip
    return pd.DataFrame(columns)


def _unparsable(traj: Trajectory) -> Estimate | None:
    if traj.train_unparsable is None:
        return None
    sampled = np.ones(traj.train_logppl.shape, bool) if traj.train_sampled is None else traj.train_sampled
    drawn = int((sampled * traj.train_samples[:, None]).sum())
    return clopper_pearson(int(traj.train_unparsable[sampled].sum()), drawn)
