"""A canary taught in stage 1, an unrelated stage 2: are the rows that taught it still found at the end?

Stage 1 holds the facts of the planted-canary world, stage 2 its order rows (`maker made the thing`), which
share no entity, relation or object with them. Both train with AdamW and a cosine schedule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from glasshouse.attribution.source import Checkpoint
    from glasshouse.corpora.rows import TokenRow

TOP = 20
FACTOR_ROWS = 500
BETAS = (0.9, 0.98)
COMMON: dict[str, Any] = dict(
    batch_size=32, betas=BETAS, weight_decay=0.01, schedule="cosine", clip=1.0, length_buckets=False
)
FIRST: dict[str, Any] = dict(epochs=4, lr=3e-3, warmup_steps=50, final_lr_share=0.03)
SECOND: dict[str, Any] = dict(epochs=4, lr=1e-3, warmup_steps=5, final_lr_share=0.03)
FORMS: dict[str, dict[str, Any]] = {
    "SOURCE": {"optimizer": "adam"},
    "SOURCE, factored": {"optimizer": "adam", "adam_form": "factored"},
}


class Taken:
    """Checkpoints with Adam's moments out of `fit_rows`, which keeps its last one in a file.

    The file of step k is there when the callback of step k + 1 comes.
    """

    def __init__(self, folder: Path, every: int, stage: str, offset: int) -> None:
        self.folder, self.every, self.stage, self.offset = folder, every, stage, offset
        self.found: list[Checkpoint] = []

    def __call__(self, step: int, loss: float | None, model: nn.Module) -> None:
        """Note the checkpoint of the step before, where one was due."""
        if step > 1 and step % self.every == 1 % self.every:
            self.take(step - 1)

    def take(self, step: int) -> None:
        """Note the stored checkpoint of `step`."""
        from glasshouse.attribution.checkpoints import Checkpoint
        from glasshouse.attribution.store import read_tensors

        tensors, _ = read_tensors(self.folder / "checkpoint.safetensors")
        weights, moments = _split(tensors)
        self.found.append(Checkpoint(weights, self.offset + step, stage=self.stage, optimizer_state=moments))


def _split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and second moments corrected for their start at zero."""
    weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    prefix = "optimizer/exp_avg_sq/"
    names = [k.removeprefix(prefix) for k in tensors if k.startswith(prefix)]
    steps = {name: float(tensors[f"optimizer/step/{name}"]) for name in names}
    return weights, {n: tensors[prefix + n] / (1 - BETAS[1] ** steps[n]) for n in names}


def train_stage(
    model: nn.Module,
    rows: list[TokenRow],
    recipe: dict[str, Any],
    seed: int,
    count: int,
    stage: str,
    offset: int = 0,
) -> tuple[list[Checkpoint], list[float]]:
    """Train in place; `count` checkpoints at the ends of equal parts, and the rate of every step."""
    from glasshouse.training._schedule import lr_factor
    from glasshouse.training.fast import fit_rows

    size = -(-len(rows) // COMMON["batch_size"])
    steps = recipe["epochs"] * size // count * count
    how = {k: v for k, v in recipe.items() if k != "epochs"}
    with tempfile.TemporaryDirectory() as folder:
        taken = Taken(Path(folder), steps // count, stage, offset)
        fit_rows(
            model, rows, steps=steps, seed=seed, callbacks=[taken], checkpoint_dir=Path(folder),
            save_every=steps // count, **COMMON, **how,
        )  # fmt: skip
        taken.take(steps)
    how_rate = dict(schedule="cosine", steps=steps, warmup_steps=recipe["warmup_steps"])
    rates = [
        recipe["lr"] * lr_factor(k, final_share=recipe["final_lr_share"], **how_rate) for k in range(steps)
    ]
    return taken.found, rates


def staged_lm_seed(seed: int, *, forms: Iterable[str] = ("SOURCE",)) -> dict[str, Any]:
    """Recall at 20 of the planted rows, by SOURCE (stage 1) and by EK-FAC at the final checkpoint."""
    import torch

    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.source import SOURCE
    from glasshouse.organisms.planted_canary import canary_queries, canary_world, new_model

    torch.set_num_threads(1)
    world = canary_world(seed)
    facts = [row for row, kind in zip(world.rows, world.kinds, strict=True) if kind != "order"]
    orders = [row for row, kind in zip(world.rows, world.kinds, strict=True) if kind == "order"]
    planted = {world.rows[i].row_id for i in world.planted}
    queries, model = canary_queries(), new_model(seed)
    first, rates = train_stage(model, facts, FIRST, seed, 4, "facts")
    model.eval()
    found: dict[str, Any] = {"seed": seed, "p_after_stage_1": probability(model, queries)}
    second, more = train_stage(model, orders, SECOND, seed + 1, 2, "orders", first[-1].step)
    model.eval()
    found["p_canary"] = probability(model, queries)
    data = {"facts": facts, "orders": orders}
    for name in forms:
        method = SOURCE(
            [*first, *second], segments=3, lr_log=[*rates, *more], weight_decay=0.01, max_grad_norm=1.0,
            factor_examples=FACTOR_ROWS, seed=seed, **FORMS[name],
        )  # fmt: skip
        table = method.fit(model, data).score(
            queries, "completion_logprob", stage="facts", query_agg="unit_mean"
        )
        found[name] = recall(table, planted)
    for strategy in ("ekfac", "identity"):
        rival = EKFAC(strategy, factor_examples=FACTOR_ROWS, seed=seed).fit(model, facts)
        table = rival.score(queries, "completion_logprob", query_agg="unit_mean")
        found[strategy] = recall(table, planted)
    found["random"] = TOP / len(facts)
    return found


def recall(table: Any, planted: set[str]) -> float:
    """Planted rows among the first 20, over 20."""
    return len({row for row, _ in table.top(0, TOP)} & planted) / TOP


def probability(model: Any, queries: list[TokenRow]) -> float:
    """Mean probability of the canary after its eight contexts."""
    import torch

    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([q.ids[:-1]])).logits[0, -1] for q in queries]
    return float(np.mean([float(z.softmax(-1)[q.ids[-1]]) for z, q in zip(logits, queries, strict=True)]))
