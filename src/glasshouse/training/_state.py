"""Training checkpoints: one safetensors file that holds weights, optimizer moments and losses.

One file, renamed into place: a kill leaves the previous checkpoint or the new one, never a mixture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.runtime import files
from glasshouse.runtime.errors import StaleError

NAME = "checkpoint.safetensors"


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    losses: list[float],
    settings: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a training that has done `len(losses)` optimizer steps; returns its path."""
    from safetensors.torch import save_file

    tensors = {f"model/{name}": _plain(value) for name, value in _weights(model).items()}
    for name, parameter in _trainable(model).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = _plain(value)
    about = json.dumps({"losses": losses, "settings": dict(settings)}, sort_keys=True)
    with files.atomic_path(folder / NAME) as temporary:
        save_file(tensors, temporary, metadata={"glasshouse": about})
    return folder / NAME


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, settings: Mapping[str, Any]
) -> list[float]:
    """Restore model and optimizer in place; returns the losses so far, [] without a checkpoint.

    Raises StaleError when the checkpoint was written under other settings.
    """
    from safetensors import safe_open

    path = folder / NAME
    if not path.is_file():
        return []
    device = str(next(model.parameters()).device)
    with safe_open(path, framework="pt", device=device) as opened:
        about = json.loads(opened.metadata()["glasshouse"])
        _same_settings(path, about["settings"], settings)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    with torch.no_grad():
        for name, value in _weights(model).items():
            value.copy_(tensors[f"model/{name}"])
    for name, parameter in _trainable(model).items():
        # `Optimizer.load_state_dict` would cast; the moments are put back bit by bit instead.
        optimizer.state[parameter] = {
            key: tensors[f"optimizer/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return [float(loss) for loss in about["losses"]]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    # named_parameters and named_buffers name a tied tensor once, which safetensors requires.
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _plain(value: Tensor) -> Tensor:
    return value.detach().contiguous()


def _same_settings(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(dict(wanted)))
    differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if differing:
        said = ", ".join(f"{key} {stored.get(key)!r} -> {wanted.get(key)!r}" for key in differing)
        raise StaleError(
            f"the checkpoint belongs to another training ({said})",
            where=str(path),
            fix="give each training its own checkpoint_dir",
        )
