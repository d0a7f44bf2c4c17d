"""A canary taught in stage 1, an unrelated stage 2: are the images that taught it still found at the end?

Twenty of the first stage's images carry a bright patch in one corner and the label `CANARY`; forty decoys
carry the same patch in the opposite corner and their own labels. The second stage shows neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng
from glasshouse.studies.attribution.fashion import pictures
from glasshouse.studies.attribution.source.stages import FIRST, grown_two, source_two, stage_rows

if TYPE_CHECKING:
    import torch

    Labelled = tuple[torch.Tensor, torch.Tensor]

CANARY = 8
"""The class that the patch stands for (bags)."""

PLANTED, DECOYS, ASKED = 20, 40, 30
PATCH, BRIGHT = 4, 2.0


def canary_seed(seed: int, *, count: int) -> dict[str, Any]:
    """Mean recall at 20 over queries: SOURCE (stage 1), EK-FAC and gradient dot at the final checkpoint."""
    import torch

    from glasshouse.attribution import EKFAC

    torch.set_num_threads(1)
    first, planted = planted_rows(seed)
    staged = grown_two(seed, count, first)
    asked, names = patched_queries(), {f"original {i}" for i in planted}
    with torch.no_grad():
        p = [float(m(asked[0]).softmax(1)[:, CANARY].mean()) for m in (staged.middle, staged.final)]
    source = source_two(staged, seed).fit(staged.final, staged.rows)
    tables = {"SOURCE": source.score(asked, "margin", stage="first")}
    for name, strategy in (("EK-FAC", "ekfac"), ("identity", "identity")):
        rival = EKFAC(strategy, seed=seed).fit(staged.final, staged.rows["first"])  # type: ignore[arg-type]
        tables[name] = rival.score(asked, "margin")
    found = {name: recall(table, names) for name, table in tables.items()}
    return {"seed": seed, "p_after_stage_1": p[0], "p_canary": p[1], **found, "random": PLANTED / FIRST.rows}


def planted_rows(seed: int) -> tuple[Labelled, list[int]]:
    """The first stage's rows with planted images and decoys, and which rows are planted."""
    (x, y), _ = stage_rows()
    x, y = x.clone(), y.clone()
    draw = rng(seed, "staged canary")
    others = draw.permutation(np.flatnonzero(y.numpy() != CANARY))
    planted, decoys = others[:PLANTED].tolist(), others[PLANTED : PLANTED + DECOYS].tolist()
    x[planted], y[planted] = patched(x[planted]), CANARY
    x[decoys] = patched(x[decoys], opposite=True)
    return (x, y), sorted(planted)


def patched(pixels: torch.Tensor, *, opposite: bool = False) -> torch.Tensor:
    """Images [n, 784] with the bright patch in the upper left corner, or in the lower right one."""
    square = pixels.view(-1, 28, 28).clone()
    at = slice(28 - PATCH, 28) if opposite else slice(0, PATCH)
    square[:, at, at] = BRIGHT
    return square.reshape(len(pixels), -1)


def patched_queries() -> Labelled:
    """Held-out images of other classes with the patch, asked for the canary's label."""
    import torch

    x, y = pictures("eval", 0, 2 * ASKED)
    kept = (y != CANARY).nonzero().flatten()[:ASKED]
    return patched(x[kept]), torch.full((len(kept),), CANARY)


def recall(table: Any, names: set[str]) -> float:
    """Mean over queries of the share of planted rows among the first 20."""
    hits = [
        len({row for row, _ in table.top(q, PLANTED)} & names) / PLANTED for q in range(len(table.query_ids))
    ]
    return float(np.mean(hits))
