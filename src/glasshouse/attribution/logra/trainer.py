"""`patch_trainer`: a `transformers.Trainer` (or a subclass of it) whose training rows can be valued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glasshouse.attribution.logra.recording import GradientLog
from glasshouse.attribution.logra.search import Mode
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.modes import evaluating

UNSHIFTED = ("ForMaskedLM", "ForTokenClassification")
"""Losses of transformers whose label at t belongs to the output at t."""


def patch_trainer(base: type[Any], **options: Any) -> type[Any]:
    """A subclass of `base` with `extract_log()`, `influence(queries)` and `self_influence()`.

    `options` are those of `GradientLog` (rank, init, modules, ...). Training itself is not touched: the log
    is one pass over the training set in evaluation mode with the trainer's own collator and loss, after (or
    without) training. Raises InputError for a class that is no Trainer.

    >>> LoggingTrainer = patch_trainer(transformers.Trainer, rank=16)  # doctest: +SKIP
    """
    if not (
        isinstance(base, type) and hasattr(base, "get_eval_dataloader") and hasattr(base, "compute_loss")
    ):
        raise InputError(f"{base!r} is no Trainer", fix="give transformers.Trainer or a subclass of it")

    class LoggingTrainer(base):  # type: ignore[misc]
        """A Trainer that can say which of its training rows moved a measurement."""

        def extract_log(self, *, store: Path | str | None = None) -> GradientLog:
            """Record every training row with the weights as they are now; kept as `self.gradient_log`."""
            if self.train_dataset is None:
                raise InputError("the trainer has no training set", fix="pass train_dataset=")
            log = GradientLog(store=store, **options)
            self.gradient_log = _recorded(self, log, self.train_dataset, "row")
            return self.gradient_log

        def influence(self, queries: Any, *, mode: Mode = "cosine", top_k: int | None = None) -> ScoreTable:
            """Scores of the training rows for each row of `queries` (a data set like the training set).

            Positive: more weight on the training row lowers the query's loss. Records the training set first
            where that has not been done; StaleError when the weights changed since.
            """
            log = getattr(self, "gradient_log", None) or self.extract_log()
            asked = _recorded(self, log.for_queries(), queries, "query")
            return log.score(asked, mode=mode) if top_k is None else log.search(asked, top_k, mode=mode)

        def self_influence(self) -> NDArray[np.float32]:
            """Each training row's influence on its own loss, `[N]`: high for odd or mislabelled rows."""
            return (getattr(self, "gradient_log", None) or self.extract_log()).self_score()

    LoggingTrainer.__name__ = f"Logging{base.__name__}"
    LoggingTrainer.__qualname__ = LoggingTrainer.__name__
    return LoggingTrainer


def _recorded(trainer: Any, log: GradientLog, dataset: Any, what: str) -> GradientLog:
    """One pass over `dataset` in its own order, with the trainer's collator and loss."""
    if trainer.args.world_size > 1:
        raise InputError("a log is recorded by one process", fix="run extract_log() without a launcher")
    named = _ids(dataset, what)
    model, done = trainer.model, 0
    loader = trainer.get_eval_dataloader(dataset)
    with evaluating(model), log.attach(model):
        if log.init == "pca" and not hasattr(log, "layout_"):
            for inputs in loader:
                inputs = trainer._prepare_inputs(inputs)
                with log.measure(inputs.get("attention_mask")):
                    trainer.compute_loss(model, inputs).backward()
                model.zero_grad(set_to_none=True)
        for inputs in loader:
            inputs = trainer._prepare_inputs(inputs)
            size = len(next(v for v in inputs.values() if isinstance(v, Tensor)))
            ids, done = named[done : done + size], done + size
            divided = _divisor(model, inputs)
            with log.record(ids=ids, mask=inputs.get("attention_mask"), divided_by=divided):
                trainer.compute_loss(model, inputs).backward()
            model.zero_grad(set_to_none=True)
    return log.finalize()


def _ids(dataset: Any, what: str) -> list[str]:
    """The rows' own `id` column, or their positions."""
    columns = getattr(dataset, "column_names", None) or ()
    if "id" in columns:
        return [str(i) for i in dataset["id"]]
    return [f"{what} {i}" for i in range(len(dataset))]


def _divisor(model: Any, inputs: Any) -> float:
    """What transformers' loss divides by: labelled tokens, or rows. The log's check knows if it is not so."""
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        return 1.0
    if labels.ndim < 2:
        return float(len(labels))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    shifted = getattr(base, "loss_type", None) not in UNSHIFTED
    return float((labels[:, 1:] if shifted else labels).ne(-100).sum())
