"""Our worker: `score` of the `glasshouse/` provider on the items of a case, CPU seconds per batch size."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from glasshouse.evaluation.provider import GlasshouseAPI

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])


def main() -> None:
    spec = json.loads((CASE / "case.json").read_text())
    items = json.loads((CASE / "items.json").read_text())
    prompts = [item["prompt"] for item in items for _ in item["options"]]
    said = [option for item in items for option in item["options"]]
    stages = {}
    for batch in spec["our_batches"]:
        api = GlasshouseAPI(spec["model"], device="cpu", dtype="fp32", batch_tokens=batch)
        asyncio.run(api.score(prompts[:8], said[:8]))  # first calls allocate
        start = time.process_time()
        found = asyncio.run(api.score(prompts, said))
        stages[f"batch_tokens={batch}"] = time.process_time() - start
        np.save(OUT / f"scores-{batch}.npy", np.array([one.total for one in found]))
    (OUT / "stages.json").write_text(json.dumps(stages))


if __name__ == "__main__":
    main()
