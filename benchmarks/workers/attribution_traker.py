"""Peer worker: TRAK by its authors' package (one model, its own CPU projector)."""

from __future__ import annotations

import logging

import torch
from attribution_case import (
    IS_LM,
    METHOD,
    OUT,
    SPEC,
    arrays,
    finish,
    folder_bytes,
    lm_logits,
    load_model,
    margins,
    stage,
)
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

assert METHOD == "trak"


class TextMargin(AbstractModelOutput):
    """The margin summed over a text's tokens; the weight is the mean of 1 - p over them."""

    def __init__(self):
        super().__init__()

    @staticmethod
    def get_output(model, weights, buffers, ids):
        logits = torch.func.functional_call(
            model, (weights, buffers), kwargs={"input_ids": ids.unsqueeze(0)}
        ).logits
        return margins(logits[:, :-1].float(), ids[None, 1:]).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch):
        with torch.no_grad():
            logits, labels = lm_logits(model, batch[0])
            p = logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return (1 - p).mean(1, keepdim=True)


def main():
    model, train, query = load_model(), arrays("train"), arrays("query")
    task = TextMargin() if IS_LM else "image_classification"
    tracked = [f"{name}.{kind}" for name in SPEC["modules"] for kind in ("weight", "bias")]
    state, size = model.state_dict(), SPEC["trak_batch"]
    with stage("log"):
        traker = TRAKer(
            model=model, task=task, train_set_size=len(train[0]), save_dir=str(OUT / "trak"), device="cpu",
            proj_dim=SPEC["dim"], use_half_precision=False, logging_level=logging.ERROR, grad_wrt=tracked,
        )  # fmt: skip
        traker.load_checkpoint(state, model_id=0)
        for batch in zip(*(part.split(size) for part in train), strict=True):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
    with stage("fit"):
        traker.finalize_features()
    kept = folder_bytes(OUT / "trak")
    with stage("score"):
        traker.start_scoring_checkpoint("asked", state, model_id=0, num_targets=len(query[0]))
        for batch in zip(*(part.split(size) for part in query), strict=True):
            traker.score(batch=batch, num_samples=len(batch[0]))
        found = traker.finalize_scores("asked")
    finish(found.T, kept=kept)


main()
