"""PEFT adapters: opening their folders, and what they add to a model's identity.

They are recognised by what they look like; peft is imported only to open an adapter's folder.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from glasshouse.runtime.errors import InputError, UnknownArchitecture

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The model the adapter belongs to: a local folder (also relative to the adapter's own) or a hub id.

    Raises InputError for an unreadable config, one that names no model, or pickled adapter weights.
    """
    where = str(folder)
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{CONFIG} is not an adapter's config", where=where, fix="save the adapter again"
        ) from error
    if not named:
        raise InputError(
            f"{CONFIG} does not say which model it adapts", where=where, fix="fill in base_model_name_or_path"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(
            "the folder has no adapter_model.safetensors (pickled weights can run code and are not read)",
            where=where,
            fix="save the adapter with save_pretrained",
        )
    beside = folder / str(named)
    return str(beside.resolve() if beside.is_dir() else named)


def attach(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the adapter active. InputError when peft is absent or the adapter does not fit."""
    where = str(folder)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError("opening an adapter needs peft", where=where, fix="pip install peft") from error
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted: nn.Module = PeftModel.from_pretrained(model, where, is_trainable=False)
    except Exception as error:  # peft and torch raise a dozen types here; the user needs one sentence
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"cannot open the adapter: {type(error).__name__}: {first[:200]}",
            where=where,
            fix="check that it belongs to this model",
        ) from error
    missing = next((str(w.message) for w in caught if "missing adapter keys" in str(w.message)), "")
    if missing:  # peft would leave them as initialised
        raise InputError(missing.splitlines()[0][:200], where=where, fix="save the adapter whole")
    return adapted.eval()


def refuse_virtual_tokens(model: Any) -> None:
    """Raise UnknownArchitecture for prompt and prefix tuning, whose tokens exist only outside the model."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise UnknownArchitecture(
            "the adapter puts virtual tokens before every row, which sites by position cannot allow for",
            fix="give the base model, or an adapter of its weights such as LoRA",
        )


def adapter_facts(model: nn.Module) -> list[dict[str, Any]]:
    """What adapters compute beyond their weights: which are active or merged, and how they are scaled."""
    return [
        {
            "module": name,
            "kind": type(module).__name__,
            "active": list(getattr(module, "active_adapters", [])),
            "off": bool(getattr(module, "disable_adapters", False)),
            "merged": list(getattr(module, "merged_adapters", [])),
            "scaling": {str(k): float(v) for k, v in sorted(getattr(module, "scaling", {}).items())},
        }
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "active_adapters")
    ]
