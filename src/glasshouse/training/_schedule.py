"""Learning-rate schedules, as multiples of the peak rate; the formulas are those of transformers' Trainer."""

from __future__ import annotations

import math
from typing import Literal, get_args

from glasshouse.runtime.errors import InputError

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(
    step: int, *, schedule: Schedule, steps: int, warmup_steps: int = 0, final_share: float = 0.0
) -> float:
    """Multiple of the peak learning rate used by optimizer step `step` (from 0) of `steps`.

    Warm-up is linear from 0 at step 0 to 1 at step `warmup_steps`; then constant, or down to `final_share`
    (of the peak) at step `steps`, linearly or along a half cosine. A constant schedule has no final share.

    >>> [round(lr_factor(s, schedule="linear", steps=4, warmup_steps=2), 2) for s in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if schedule not in get_args(Schedule):
        raise InputError(f"schedule {schedule!r} is unknown", fix=f"choose one of {get_args(Schedule)}")
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    falling = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_share + (1.0 - final_share) * max(0.0, falling)
