"""Where each model family keeps its parts: a table of module paths, and the parts found in one model.

The table is data (`architectures.json`); `register_arch` adds a row for a family it lacks. A model whose type
has no row is matched by structure against every row, and then trusted only after its self-test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from torch import nn

from glasshouse.runtime.errors import InputError, UnknownArchitecture


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family; those below `blocks` are relative to a block.

    `qkv` is one fused module or three, laid out as `blocks` ([Q K V]), `per_head` ([q k v] for each head) or
    `separate`. `mid_norm` is the norm that reads `resid_mid`; `parallel_flag` names the boolean in the config
    that says attention and MLP read the same residual, in which case there is no `resid_mid`.
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
    if config is None:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no config",
            fix="give a transformers model with a language-model head",
        )
    rows = architectures()
    for row in [row for row in rows if model_type in row.model_types]:
        missing = _missing(model, row)
        if missing:
            raise UnknownArchitecture(
                f"a {model_type} model without {missing}", fix="open it with its language-model head"
            )
        return _parts(model, config, row, known=True)
    tried = {row.name: _missing(model, row) for row in rows}
    for row in rows:
        if not tried[row.name]:
            return _parts(model, config, row, known=False)
    listed = ", ".join(f"{name} (no {path})" for name, path in tried.items())
    raise UnknownArchitecture(
        f"{model_type!r} is in no row of the table and has the structure of none; tried {listed}",
        fix="describe its modules with register_arch",
    )


@cache
def _shipped() -> tuple[Architecture, ...]:
    text = files("glasshouse.subjects").joinpath("architectures.json").read_text(encoding="utf-8")
    return tuple(_row(row) for row in json.loads(text))


def _row(fields: dict[str, Any]) -> Architecture:
    try:
        tuples = {key: tuple(fields[key]) for key in ("model_types", "qkv")}
        return Architecture(**{**fields, **tuples})
    except (TypeError, KeyError) as error:
        raise InputError(
            f"not a row of the architecture table: {error}", fix="see Architecture for its fields"
        ) from error


def _missing(model: nn.Module, row: Architecture) -> str:
    """The first path of the row that the model lacks, or nothing."""
    for path in (row.blocks, row.final_norm, row.unembed):
        if _find(model, path) is None:
            return path
    blocks = _find(model, row.blocks)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return f"list of blocks at {row.blocks}"
    inside = (row.attention, row.out_proj, *row.qkv, row.mlp, row.down_proj, row.mid_norm)
    return next((f"{row.blocks}.0.{path}" for path in inside if path and _find(blocks[0], path) is None), "")


def _find(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _parts(model: nn.Module, config: Any, row: Architecture, *, known: bool) -> Parts:
    d_model, n_heads = int(config.hidden_size), int(config.num_attention_heads)
    return Parts(
        architecture=row,
        base=model.get_submodule(row.blocks.rpartition(".")[0]),
        blocks=tuple(model.get_submodule(row.blocks).children()),
        final_norm=model.get_submodule(row.final_norm),
        unembed=model.get_submodule(row.unembed),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_head=int(getattr(config, "head_dim", None) or d_model // n_heads),
        vocab_size=int(config.vocab_size),
        context=int(config.max_position_embeddings),
        has_mid=row.mid_norm is not None
        and not (row.parallel_flag and getattr(config, row.parallel_flag, False)),
        known=known,
    )
