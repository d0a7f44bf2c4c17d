"""What all attribution workers share: the case on disk, the clock, and how results are left.

Runs in the peers' environments too: torch, numpy and (for the language model) transformers only.
`python WORKER.py CASE_DIR OUT_DIR METHOD` leaves `scores.npy` [Q, N] and `stages.json`: CPU seconds of fit,
log and score, `peak` (bytes above the process with its model loaded) and `kept` (bytes of what stays between
fitting and scoring).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
CASE, OUT, METHOD = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
SPEC = json.loads((CASE / "case.json").read_text())
IS_LM = SPEC["kind"] == "gpt2"


# ── the case ─────────────────────────────────────────────────────────────────


def load_model(*, linear: bool = False, weights: Path | None = None) -> nn.Module:
    """The model in eval mode; `linear` turns GPT-2's Conv1D layers into Linear ones, as some peers need."""
    if not IS_LM:
        model = nn.Sequential(
            *[m for i, o in pairwise(SPEC["sizes"]) for m in (nn.Linear(i, o), nn.ReLU())][:-1]
        )
        stored = np.load(weights or CASE / "weights.npz")
        model.load_state_dict({k: torch.from_numpy(stored[k]) for k in stored.files})
        return model.eval()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(weights or CASE / "model").eval()
    return _with_linear(model) if linear else model


def _with_linear(model: nn.Module) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                layer = nn.Linear(*child.weight.shape)
                layer.weight.data = child.weight.data.T.contiguous()
                layer.bias.data = child.bias.data
                setattr(parent, name, layer)
    return model


def arrays(part: str) -> tuple[Tensor, ...]:
    """Inputs and labels of "train" or "query", or its token ids alone."""
    data = np.load(CASE / "data.npz")
    return tuple(torch.from_numpy(data[f"{part}_{key}"]) for key in (("ids",) if IS_LM else ("x", "y")))


def loader(part: str, batch: int):
    """A DataLoader in the order of the rows; batches are tuples, with labels for images."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*arrays(part)), batch_size=batch, shuffle=False)


# ── losses and measurements: sums per row ────────────────────────────────────


def lm_logits(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T-1, V] and the tokens [B, T-1] that they predict."""
    return model(input_ids=ids).logits[:, :-1].float(), ids[:, 1:]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row, summed over its tokens, [B]."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(len(labels), -1).sum(1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Log p - log(1 - p) of each row, summed over its tokens, [B]."""
    own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, labels.unsqueeze(-1), -torch.inf).logsumexp(-1)
    return (own - others).view(len(labels), -1).sum(1)


def outputs(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch of either case."""
    return lm_logits(model, batch[0]) if IS_LM else (model(batch[0]), batch[1])


def measured(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """What queries are asked: the margin of images, the loss of texts, [B]."""
    return (losses if IS_LM else margins)(*outputs(model, batch))


# ── the clock ────────────────────────────────────────────────────────────────

_seconds: dict[str, float] = {"fit": 0.0, "log": 0.0, "score": 0.0}
_start: list[int] = []


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the CPU seconds of the block, and of processes that ended in it, to stage `name`."""
    if not _start:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of imports and of loading is forgotten
        _start.append(_status("VmRSS"))
    begun = _cpu()
    try:
        yield
    finally:
        _seconds[name] = _seconds.get(name, 0.0) + _cpu() - begun


def clocked(name: str) -> float:
    """CPU seconds of a stage so far."""
    return _seconds[name]


def finish(
    scores: object, *, kept: float | None, seconds: dict[str, float] | None = None, **more: object
) -> None:
    """Write scores and stages. `seconds` replaces the clock's where a library measured itself."""
    peak = max(_status("VmHWM") - _start[0], 0)
    np.save(OUT / "scores.npy", np.asarray(scores, dtype=np.float32))
    found = {**_seconds, **(seconds or {}), "peak": peak, "kept": kept, **more}
    (OUT / "stages.json").write_text(json.dumps(found))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def tensor_bytes(tree: object) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(tree, Tensor):
        return tree.untyped_storage().nbytes()
    if isinstance(tree, dict):
        return sum(map(tensor_bytes, tree.values()))
    return sum(map(tensor_bytes, tree)) if isinstance(tree, list | tuple) else 0


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
