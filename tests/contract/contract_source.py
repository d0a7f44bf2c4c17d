"""SOURCE as a `Case`: its checkpoints are the subject's own weights, so that every family has them."""

from __future__ import annotations

import numpy as np
from check_method import Case
from contract_baselines import PASSES, RANKS, _linear, _points, _units
from contract_scenes import Scene, poisoned, token_rows

from glasshouse.attribution import SOURCE, Checkpoint, TokenUnits


def source() -> Case:
    path = [Checkpoint(None, 10, 0.1), Checkpoint(None, 30, 0.05)]

    def make() -> SOURCE:
        return SOURCE(path, c=[3.0])

    def fit(method: SOURCE, one: Scene) -> SOURCE:
        method.batch_rows = one.batch or method.batch_rows
        return method.fit(one.subject, _units(one))

    def answer(method: SOURCE, one: Scene) -> np.ndarray:
        asked = TokenUnits(token_rows()[:3], side=one.side)
        return one.sorted_back(method.score(asked).scores)

    return Case(
        "SOURCE", SOURCE, make, fit, answer,
        options={
            "checkpoints": path, "segments": [10, 30], "lr_log": [0.1] * 30, "c": [1.0, 2.0],
            "momentum": {"train": 0.0}, "weight_decay": 0.01, "optimizer": "adam", "adam_form": "factored",
            "damping": 0.25, "assume_sgd": True, "loss_scale": 0.5, "max_grad_norm": 2.0,
            "label_mode": "empirical", "factor_examples": 7, "query_rank": 3, "svd": "full", **PASSES,
        },
        other=lambda m, one: m.fit(one.subject, _units(one, 9)).score(token_rows()[:2]),
        uses=(
            lambda m, one, at: m.score(token_rows()[:2]), lambda m, one, at: m.self_score(),
            lambda m, one, at: m.explain(0, 0), lambda m, one, at: m.cost(2), lambda m, one, at: m.save(at),
            lambda m, one, at: m.schedule(),
        ),
        load=lambda at, one: SOURCE.load(at, one.subject, _units(one)),
        empty=(
            lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).score([]),
            lambda one: fit(make(), one).score(token_rows()[:1], candidates=[]),
        ),
        nan=(
            lambda one: answer(fit(make(), poisoned()), one),
            lambda one: make().fit(_linear(), _points(bad=True)),
            lambda one: make().fit(_linear(), _points()).score(_points(bad=True)),
        ),
        apart=RANKS,
    )  # fmt: skip
