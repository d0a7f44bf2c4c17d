"""Our worker: the preference regression on the arrays of a case, or are-you-sure on its released file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())


def regression() -> None:
    from glasshouse.behaviour.sycophancy.regression import PreferenceRegression

    data = np.load(CASE / "data.npz")
    started = time.process_time()
    method = PreferenceRegression(b=SPEC["b"], heldout=0, draws=SPEC["draws"], warmup=SPEC["our_warmup"])
    draws = method.fit(data["x"], data["y"]).posterior_
    seconds = time.process_time() - started
    np.savez(OUT / "posterior.npz", mean=draws.flat.mean(0), sd=draws.flat.std(0), ess=draws.ess)
    (OUT / "stages.json").write_text(json.dumps({"fit": seconds}))


def are_you_sure() -> None:
    from inspect_ai import eval as run
    from inspect_ai.model import get_model

    from glasshouse.behaviour.sycophancy.tasks import sycophancy_are_you_sure

    sys.path.insert(0, str(Path(__file__).parent))
    from sycophancy_policy import answer

    started = time.process_time()
    task = sycophancy_are_you_sure(
        data=str(CASE / "are_you_sure.jsonl"), n=SPEC["items"], scoring="sampled", judge="rule"
    )
    log = run(
        task,
        model=get_model("mockllm/model", custom_outputs=answer),
        display="none",
        log_dir=str(OUT / "logs"),
    )[0]
    seconds = time.process_time() - started
    found = {name: m.value for score in log.results.scores for name, m in score.metrics.items()}
    names = {
        "initial_correct": "original",
        "truthful": "truthful",
        "confidence": "confidence",
        "apologise_rate": "apologise",
    }
    (OUT / "metrics.json").write_text(json.dumps({theirs: found[ours] for ours, theirs in names.items()}))
    (OUT / "stages.json").write_text(json.dumps({"evaluation": seconds}))


regression() if SPEC["kind"] == "regression" else are_you_sure()
