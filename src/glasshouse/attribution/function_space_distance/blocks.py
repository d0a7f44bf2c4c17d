"""The MLP blocks of a language model as small graphs of their own.

A block reads the residual stream through a norm. Its input here is that residual, normalised and without the
norm's gain: the gain and shift are a step of the graph, so that a fine-tune that moves them is seen.
Attention is not covered: each block's distance is that of its own output, for residuals as the reference
had them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution.units import TokenUnits, as_units, cost_batches
from glasshouse.corpora.rows import TokenRow
from glasshouse.runtime.errors import InputError, UnknownArchitecture
from glasshouse.subjects import as_subject
from glasshouse.subjects.architectures import Parts, find, locate, unwrap

NORMS = ("ln_1", "input_layernorm", "input_norm", "ln")
"""Where a norm before attention and MLP stands in blocks whose MLP has none of its own."""


class MLPBlock(nn.Module):
    """Gain and shift of the block's norm (if it has one), then its MLP."""

    def __init__(self, norm: nn.Module | None, mlp: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = norm if _has_gain(norm) else nn.Identity(), mlp
        self.scaled = _has_gain(norm)

    def forward(self, x: Tensor) -> Tensor:
        """The MLP's output [n, d] for normalised residuals x [n, d]."""
        return self.mlp(self.norm(x))

    @property
    def gains(self) -> tuple[str, ...]:
        """The modules that only scale and shift their inputs here."""
        return ("norm",) if self.scaled else ()


class _TwoLayers(nn.Module):
    """An MLP whose layers stand in the block itself (OPT)."""

    def __init__(self, up: nn.Module, act: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = up, act, down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def is_language_model(subject: Any) -> bool:
    """Whether the subject is a Subject or a transformers model with a language-model head."""
    if isinstance(subject, nn.Module):
        config = getattr(subject, "config", None)
        return config is not None and hasattr(config, "model_type")
    return hasattr(subject, "parts")


def parts_of(subject: Any) -> Parts:
    """The parts of a language model, opened or not."""
    return subject.parts if hasattr(subject, "parts") else locate(unwrap(subject))


def mlp_blocks(parts: Parts) -> dict[str, MLPBlock]:
    """The block of each layer by name; UnknownArchitecture where the MLP is no module of known layers."""
    row = parts.architecture
    found = {}
    for layer, block in enumerate(parts.blocks):
        if row.mlp == row.down_proj:
            up, act = find(block, "fc1"), find(block, "activation_fn")
            if up is None or act is None:
                raise UnknownArchitecture(
                    f"the MLP of {row.name!r} blocks is not known", fix="use a fallback"
                )
            mlp: nn.Module = _TwoLayers(up, act, parts.in_block(layer, row.down_proj))
        else:
            mlp = parts.in_block(layer, row.mlp)
        found[f"mlp.{layer}"] = MLPBlock(_norm(parts, layer), mlp).eval()
    return found


def residual_site(parts: Parts, layer: int) -> str:
    """The residual stream that the block's norm reads."""
    return f"resid_mid.{layer}" if parts.has_mid else f"resid_pre.{layer}"


def residual_rows(subject: Any, units: TokenUnits, batch_tokens: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Per batch and block: its name, normalised residuals [n, d], and the MLP's hidden units [n, k].

    Float32 rows of the unpadded tokens.
    """
    opened = as_subject(subject, self_test=False) if isinstance(subject, nn.Module) else subject
    parts = opened.parts
    blocks = mlp_blocks(parts)
    reads = [residual_site(parts, k) for k in range(len(blocks))]
    acts = [f"mlp_act.{k}" for k in range(len(blocks))]
    norms = [_norm(parts, layer) for layer in range(len(blocks))]
    for at in cost_batches(units.sizes, range(len(units)), batch_tokens, len(units)):
        batch = units.batch(at)
        run = opened.run(batch, read=[*reads, *acts], logits=False)
        keep = batch.attention_mask.bool()
        for k, name in enumerate(blocks):
            x, h = run.acts[_site(reads[k])], run.acts[_site(acts[k])]
            rows = _normalised(norms[k], x[keep.to(x.device)])
            hidden = h.reshape(*keep.shape, -1)[keep.to(h.device)]
            yield name, rows.float(), hidden.float()


def token_units(subject: Any, data: Any) -> TokenUnits:
    """Token rows from rows, records or texts (these need a tokenizer)."""
    tokenizer = getattr(subject, "tokenizer", None)
    rows = list(data) if not isinstance(data, TokenUnits) else data
    if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
        if tokenizer is None:
            raise InputError("texts need a tokenizer", fix="pass a Subject, or TokenRows")
        encoded = [tokenizer(text)["input_ids"] for text in rows]
        rows = [TokenRow(tuple(ids), tuple(ids), str(i)) for i, ids in enumerate(encoded)]
    units = as_units(rows, tokenizer=tokenizer)
    if not isinstance(units, TokenUnits):
        raise InputError("a language model reads token rows", fix="give TokenRows, Records or texts")
    return units


def _norm(parts: Parts, layer: int) -> nn.Module | None:
    row = parts.architecture
    if row.mid_norm == row.mlp:
        return None
    if row.mid_norm is not None:
        return parts.in_block(layer, row.mid_norm)
    names: Sequence[str] = NORMS
    for name in names:
        norm = find(parts.blocks[layer], name)
        if norm is not None:
            return norm
    raise UnknownArchitecture(f"the norm before the MLP of {row.name!r} was not found", fix="use a fallback")


def _normalised(norm: nn.Module | None, x: Tensor) -> Tensor:
    """The norm's output for unit gain and no shift."""
    if norm is None:
        return x
    if not _has_gain(norm):
        return norm(x)
    from glasshouse.attribution.function_space_distance.tracing import describe

    ones = 1.0 - describe(norm, True)[1]["offset"]
    unit = {
        name: torch.full_like(value, ones if name == "weight" else 0.0)
        for name, value in norm.named_parameters()
    }
    with torch.no_grad():
        return torch.func.functional_call(norm, unit, (x,))


def _has_gain(norm: nn.Module | None) -> bool:
    return norm is not None and isinstance(getattr(norm, "weight", None), Tensor)


def _site(name: str) -> Any:
    from glasshouse.subjects.sites import Site

    return Site.parse(name)
