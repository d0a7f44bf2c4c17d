"""Where each model family keeps its parts: a table of module paths, and the parts found in one model.

The table is data (`architectures.json`); `register_arch` adds a row for a family it lacks. A model whose type
has no row gets one from its structure (`probing.py`), and is then trusted only after its self-test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glasshouse.runtime.errors import InputError, UnknownArchitecture
from glasshouse.subjects.adapters import refuse_virtual_tokens


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family; those below `blocks` are relative to a block.

    `qkv` is one fused module or three, laid out as `blocks` ([Q K V]), `per_head` ([q k v] for each head) or
    `separate`. `mid_norm` is the module that reads `resid_mid` (a norm; the MLP itself in OLMo-2), None where
    attention and MLP read the same residual; `parallel_flag` names the boolean in the config that says so.
    `attn_out` and `mlp_out` are the modules whose outputs are added to the residual, where these are not the
    attention and the MLP themselves but norms behind them. `after_norm`, if the model has it, stands between
    the final norm and the output matrix. `refused` maps a field of the config to a value with which the model
    cannot be opened, and the reason.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    final_norm: str
    attention: str
    out_proj: str
    qkv: tuple[str, ...]
    qkv_layout: Literal["blocks", "per_head", "separate"]
    mlp: str
    down_proj: str
    mid_norm: str | None = None
    parallel_flag: str | None = None
    unembed: str = "lm_head"
    attn_out: str | None = None
    mlp_out: str | None = None
    after_norm: str | None = None
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.qkv) != (3 if self.qkv_layout == "separate" else 1):
            raise InputError(
                f"the layout {self.qkv_layout!r} does not fit {len(self.qkv)} projections",
                where=f"architecture {self.name!r}",
                fix="give three modules for `separate` and one fused module otherwise",
            )


@dataclass(frozen=True)
class Parts:
    """One opened model: its architecture, modules and sizes."""

    architecture: Architecture
    base: nn.Module = field(repr=False)
    blocks: tuple[nn.Module, ...] = field(repr=False)
    final_norm: nn.Module = field(repr=False)
    unembed: nn.Module = field(repr=False)
    after_norm: nn.Module | None = field(repr=False)
    soft_cap: float | None
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    context: int
    has_mid: bool
    known: bool

    def in_block(self, layer: int, path: str) -> nn.Module:
        """A module of block `layer`."""
        return self.blocks[layer].get_submodule(path)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of the last hidden states [..., d] of its body: logits [..., V]."""
        return self.capped(self.unembed(hidden))

    def capped(self, logits: Tensor) -> Tensor:
        """Gemma's soft cap, where the model has one."""
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


UNLIMITED = 2**31 - 1

_REGISTERED: dict[str, Architecture] = {}


def register_arch(architecture: Architecture | dict[str, Any]) -> None:
    """Add a family (a row of the table, or a dict with the same fields), or replace one of the same name.

    Raises InputError when fields are missing or unknown.
    """
    row = architecture if isinstance(architecture, Architecture) else _row(architecture)
    _REGISTERED[row.name] = row


def architectures() -> list[Architecture]:
    """Every known family; the ones registered by the user come first."""
    return [*_REGISTERED.values(), *(row for row in _shipped() if row.name not in _REGISTERED)]


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel (its adapters stay active), DataParallel or compilation."""
    while True:
        if hasattr(model, "get_base_model"):
            refuse_virtual_tokens(model)
            inner: Any = model.get_base_model  # of peft, which is not imported for this
            model = inner()
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def locate(model: nn.Module) -> Parts:
    """Find the parts of a causal language model. Raises UnknownArchitecture listing what was tried."""
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", type(model).__name__))
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)  # of a model that also reads images
    if config is None:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no config",
            fix="give a transformers model with a language-model head",
        )
    rows = architectures()
    for row in [row for row in rows if model_type in row.model_types]:
        _refuse(config, model_type, row)
        missing = _missing(model, row)
        if missing:
            raise UnknownArchitecture(
                f"a {model_type} model without {missing}", fix="open it with its language-model head"
            )
        return _parts(model, config, row, known=True)
    from glasshouse.subjects.probing import probe

    return _parts(model, config, probe(model, model_type), known=False)


@cache
def _shipped() -> tuple[Architecture, ...]:
    text = files("glasshouse.subjects").joinpath("architectures.json").read_text(encoding="utf-8")
    return tuple(_row(row) for row in json.loads(text))


def _row(fields: dict[str, Any]) -> Architecture:
    try:
        tuples = {key: tuple(fields[key]) for key in ("model_types", "qkv")}
        refused = {key: tuple(pair) for key, pair in fields.get("refused", {}).items()}
        return Architecture(**{**fields, **tuples, "refused": refused})
    except (TypeError, KeyError) as error:
        raise InputError(
            f"not a row of the architecture table: {error}", fix="see Architecture for its fields"
        ) from error


def _refuse(config: Any, model_type: str, row: Architecture) -> None:
    for name, (value, reason) in row.refused.items():
        if getattr(config, name, None) == value:
            raise UnknownArchitecture(
                f"a {model_type} model with {name}={value} is not supported: {reason}",
                fix="use another checkpoint of the family",
            )


def _missing(model: nn.Module, row: Architecture) -> str:
    """The first path of the row that the model lacks, or nothing."""
    for path in (row.blocks, row.final_norm, row.unembed):
        if find(model, path) is None:
            return path
    blocks = find(model, row.blocks)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return f"list of blocks at {row.blocks}"
    inside = (row.attention, row.out_proj, *row.qkv, row.mlp, row.down_proj, row.mid_norm)
    inside += (row.attn_out, row.mlp_out)
    return next((f"{row.blocks}.0.{path}" for path in inside if path and find(blocks[0], path) is None), "")


def find(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _parts(model: nn.Module, config: Any, row: Architecture, *, known: bool) -> Parts:
    for name in ("hidden_size", "num_attention_heads", "vocab_size"):
        if not isinstance(getattr(config, name, None), int):
            raise UnknownArchitecture(f"the config has no {name}", fix="give a decoder-only language model")
    d_model, n_heads = int(config.hidden_size), int(config.num_attention_heads)
    soft_cap = getattr(config, "final_logit_softcapping", None)
    return Parts(
        architecture=row,
        base=model.get_submodule(row.blocks.rpartition(".")[0]),
        blocks=tuple(model.get_submodule(row.blocks).children()),
        final_norm=model.get_submodule(row.final_norm),
        unembed=model.get_submodule(row.unembed),
        after_norm=find(model, row.after_norm) if row.after_norm else None,
        soft_cap=None if soft_cap is None else float(soft_cap),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_head=int(getattr(config, "head_dim", None) or d_model // n_heads),
        vocab_size=int(config.vocab_size),
        context=_context(config),
        has_mid=row.mid_norm is not None
        and not (row.parallel_flag and getattr(config, row.parallel_flag, False)),
        known=known,
    )


def _context(config: Any) -> int:
    """The longest row in tokens; without learned or tabled positions there is no limit.

    Rotary embeddings that change once a row passes the trained length (dynamic, longrope) change for all rows
    of its batch and under keys that are cached already, so such models are read up to that length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(rope, Mapping) and rope.get("rope_type") in ("dynamic", "longrope"):
        longest = rope.get("original_max_position_embeddings") or longest
        longest = getattr(config, "original_max_position_embeddings", None) or longest
    return int(longest or UNLIMITED)
