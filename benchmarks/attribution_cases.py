"""The two cases of `benchmarks.attribution`, written to disk for worker processes of any environment.

`mlp`: 784-64-64-10 trained on 800 Fashion-MNIST images, 60 queries, the studies' retrain bank beside it.
`gpt2`: 6 layers, d = 256, V = 2,000, rows of 128 tokens, 16 queries; trained for a few steps, since only
shapes matter. `gpt2-512` holds 512 rows; `gpt2-64` holds 64, for SOURCE, which goes over them at each
checkpoint.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

RANK = 16
"""Of both projections of LoGra; peers take its square."""

DIM = {"mlp": 512, "gpt2-512": 256}
"""Width of TRAK's projection: below the number of rows, above the 200 under which one peer stops."""

LAYERS, WIDTH, VOCAB, LENGTH, QUERIES, BATCH = 6, 256, 2000, 128, 16, 32
POINTS = 6
"""Checkpoints that SOURCE gets on the MLP."""


def build(name: str, folder: Path) -> dict:
    """Write the case into `folder` and return its description, which is also its `case.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = _mlp(folder) if name == "mlp" else _gpt2(folder, int(name.partition("-")[2]))
    spec |= {"name": name, "rank": RANK, "dim": DIM.get(name, 0), "logra_damping": 1e-3}
    (folder / "case.json").write_text(json.dumps(spec))
    return spec


def bank(folder: Path) -> None:
    """`bank.npz`: masks [m, N] and values [m, R, Q] of the converged models, from the cache."""
    from glasshouse.runtime.cache import Cache
    from glasshouse.runtime.progress import Progress
    from glasshouse.runtime.runs import Run
    from glasshouse.studies.attribution.fashion import CONVERGED, shared_bank

    class Lab:
        """What `shared_bank` asks of a lab."""

        cache, progress = Cache(), Progress("off")

    with Run.open(folder / "runs", "bank", {}) as run:
        Lab.run = run
        found = shared_bank(Lab, CONVERGED)
    np.savez(folder / "bank.npz", masks=found.masks, values=found.values)


def _mlp(folder: Path) -> dict:
    import torch

    from glasshouse.studies.attribution.fashion import CONVERGED, queries, train_mlp, train_rows

    (x, y), _ = train_rows(CONVERGED)
    qx, qy = queries()
    parts = {"train_x": x, "train_y": y, "query_x": qx, "query_y": qy}
    np.savez(folder / "data.npz", **{name: part.numpy() for name, part in parts.items()})
    steps = CONVERGED.epochs * (len(x) // CONVERGED.batch)
    at = {round(steps * (k + 1) / POINTS) for k in range(POINTS)}
    points = []

    def keep(model: torch.nn.Module, done: int) -> None:
        if done in at:
            path = f"step-{done}.npz"
            np.savez(folder / path, **{k: v.numpy() for k, v in model.state_dict().items()})
            points.append({"path": path, "step": done, "steps": steps // POINTS, "lr": CONVERGED.rate})

    model = train_mlp(x, y, 0, CONVERGED, on_step=keep)
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    sizes = [784, 64, 64, 10]
    return {"kind": "mlp", "sizes": sizes, "n": len(x), "q": len(qx), "t": 1, "batch": 400, "trak_batch": 400,
            "modules": [str(2 * k) for k in range(3)], "shapes": [(i + 1, o) for i, o in pairwise(sizes)],
            "extra": 0, "checkpoints": points, "segments": 3, "momentum": CONVERGED.momentum,
            "decay": CONVERGED.decay, "loss_scale": 1.0}  # fmt: skip


def _gpt2(folder: Path, n: int) -> dict:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    # One peer takes no batch of more tokens than the model has positions.
    config = GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=VOCAB, n_positions=BATCH * LENGTH,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    rng = np.random.default_rng(0)
    p = 1.0 / np.arange(
        1, VOCAB + 1
    )  # Zipf-like, so that covariances have a spread of eigenvalues as text has

    def draw(rows: int) -> np.ndarray:
        return rng.choice(VOCAB, size=(rows, LENGTH), p=p / p.sum()).astype(np.int64)

    query, train = draw(QUERIES), draw(n)
    np.savez(folder / "data.npz", train_ids=train, query_ids=query)
    points, lr, steps = [], 0.05, 4
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for k in range(2):  # two checkpoints of a short run
        for step in range(steps):
            ids = torch.from_numpy(train[(8 * step) % n : (8 * step) % n + 8])
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        path = f"checkpoint-{(k + 1) * steps}"
        _save(model, folder / path)
        points.append({"path": path, "step": (k + 1) * steps, "steps": steps, "lr": lr})
    _save(model, folder / "model")
    shapes = {
        "attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH),
        "mlp.c_fc": (WIDTH, 4 * WIDTH), "mlp.c_proj": (4 * WIDTH, WIDTH),
    }  # fmt: skip
    modules = [
        (f"transformer.h.{k}.{name}", i + 1, o) for k in range(LAYERS) for name, (i, o) in shapes.items()
    ]
    return {"kind": "gpt2", "n": n, "q": QUERIES, "t": LENGTH, "batch": BATCH, "trak_batch": BATCH,
            "modules": [m[0] for m in modules], "shapes": [m[1:] for m in modules],
            "extra": VOCAB * WIDTH + 2 * LAYERS * LENGTH * WIDTH, "checkpoints": points, "segments": 2,
            "momentum": 0.0, "decay": 0.0, "loss_scale": 1.0 / (LENGTH - 1)}  # fmt: skip


def _save(model: object, folder: Path) -> None:
    """The model with a tokenizer, which one peer insists on opening."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{k}": k for k in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w0",
                            model_max_length=BATCH * LENGTH).save_pretrained(folder)  # fmt: skip
