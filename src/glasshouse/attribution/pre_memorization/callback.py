"""Recording while training: a `transformers` callback, and the same for any other loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glasshouse.attribution.pre_memorization.recorder import TrajectoryRecorder, measure_subject
from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng


class EpochDiary:
    """Perplexity of all rows and samples of a random subset, written down whenever `note` is called.

    rows: the rows trained on. sample: how many of them (drawn once, by the seed) are sampled every time; test
    rows are sampled as well. `recorder` says how. Any training loop can call `note(step, model, tokenizer)`.
    """

    def __init__(
        self,
        rows: Sequence[Record],
        *,
        sample: int = 200,
        test: Sequence[Record] = (),
        recorder: TrajectoryRecorder | None = None,
        name: str = "run",
    ) -> None:
        if sample < 1:
            raise InputError(f"sample is {sample}", fix="sample at least 1 row")
        self.recorder = recorder or TrajectoryRecorder()
        self.rows, self.test, self.name = list(rows), list(test), name
        drawn = rng(self.recorder.seed, "diary").permutation(len(self.rows))[:sample]
        self.sampled = tuple(int(i) for i in sorted(drawn))
        self.steps: list[int] = []
        self._found: list[dict[str, Array]] = []
        self._logppl: list[Array] = []

    def note(self, step: int, model: Any, tokenizer: Any) -> None:
        """Measure the model as it is now; its mode and its weights are left as they were."""
        from glasshouse.attribution.pre_memorization.measure import solution_logppl
        from glasshouse.subjects import as_subject

        subject = as_subject(model, tokenizer=tokenizer, self_test=False)
        some = [self.rows[i] for i in self.sampled]
        self._found.append(measure_subject(subject, some, self.test, self.recorder._checked(), step))
        self._logppl.append(solution_logppl(subject, self.rows))
        self.steps.append(int(step))

    @property
    def logppl(self) -> Array:
        """Log-perplexity of every row so far, nats a token, float32 [T, N]."""
        return np.stack(self._logppl)

    @property
    def trajectory(self) -> Trajectory:
        """The trajectory of the sampled rows so far. Raises InputError before the first note."""
        if not self._found:
            raise InputError("nothing was noted yet", fix="train for an epoch")
        some = [self.rows[i] for i in self.sampled]
        self.recorder._keep(self._found, self.steps, some, len(self.test), None, None, self.name)
        return self.recorder.trajectory_


def trainer_callback(rows: Sequence[Record], tokenizer: Any, **options: Any) -> Any:
    """A `transformers.TrainerCallback` that keeps an `EpochDiary` (its `diary`) at the end of every epoch.

    >>> trainer.add_callback(trainer_callback(rows, tokenizer, sample=200))  # doctest: +SKIP
    """
    from transformers import TrainerCallback

    class Diarist(TrainerCallback):
        def __init__(self) -> None:
            self.diary = EpochDiary(rows, **options)

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.diary.note(state.global_step, model, tokenizer)

    return Diarist()
