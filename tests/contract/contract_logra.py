"""LoGra as a `Case`. Sketches are float32 here: float16 rounds more than the weights are moved."""

from __future__ import annotations

import numpy as np
import torch
from check_method import Case
from contract_scenes import ROWS, Scene, poisoned, token_rows

from glasshouse.attribution import LoGra, TokenUnits


def logra() -> Case:
    def make(batch: int | None = None) -> LoGra:
        return LoGra(4, dtype="float32", batch_rows=batch or 512)

    def units(one: Scene, count: int = ROWS) -> TokenUnits:
        return TokenUnits([token_rows()[i] for i in one.order[:count]], side=one.side)

    def fit(method: LoGra, one: Scene) -> LoGra:
        method.batch_rows = one.batch or method.batch_rows
        return method.fit(one.subject, units(one))

    def answer(method: LoGra, one: Scene) -> np.ndarray:
        asked = TokenUnits(token_rows()[:3], side=one.side)
        return one.sorted_back(method.score(asked).scores)

    return Case(
        "LoGra", LoGra, make, fit, answer,
        options={
            "rank": 3, "init": "pca", "curvature": "ekfac", "damping": 0.25, "damping_share": 0.01,
            "mode": "cosine",
            "dtype": "bfloat16", "scaling": "none", "share": ["transformer.h.*.mlp.c_fc"], "unit": "token",
            "modules": ["transformer.h.*.mlp.*"], "seed": 5, "batch_tokens": 99, "batch_rows": 4, "shards": 2,
            "force_bf16": True,
        },
        own={"unit": "row"},
        other=lambda method, one: method.fit(one.subject, units(one, 9)).score(token_rows()[:2]),
        uses=(
            lambda m, one, at: m.score(token_rows()[:2]), lambda m, one, at: m.search(token_rows()[:2]),
            lambda m, one, at: m.self_score(), lambda m, one, at: m.explain(0, 0),
            lambda m, one, at: m.per_token(0, 0), lambda m, one, at: m.cost(2), lambda m, one, at: m.whiten(),
            lambda m, one, at: m.query_vectors(token_rows()[:2]), lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: LoGra.load(at, one.subject, units(one)),
        empty=(
            lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).score([]),
            lambda one: fit(make(), one).score(token_rows()[:1], candidates=[]),
        ),
        nan=(
            lambda one: answer(fit(make(), poisoned()), one),
            lambda one: LoGra(2).fit(torch.nn.Linear(4, 2), _points(bad=True)),
            lambda one: LoGra(2).fit(torch.nn.Linear(4, 2), _points()).score(_points(bad=True)),
        ),
        apart={
            "a_clean_subject_gives_no_finding":
                "scores rank rows on any subject; the check `guilty rows` decides what is a finding",
        },
    )  # fmt: skip


def _points(*, bad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    if bad:
        x[3, 1] = float("nan")
    return x, torch.tensor([0, 1] * 4)
