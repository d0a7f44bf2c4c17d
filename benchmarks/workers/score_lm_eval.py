"""The peer's worker: lm-eval's `HFLM.loglikelihood` on the items of a case, CPU seconds per batch size."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])


def requests(items: list[dict]) -> list[Instance]:
    pairs = [(item["prompt"], option) for item in items for option in item["options"]]
    return [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(pairs)
    ]


def main() -> None:
    spec = json.loads((CASE / "case.json").read_text())
    items = json.loads((CASE / "items.json").read_text())
    stages = {}
    for batch in spec["peer_batches"]:
        lm = HFLM(pretrained=spec["model"], device="cpu", dtype="float32", batch_size=batch)
        lm.loglikelihood(requests(items[:2]), disable_tqdm=True)
        start = time.process_time()
        found = lm.loglikelihood(requests(items), disable_tqdm=True)
        stages[f"batch_size={batch}"] = time.process_time() - start
        np.save(OUT / f"scores-{batch}.npy", np.array([logprob for logprob, _ in found]))
    (OUT / "stages.json").write_text(json.dumps(stages))


if __name__ == "__main__":
    main()
