"""Our worker: `glasshouse.attribution.EKFAC` on the arrays of a case, CPU seconds per stage."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from glasshouse.attribution import EKFAC
from glasshouse.corpora.rows import IGNORE, TokenRow

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())


def load_mlp():
    sizes = SPEC["sizes"]
    model = nn.Sequential(*[m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())][:-1])
    weights = np.load(CASE / "weights.npz")
    model.load_state_dict({k: torch.from_numpy(weights[k]) for k in weights.files})
    data = np.load(CASE / "data.npz")
    parts = [tuple(torch.from_numpy(data[f"{part}_{k}"]) for k in ("x", "y")) for part in ("train", "query")]
    return model.eval(), *parts


def load_gpt2():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CASE / "model").eval()
    data = np.load(CASE / "data.npz")
    parts = [
        [
            TokenRow(tuple(row), (IGNORE, *row[1:]), str(i))
            for i, row in enumerate(data[f"{part}_ids"].tolist())
        ]
        for part in ("train", "query")
    ]
    return model, *parts


def main():
    model, train, query = load_mlp() if SPEC["kind"] == "mlp" else load_gpt2()
    method = EKFAC(
        label_mode="empirical",
        damping="auto",
        modules=SPEC["modules"],
        batch_tokens=SPEC["batch"] * SPEC["t"],
    )
    table = method.fit(model, train).score(query, "loss")
    np.save(OUT / "scores_in_peer_convention.npy", table.to_kronfluence())
    (OUT / "stages.json").write_text(json.dumps(method.seconds_))


main()
