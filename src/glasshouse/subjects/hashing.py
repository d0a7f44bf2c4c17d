"""The identity of a model: what it computes (weights, config) and how text enters it (tokenizer)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.subjects.adapters import adapter_facts

# Fields of a config that say where a model came from or how it is run, not what it computes.
_NOT_THE_MODEL = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
}


def model_hash(model: nn.Module, tokenizer: Any = None) -> str:
    """Hex SHA-256 over the sorted tensors (name, dtype, shape, bytes), config, tokenizer, adapters' scales.

    The same model has the same hash in memory and from any folder; another dtype is another model.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1e".encode())
        digest.update(_bytes(tensor))
    digest.update(_canonical(_config(model)))
    digest.update(_canonical(_tokenizer(tokenizer)))
    adapters = adapter_facts(model)
    if adapters:
        digest.update(_canonical(adapters))
    return digest.hexdigest()


def check_finite(model: nn.Module) -> None:
    """Raise NumericalError naming the first weight with NaN or infinity; one pass over the weights.

    Weights that are not in memory (offloaded to disk, or never loaded) are an InputError: they can be neither
    checked nor hashed.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                "its values are not in memory",
                where=f"weight {name!r}",
                fix="load the model without offloading",
            )
        if parameter.is_floating_point() and not torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            raise NumericalError(
                "the weights hold NaN or infinity",
                where=f"weight {name!r}",
                fix="give a checkpoint that trained well",
            )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array) if flat.numel() else memoryview(b"")


def _config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    fields = config.to_dict() if config is not None else {}
    return {key: value for key, value in fields.items() if key not in _NOT_THE_MODEL}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    # Truncation and padding are switched by calls, not by the checkpoint.
    return {
        **model,
        "truncation": None,
        "padding": None,
        "chat_template": getattr(tokenizer, "chat_template", None),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()
