"""Smooth activation functions by name, with their derivatives: what `approx=True` admits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
}

_BY_CLASS = {
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu",
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Mish": "mish",
    "MishActivation": "mish",
}


def name_of_module(module: nn.Module) -> str | None:
    """The name of an activation module in `FUNCTIONS`, or None; names of transformers' classes are known."""
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if isinstance(module, nn.ELU) and module.alpha == 1.0:
        return "elu"
    if isinstance(module, nn.Softplus) and module.beta == 1 and module.threshold == 20:
        return "softplus"
    return _BY_CLASS.get(type(module).__name__)


def derivative(name: str, x: Tensor) -> Tensor:
    """phi'(x), elementwise."""
    if name == "identity":
        return torch.ones_like(x)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(FUNCTIONS[name](at).sum(), at)
    return found
