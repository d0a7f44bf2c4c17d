"""Refusals: everything that would turn scores into noise without saying so."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.objectives import BUILT_IN
from glasshouse.attribution.stages.passes import layer_gradients
from glasshouse.attribution.stages.steps import Job, steps
from glasshouse.attribution.units import TensorUnits
from glasshouse.corpora.rows import TokenBatch
from glasshouse.runtime.errors import InputError, NumericalError, UntrackedModuleError
from glasshouse.subjects.capture import TrackedModule, describe_modules

BF16_ROWS = 64
BF16_LEAST = 0.98
"""Scores of 64 rows in bfloat16 must correlate at least so well with float32 ones."""


def unwrap(subject: Any) -> tuple[nn.Module, Any]:
    """The module and tokenizer of a Subject, or a plain module and None."""
    if isinstance(subject, nn.Module):
        return subject, None
    model = getattr(subject, "model", None)
    if not isinstance(model, nn.Module):
        raise InputError(f"cannot trace a {type(subject).__name__}", fix="give a Subject or an nn.Module")
    access = getattr(subject, "access", None)
    if access is not None and "gradients" not in access:
        from glasshouse.runtime.errors import AccessError

        raise AccessError("this subject gives no gradients", fix="open a local checkpoint")
    return model, getattr(subject, "tokenizer", None)


def model_hash(subject: Any) -> str:
    """The Subject's own hash, or a SHA-256 over names, dtypes and bytes of a module's state."""
    if not isinstance(subject, nn.Module):
        return str(subject.hash)
    digest = hashlib.sha256()
    for name, value in subject.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def select_modules(model: nn.Module, modules: str | Sequence[str]) -> list[TrackedModule]:
    """The modules to track. Frozen ones beside trainable ones are left out, or refused if named."""
    chosen = [m for m in describe_modules(model, modules) if m.selected]
    if not any(p.requires_grad for p in model.parameters()):
        return chosen  # loaded for inference: nothing is marked trainable
    frozen = [m.name for m in chosen if not model.get_submodule(m.name).get_parameter("weight").requires_grad]
    named = {modules} if isinstance(modules, str) else set(modules)
    if refused := [name for name in frozen if name in named]:
        raise UntrackedModuleError(
            "its weight is frozen, so training rows did not change it", where=f"module {refused[0]!r}",
            fix="leave it out, or unfreeze it",
        )  # fmt: skip
    kept = [m for m in chosen if m.name not in set(frozen)]
    if not kept:
        raise UntrackedModuleError(
            "every module that could be tracked is frozen", fix="unfreeze what was trained"
        )
    return kept


def tracks_head(model: nn.Module, names: Sequence[str]) -> bool:
    """True when the LM head is among the tracked modules."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head is not None and any(model.get_submodule(name) is head for name in names)


def check_dtype(model: nn.Module) -> None:
    """Refuse float16: gradients of single rows under- and overflow without loss scaling."""
    halves = [name for name, p in model.named_parameters() if p.dtype == torch.float16]
    if halves:
        raise InputError(
            f"{len(halves)} parameters are float16 (first: {halves[0]})", where="model",
            fix="load it in float32 or bfloat16",
        )  # fmt: skip


def check_bf16(job: Job) -> None:
    """Refuse a bfloat16 model whose row-to-row gradient products differ from float32 (Pearson < .98)."""
    if all(p.dtype != torch.bfloat16 for p in job.model.parameters()):
        return
    rows = range(min(BF16_ROWS, len(job.units)))
    units = job.units
    if isinstance(units, TensorUnits) and units.inputs.is_floating_point():
        units = TensorUnits(units.inputs.float(), units.targets, units.ids)
    reference = replace(job, model=copy.deepcopy(job.model).float(), units=units)
    half, full = (_products(each, rows) for each in (job, reference))
    pearson = float(torch.corrcoef(torch.stack([half, full]))[0, 1])
    if not pearson >= BF16_LEAST:
        raise NumericalError(
            f"bfloat16 scores of {len(rows)} rows correlate only {pearson:.3f} with float32 "
            f"(least {BF16_LEAST})",
            where="model", fix="load it in float32, or pass force_bf16=True",
        )  # fmt: skip


def locate_nan(job: Job, indices: Sequence[int]) -> None:
    """Go through a shard again and raise NumericalError naming module, batch, row and token of a NaN."""
    for number, step in enumerate(steps(job, indices)):
        for name, pair in step.pairs.items():
            bad = (~torch.isfinite(pair.a).all(2) | ~torch.isfinite(pair.g).all(2)).nonzero()
            if len(bad):
                row, token = bad[0].tolist()
                raise NumericalError(
                    f"NaN or infinity at row {step.batch.row_ids[row]!r}, token {token}",
                    where=f"module {name!r}, batch {number}", fix="remove the row, or repair the checkpoint",
                )  # fmt: skip
    raise NumericalError("a factor overflowed although every gradient is finite", fix="rescale the inputs")


def check_sampling(job: Job) -> None:
    """Refuse sampled labels for a loss that cannot draw them."""
    if job.sampled and not isinstance(job.loss, BUILT_IN) and not hasattr(job.loss, "draw"):
        raise InputError(
            'label_mode="sampled" needs an objective that can draw labels',
            fix='use label_mode="empirical", or an objective of glasshouse.attribution.objectives',
        )


def checked_first(batch: Any) -> Any:
    """At most two rows of a batch, for cheap checks."""
    if isinstance(batch, TokenBatch):
        parts = (batch.input_ids, batch.attention_mask, batch.position_ids, batch.labels)
        return TokenBatch(*(part[:2] for part in parts), batch.row_ids[:2])
    return replace(batch, inputs=batch.inputs[:2], targets=batch.targets[:2], row_ids=batch.row_ids[:2])


def _products(job: Job, rows: Sequence[int]) -> Tensor:
    """Gradient products of all pairs of different rows."""
    G = torch.cat(
        [part.flatten(1) for part in layer_gradients(replace(job, sampled=False), rows).values()], 1
    )
    products = G @ G.T
    return products[torch.triu_indices(len(G), len(G), 1).unbind()]
