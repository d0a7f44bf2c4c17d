"""Which modules have a weight gradient that is a sum of outer products, and how it maps to parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from glasshouse.runtime.errors import UntrackedModuleError

Kind = Literal["linear", "conv1d", "conv2d", "embedding", "other"]


@dataclass(frozen=True)
class TrackedModule:
    """One module with weights, and whether it is selected.

    `in_features` counts the appended 1 when the module has a bias, so the layer gradient is
    [out_features, in_features]; `parameters` is their number; `why` explains a module left out.
    """

    name: str
    kind: Kind
    out_features: int
    in_features: int
    bias: bool
    parameters: int
    selected: bool
    why: str


def describe_modules(model: nn.Module, modules: str | Sequence[str] = "auto") -> list[TrackedModule]:
    """Every module with weights of its own, in the model's order, selected or not and why.

    `modules` is "auto" (every Linear, Conv1D and Conv2d that shares no weight), or exact names, globs
    (`*.mlp.*`) and regular expressions (`re:.*fc$`). An embedding is only selected by its exact name.

    Raises UntrackedModuleError when an exact name cannot be tracked or a pattern matches nothing.

    >>> [m.name for m in describe_modules(nn.Sequential(nn.Linear(2, 3), nn.ReLU())) if m.selected]
    ['0']
    """
    wanted = [modules] if isinstance(modules, str) else list(modules)
    names = dict(model.named_modules())
    shared = _shared_weights(model)
    inside = _used_functionally(model)
    described = [
        _describe(name, module, wanted, shared, inside) for name, module in names.items() if _own(module)
    ]
    _check_wanted(wanted, described, set(names))
    return described


def as_matrix(module: nn.Module, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A weight (gradient) in the module's own layout as the matrix [out, in(+1)] of the layer gradient."""
    matrix = weight.T if kind_of(module) in ("conv1d", "embedding") else weight.reshape(weight.shape[0], -1)
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


def as_parameters(module: nn.Module, matrix: Tensor) -> dict[str, Tensor]:
    """A layer-gradient matrix [out, in(+1)] as tensors shaped like the module's `weight` and `bias`."""
    weight = module.get_parameter("weight")
    found: dict[str, Tensor] = {}
    if getattr(module, "bias", None) is not None:
        matrix, found["bias"] = matrix[:, :-1], matrix[:, -1]
    matrix = matrix.T if kind_of(module) in ("conv1d", "embedding") else matrix
    return {"weight": matrix.reshape(weight.shape), **found}


def kind_of(module: nn.Module) -> Kind:
    """The kind of a module; "other" for one whose gradient is not an outer product."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    if isinstance(module, nn.Embedding):
        return "embedding"
    # By name: importing transformers here would cost seconds to those who trace a plain torch model.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return "other"


def _own(module: nn.Module) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None


def _sizes(kind: Kind, module: nn.Module) -> tuple[int, int]:
    weight = getattr(module, "weight", None)
    if kind == "other" or not isinstance(weight, Tensor) or weight.ndim < 2:
        return 0, 0
    bias = int(getattr(module, "bias", None) is not None)
    if kind in ("conv1d", "embedding"):
        return int(weight.shape[1]), int(weight.shape[0]) + bias
    return int(weight.shape[0]), int(weight[0].numel()) + bias


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """Per module name, the other module that holds the same parameter."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {
        name: next(other for other in group if other != name)
        for group in owners.values()
        if len(set(group)) > 1
        for name in group
    }


def _used_functionally(model: nn.Module) -> set[str]:
    """Children whose weights are read without calling them, so that no hook can see them."""
    return {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_children()
    }


def _obstacle(name: str, module: nn.Module, kind: Kind, shared: dict[str, str], inside: set[str]) -> str:
    """Why the module cannot be tracked, or nothing."""
    weight = getattr(module, "weight", None)
    if kind == "other":
        return f"{type(module).__name__} has no outer-product gradient"
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return "its weight is quantised"
    if _is_changed(module, kind):
        return f"{type(module).__name__} computes something of its own from its weight"
    if name in inside:
        return "torch reads its weight without calling it"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "a grouped convolution is not one outer product"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return "max_norm or scale_grad_by_freq changes its gradient"
    return f"its weight is shared with {shared[name]}" if name in shared else ""


def _is_changed(module: nn.Module, kind: Kind) -> bool:
    """Whether a subclass replaces the forward pass: Gemma scales its embeddings, OPT shifts its positions."""
    plain: dict[Kind, type[nn.Module]] = {"linear": nn.Linear, "conv2d": nn.Conv2d, "embedding": nn.Embedding}
    return kind in plain and type(module).forward is not plain[kind].forward


def _describe(
    name: str, module: nn.Module, wanted: list[str], shared: dict[str, str], inside: set[str]
) -> TrackedModule:
    kind = kind_of(module)
    why = _obstacle(name, module, kind, shared, inside)
    out_features, in_features = _sizes(kind, module)
    if not why and kind == "embedding" and name not in wanted:
        why = "embeddings are tracked only when named"
    if not why and not any(_matches(pattern, name) for pattern in wanted):
        why = "not among the modules asked for"
    bias = kind != "other" and getattr(module, "bias", None) is not None
    count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return TrackedModule(name, kind, out_features, in_features, bias, count, not why, why)


def _matches(pattern: str, name: str) -> bool:
    if pattern == "auto" or pattern == name:
        return True
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def _check_wanted(wanted: list[str], described: list[TrackedModule], names: set[str]) -> None:
    for pattern in wanted:
        for bad in _refused(pattern, described, names):
            raise UntrackedModuleError(
                bad, where=f"module {pattern!r}", fix="describe_modules(model) lists what can be tracked"
            )
    if not any(module.selected for module in described):
        raise UntrackedModuleError(
            "no module of this model can be tracked", fix="give a model with Linear, Conv1D or Conv2d layers"
        )


def _refused(pattern: str, described: list[TrackedModule], names: set[str]) -> Iterator[str]:
    exact = next((module for module in described if module.name == pattern), None)
    if exact is not None and not exact.selected:
        yield exact.why
    elif exact is None and pattern in names:
        yield "it has no weights of its own"
    elif not any(_matches(pattern, module.name) and module.selected for module in described):
        yield "it matches no module that can be tracked"
