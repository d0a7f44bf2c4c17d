"""Peer worker: EK-FAC by kronfluence on the arrays of a case. Runs in the peer's environment only."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
CASE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
SPEC = json.loads((CASE / "case.json").read_text())


class Classification(Task):
    def compute_train_loss(self, batch, model, sample=False):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


class LanguageModel(Task):
    def compute_train_loss(self, batch, model, sample=False):
        logits = model(input_ids=batch[0]).logits[:, :-1].float()
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), batch[0][:, 1:].reshape(-1), reduction="sum"
        )

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return SPEC["modules"]


def dataset(data, part, *names):
    return torch.utils.data.TensorDataset(*(torch.from_numpy(data[f"{part}_{name}"]) for name in names))


def load_mlp():
    sizes = SPEC["sizes"]
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())][:-1]
    model = nn.Sequential(*layers)
    weights = np.load(CASE / "weights.npz")
    model.load_state_dict({k: torch.from_numpy(weights[k]) for k in weights.files})
    data = np.load(CASE / "data.npz")
    return model, Classification(), dataset(data, "train", "x", "y"), dataset(data, "query", "x", "y")


def load_gpt2():
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(CASE / "model")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape)
                linear.weight.data = child.weight.data.T.contiguous()
                linear.bias.data = child.bias.data
                setattr(parent, name, linear)
    data = np.load(CASE / "data.npz")
    return model.eval(), LanguageModel(), dataset(data, "train", "ids"), dataset(data, "query", "ids")


def main():
    model, task, train, query = load_mlp() if SPEC["kind"] == "mlp" else load_gpt2()
    model = prepare_model(model, task)
    analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=str(OUT / "influence"))
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    scores = ScoreArguments(damping_factor=None)
    batch, stages = SPEC["peer_batch"], {}

    def timed(stage, call, *args, **kwargs):
        start = time.process_time()
        result = call(*args, **kwargs)
        stages[stage] = time.process_time() - start
        return result

    common = dict(per_device_batch_size=batch, factor_args=factors, overwrite_output_dir=True)
    timed("covariance", analyzer.fit_covariance_matrices, "f", train, **common)
    timed("eigen", analyzer.perform_eigendecomposition, "f", factor_args=factors, overwrite_output_dir=True)
    timed("lambda", analyzer.fit_lambda_matrices, "f", train, **common)
    timed(
        "scores", analyzer.compute_pairwise_scores, "s", "f", query, train, len(query), batch,
        score_args=scores, overwrite_output_dir=True,
    )  # fmt: skip
    np.save(OUT / "scores.npy", analyzer.load_pairwise_scores("s")["all_modules"].float().numpy())
    (OUT / "stages.json").write_text(json.dumps(stages))


main()
