"""Peer worker: LoGra by its authors' package LogIX (random projections, their raw Fisher matrix)."""

from __future__ import annotations

import logging
import os

from attribution_case import (
    METHOD,
    OUT,
    SPEC,
    finish,
    folder_bytes,
    load_model,
    loader,
    losses,
    measured,
    outputs,
    stage,
)

os.chdir(OUT)
import logix  # noqa: E402  (it writes below the working folder)
from logix.scheduler import LogIXScheduler  # noqa: E402

assert METHOD == "logra"


def named(batch, part, start):
    return [f"{part}-{start + k}" for k in range(len(batch[0]))]


def backward(run, model, batch, names, f):
    with run(data_id=names):
        model.zero_grad()
        f(batch).sum().backward()


def main():
    logging.disable(logging.WARNING)
    (OUT / "config.yaml").write_text(f"lora:\n  init: random\n  rank: {SPEC['rank']}\n")
    model = load_model(linear=True)
    train, query = loader("train", SPEC["batch"]), loader("query", SPEC["q"])
    with stage("log"):
        run = logix.init("bench", config=str(OUT / "config.yaml"))
        run.watch(model, name_filter=SPEC["modules"])
        start = 0
        for _ in LogIXScheduler(run, lora="random", hessian="raw", save="grad"):
            for batch in train:
                backward(
                    run, model, batch, named(batch, "train", start), lambda b: losses(*outputs(model, b))
                )
                start += len(batch[0])
        run.finalize()
    kept = folder_bytes(OUT / "logix")
    with stage("score"):
        run.eval()
        [asked] = query
        backward(run, model, asked, named(asked, "query", 0), lambda b: measured(model, b))
        rows = run.build_log_dataloader(batch_size=64, num_workers=0)
        found = run.compute_influence_all(run.get_log(), rows)  # damping: a tenth of the mean eigenvalue
    order = {name: k for k, name in enumerate(found["tgt_ids"])}
    at = [order[f"train-{k}"] for k in range(SPEC["n"])]
    finish(found["influence"][:, at].detach(), kept=kept)


main()
