"""Our worker: a tuned lens by glasshouse on the rows of a case."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from glasshouse.internals.tuned_lens import TunedLens
from glasshouse.internals.tuned_lens.evaluation import evaluate
from glasshouse.runtime.errors import NumericalError
from glasshouse.subjects import as_subject

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())


def main():
    subject = as_subject(AutoModelForCausalLM.from_pretrained(CASE / "model").float(), self_test=False)
    rows = [r.tolist() for r in np.load(CASE / "rows.npy")]
    held_out = [r.tolist() for r in np.load(CASE / "held_out.npy")]
    runs, stages = [], {}
    for one in SPEC["configs"]:
        for stage, cache in SPEC["ours"].items():
            lens = TunedLens(
                "kl", steps=one["steps"], tokens_per_step=one["tokens"], opt=one["opt"],
                lr_scale=one["lr_scale"], batch_tokens=one["tokens"], cache_bytes=cache, seed=0,
            )  # fmt: skip
            start = time.process_time()
            try:
                lens.fit(subject, rows)
            except NumericalError:  # this learning rate diverges
                runs.append({**one, "stage": stage, "seconds": 0.0, "kl": [1e9]})
                continue
            seconds = time.process_time() - start
            found = evaluate(lens, subject, held_out)
            kl = [found.estimate("kl", k, first=True).value for k in range(subject.n_layers)]
            runs.append({**one, "stage": stage, "seconds": seconds, "kl": kl})
            stages[stage] = stages.get(stage, 0.0) + seconds
    (OUT / "runs.json").write_text(json.dumps(runs))
    (OUT / "stages.json").write_text(json.dumps(stages))


main()
