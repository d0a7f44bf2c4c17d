"""Peer worker: EK-FAC, LoGra and TRAK by dattri."""

from __future__ import annotations

import torch
from attribution_case import (
    IS_LM,
    METHOD,
    SPEC,
    arrays,
    finish,
    lm_logits,
    load_model,
    loader,
    losses,
    margins,
    stage,
    tensor_bytes,
)
from dattri.task import AttributionTask

MODEL = load_model(linear=True)
NAME, _, CHOICE = METHOD.partition("-")


def called(params, data, reduce):
    """`reduce` of logits and labels under `params`; rows may come alone, without a batch axis."""
    if IS_LM:
        ids = data[0] if isinstance(data, (tuple, list)) else data
        ids = ids if ids.ndim == 2 else ids.unsqueeze(0)
        logits = torch.func.functional_call(MODEL, params, kwargs={"input_ids": ids}).logits
        return reduce(logits[:, :-1].float(), ids[:, 1:])
    x, y = data
    x, y = (x, y) if x.ndim == 2 else (x.unsqueeze(0), y.unsqueeze(0))
    return reduce(torch.func.functional_call(MODEL, params, x), y)


def mean_loss(params, data):
    return called(params, data, losses).mean()


def margin(params, data):
    return called(params, data, margins).sum()


def probability(params, data):
    return torch.exp(-called(params, data, losses)).squeeze()


def text_probability(params, data):
    def mean_p(logits, labels):
        return logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).mean((1, 2))

    return called(params, data, mean_p).squeeze()


class Images(torch.nn.Module):
    """LoGra shows the model one image without its batch axis before it begins."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x if x.ndim == 2 else x.unsqueeze(0))


def logra_loss(model, batch, device):
    logits, labels = lm_logits(model, batch["input_ids"]) if IS_LM else (model(batch[0]), batch[1])
    return losses(logits, labels).sum()


def logra_loader(part, size):
    """Texts come as dicts that are the model's arguments."""
    if not IS_LM:
        return loader(part, size)
    rows = [{"input_ids": row, "labels": row} for row in arrays(part)[0]]
    return torch.utils.data.DataLoader(rows, batch_size=size)


def make():
    points = MODEL.state_dict()
    if NAME == "ekfac":
        from dattri.algorithm.influence_function import IFAttributorEKFAC

        # The Fisher pass asks the target function for the mean loss of a batch; gradients of queries come
        # from the same function, so that queries are measured by their loss.
        task = AttributionTask(loss_func=mean_loss, model=MODEL, checkpoints=points)
        # A mean over B rows makes every curvature B^2 times smaller, and so must be what is added to it.
        damping = float(CHOICE) / SPEC["batch"] ** 2
        return IFAttributorEKFAC(task=task, module_name=SPEC["modules"], device="cpu", damping=damping)
    if NAME == "logra":
        from dattri.algorithm.logra import LoGraAttributor

        # Whatever the target function, its queries are measured by the mean cross-entropy of their batch.
        model = MODEL if IS_LM else Images(MODEL)
        task = AttributionTask(loss_func=logra_loss, model=model, checkpoints=model.state_dict())
        names = SPEC["modules"] if IS_LM else [f"net.{name}" for name in SPEC["modules"]]
        return LoGraAttributor(
            task=task, layer_names=names, hessian="eFIM", damping=SPEC["logra_damping"], device="cpu",
            proj_dim=SPEC["rank"] ** 2, offload="none",
        )  # fmt: skip
    from dattri.algorithm.trak import TRAKAttributor

    tracked = [f"{name}.{kind}" for name in SPEC["modules"] for kind in ("weight", "bias")]
    task = AttributionTask(loss_func=margin, target_func=margin, model=MODEL, checkpoints=points)
    return TRAKAttributor(
        task=task, correct_probability_func=text_probability if IS_LM else probability, layer_name=tracked,
        projector_kwargs={"proj_dim": SPEC["dim"], "device": "cpu"}, device="cpu",
    )  # fmt: skip


def main():
    method = make()
    size = SPEC["trak_batch"] if NAME == "trak" else SPEC["batch"]
    load = logra_loader if NAME == "logra" else loader
    train, query = load("train", size), load("query", SPEC["q"])
    with stage("fit" if NAME == "ekfac" else "log"):
        method.cache(train)
    held = vars(method.offload_manager if NAME == "logra" else method)
    kept = tensor_bytes([value for key, value in held.items() if "task" not in key])
    with stage("score"):
        found = method.attribute(query) if NAME == "trak" else method.attribute(train, query)
    finish(found.detach().T, kept=kept)


main()
