"""The roster on the planted canary: recall of the rows that alone taught it, and the token-order control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glasshouse.attribution.checkpoints import Checkpoint
    from glasshouse.organisms.planted_canary import CanaryWorld

TOP = 20
PATH = 3
BATCH = 32
RECIPE: dict[str, Any] = {
    "lr": 3e-3, "betas": (0.9, 0.98), "weight_decay": 0.01, "warmup_steps": 50, "schedule": "cosine",
    "final_lr_share": 0.03, "clip": 1.0, "length_buckets": False,
}  # fmt: skip
"""That of `grow_canary_model`, which cannot be watched (a test compares the weights)."""
FACTOR_ROWS = 2000


def canary_seed(seed: int, epochs: float) -> dict[str, Any]:
    """Recall at 20 of every method (one averaged query), and the share of scores that outlives shuffling."""
    import torch

    from glasshouse.attribution.evaluate import token_order
    from glasshouse.organisms.planted_canary import canary_queries, canary_world

    torch.set_num_threads(1)
    world = canary_world(seed)
    model, path = watched_canary(world, seed, epochs=epochs)
    asked, planted = canary_queries(), {world.rows[i].row_id for i in world.planted}
    found: dict[str, Any] = {"seed": seed, "random": TOP / len(world.rows), "recall": {}, "order": {}}
    for name, method in _methods(seed, path).items():
        how = "mean" if name in ("BM25", "representation") else "unit_mean"
        fitted = method.fit(model, world.rows)
        table = fitted.score(asked, query_agg=how)
        found["recall"][name] = _recall(table, planted, seed)
        if name in ("EK-FAC", "gradient dot", "representation", "BM25"):
            top = [world.rows[table.train_ids.index(row)] for row, _ in table.top(0, TOP)]
            found["order"][name] = token_order(fitted, asked, top, k=TOP, query_agg=how).value
    return found


def _methods(seed: int, path: list[Checkpoint]) -> dict[str, Any]:
    from glasshouse.attribution import BM25, EKFAC, TRAK, RepresentationSimilarity, TracIn
    from glasshouse.attribution.logra import LoGra

    return {
        "gradient dot": EKFAC("identity"),
        "EK-FAC": EKFAC(factor_examples=FACTOR_ROWS, seed=seed),
        "LoGra, rank 32": LoGra(32, seed=seed),
        "TracIn, 3 checkpoints": TracIn(path),
        "TRAK, 1 model": TRAK(dim=1024, projection="kronecker", seed=seed),
        "representation": RepresentationSimilarity(pooling="mean"),
        "BM25": BM25(),
    }


def _recall(table: Any, planted: set[str], seed: int) -> float:
    from glasshouse.attribution.evaluate import recall_of

    return recall_of(table, planted, TOP, seed=seed).value


def watched_canary(
    world: CanaryWorld, seed: int, *, epochs: float = 4
) -> tuple[PreTrainedModel, list[Checkpoint]]:
    """The organism's model, weight for weight, and the ends of three equal parts of its training."""
    from glasshouse.attribution.checkpoints import Checkpoint
    from glasshouse.organisms.planted_canary import new_model
    from glasshouse.training.fast import fit_rows

    path: list[Checkpoint] = []
    steps = int(epochs * -(-len(world.rows) // BATCH))
    at = {round(steps * (k + 1) / PATH) for k in range(PATH)}

    def keep(step: int, loss: float | None, model: Any) -> None:
        if step in at:
            # Equal weights: AdamW's step is not its rate times the gradient, so rates mean little here.
            path.append(Checkpoint(model, step, 1.0, lr_sum=1.0))

    model = new_model(seed)
    fit_rows(model, world.rows, epochs=epochs, batch_size=BATCH, seed=seed, callbacks=[keep], **RECIPE)
    return model.eval(), path
