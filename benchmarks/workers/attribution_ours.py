"""Our worker: any method of `glasshouse.attribution` through its common call, on the arrays of a case."""

from __future__ import annotations

import numpy as np
import torch
from attribution_case import (
    CASE,
    IS_LM,
    METHOD,
    OUT,
    SPEC,
    arrays,
    clocked,
    finish,
    folder_bytes,
    load_model,
    stage,
)

from glasshouse.attribution.base import versions
from glasshouse.corpora.rows import IGNORE, TokenRow

STAGES = {
    "covariance": "fit", "eigen": "fit", "lambda": "fit", "curvature": "fit", "kernel": "fit",
    "log": "log", "features": "log", "queries": "score", "scores": "score",
}  # fmt: skip
"""Which of the three stages a stage of ours belongs to."""

TRAK_COSTS = {"covariance": "log", "eigen": "fit", "lambda": "fit", "scores": "score"}
"""Under which names TRAK says the cost of its stages."""


def rows(part: str):
    if not IS_LM:
        return arrays(part)
    ids = np.load(CASE / "data.npz")[f"{part}_ids"].tolist()
    return [TokenRow(tuple(row), (IGNORE, *row[1:]), str(i)) for i, row in enumerate(ids)]


def make(model: torch.nn.Module):
    common = {
        "modules": SPEC["modules"],
        "batch_tokens": SPEC["batch"] * SPEC["t"],
        "batch_rows": SPEC["batch"],
    }
    name, _, choice = METHOD.partition("@")[0].partition("-")
    if name == "ekfac":
        from glasshouse.attribution import EKFAC

        damping = float(choice) if choice else "auto"
        return EKFAC(label_mode="empirical", damping=damping, **common)
    if name == "logra":
        from glasshouse.attribution.logra import LoGra

        return LoGra(SPEC["rank"], curvature=None if choice == "dot" else "raw", **common)
    if name == "trak":
        from glasshouse.attribution.trak import TRAK

        return TRAK(dim=SPEC["dim"], damping=float(choice or 0.0), **common)
    from glasshouse.attribution.checkpoints import Checkpoint
    from glasshouse.attribution.source import SOURCE

    run = [
        Checkpoint(load_model(weights=CASE / point["path"]), point["step"], point["lr"])
        for point in SPEC["checkpoints"]
    ]
    return SOURCE(
        run, segments=SPEC["segments"], label_mode="empirical", momentum=SPEC["momentum"],
        weight_decay=SPEC["decay"], loss_scale=SPEC["loss_scale"], **common,
    )  # fmt: skip


def main():
    model, train, query = load_model(), rows("train"), rows("query")
    method = make(model)
    versions(type(method).__module__)  # the hash of our own source is made once a process, as imports are
    with stage("all"):
        method.fit(model, train)
        table = method.score(query, "loss" if IS_LM or METHOD.endswith("@loss") else "margin")
    seconds = {"fit": 0.0, "log": 0.0, "score": 0.0}
    for name, spent in method.seconds_.items():
        seconds[STAGES[name]] += spent
    # Checks and hashes of model and data are in no stage of ours: they count for the first one.
    seconds["log" if seconds["log"] else "fit"] += clocked("all") - sum(seconds.values())
    flops = {"fit": 0.0, "log": 0.0, "score": 0.0, "eigen": 0.0}
    for name, count in method.cost(SPEC["q"]).items():
        if name in STAGES:
            where = TRAK_COSTS.get(name, name) if METHOD.startswith("trak") else STAGES[name]
            # Eigenproblems are solved in float64, at another rate.
            flops["eigen" if name == "eigen" and where == "fit" and METHOD[:4] != "trak" else where] += count
    folder = method.save(OUT / "kept")
    finish(table.scores, kept=folder_bytes(folder), seconds=seconds, flops=flops, stages=method.seconds_)


main()
