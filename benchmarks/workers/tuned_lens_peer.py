"""Peer worker: a tuned lens by tuned-lens 0.2.0 on the rows of a case. Runs in the peer's environment only.

The steps are those of the package's own training command, in fp32 instead of its bfloat16 autocast, on the
rows of each step as ours takes them. Held-out KL is measured the same way on both sides.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
from tuned_lens.nn.lenses import TunedLens

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())


def optimiser(lens, one):
    """The package's two optimisers, with its learning rates, decay and warm-up."""
    if one["opt"] == "sgd":
        opt = torch.optim.SGD(
            lens.parameters(), lr=one["lr_scale"] * 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        warm = 0
    else:
        opt = torch.optim.Adam(
            lens.parameters(), lr=one["lr_scale"] * 1e-3, betas=(0.9, 0.999), amsgrad=True, weight_decay=1e-3
        )
        warm = min(1000, one["steps"] // 5)
    return opt, get_linear_schedule_with_warmup(opt, warm, one["steps"] - warm)


def divergence(lens, model, rows):
    """KL of every layer [L], mean over all tokens."""
    with torch.no_grad():
        out = model(rows, output_hidden_states=True)
        final = out.logits.log_softmax(-1)
        return [
            float((final.exp() * (final - lens(h, idx=i).log_softmax(-1))).sum(-1).mean())
            for i, h in enumerate(out.hidden_states[:-1])
        ]


def train(model, rows, order, one):
    """One run: the lens."""
    lens = TunedLens.from_model(model)
    opt, scheduler = optimiser(lens, one)
    for which in order[: one["steps"]]:
        batch = rows[which]
        with torch.no_grad():
            out = model(batch, output_hidden_states=True)
        labels = out.logits.float().log_softmax(-1)
        for i, h in enumerate(out.hidden_states[:-1]):
            logits = lens(h, idx=i)
            loss = torch.sum(labels.exp() * (labels - logits.log_softmax(-1)), dim=-1).mean()
            loss.detach().item()  # logged, as the package does
            loss.backward()
        torch.nn.utils.clip_grad_norm_(lens.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=False)
        scheduler.step()
    return lens


def main():
    model = AutoModelForCausalLM.from_pretrained(CASE / "model").float().eval().requires_grad_(False)
    rows = torch.from_numpy(np.load(CASE / "rows.npy"))
    held_out = torch.from_numpy(np.load(CASE / "held_out.npy"))
    runs, total = [], 0.0
    for one in SPEC["configs"]:
        order = np.load(CASE / f"order-{one['tokens']}.npy")
        start = time.process_time()
        lens = train(model, rows, order, one)
        seconds = time.process_time() - start
        runs.append({**one, "stage": "train", "seconds": seconds, "kl": divergence(lens, model, held_out)})
        total += seconds
    (OUT / "runs.json").write_text(json.dumps(runs))
    (OUT / "stages.json").write_text(json.dumps({"train": total}))


main()
