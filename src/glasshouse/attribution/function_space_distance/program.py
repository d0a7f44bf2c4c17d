"""A network as a short list of steps whose moments are known; anything else is refused by its name.

The list comes from `torch.fx`, so a model may be an `nn.Sequential` or a module of its own with residual
streams. Values are flat: a step maps rows [..., k_in] to [..., k_out]; the shapes are kept beside the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from glasshouse.attribution.function_space_distance.smooth import FUNCTIONS, name_of_module
from glasshouse.runtime.errors import InputError

AFFINE = ("linear", "conv2d", "batchnorm", "gain")
FIXED = ("avgpool", "chunk")
ALIAS = ("flatten", "identity")
GATES = ("relu", "smooth", "gated", "maxpool")
HELP = "use a fallback such as CoresetDistance, or replace the operation"

Tensors = Mapping[str, Tensor]
Affine = tuple[Tensor, Tensor | None]
"""The effective matrix (or kernel, or gains) of a step and its bias."""


@dataclass(frozen=True)
class Node:
    """One step: its kind, the values it reads, the module whose weights it uses, and plain options."""

    name: str
    kind: str
    parents: tuple[str, ...]
    module: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The step as plain JSON."""
        return {"name": self.name, "kind": self.kind, "parents": list(self.parents), "module": self.module,
                "options": dict(self.options)}  # fmt: skip

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Node:
        """The inverse of `to_json`."""
        return cls(row["name"], row["kind"], tuple(row["parents"]), row["module"], row["options"])

    @property
    def words(self) -> str:
        """The step for a message: kind and place."""
        return f"{self.kind} {self.module or self.name!r}"


def trace(model: nn.Module, *, approx: bool = False, gains: Sequence[str] = ()) -> tuple[Node, ...]:
    """The steps of `model`, the first of kind "input", the last the output.

    `gains` names normalisation modules whose inputs arrive normalised, so that only gain and shift are left.
    Raises InputError naming the first operation without a rule, one that needs `approx=True`, and layers in
    training mode whose outputs then are random or depend on the batch.
    """
    _refuse_training(model)
    tracer = _Tracer(gains)
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0][:120]})", fix=HELP
        ) from error
    nodes = _Reader(model, tuple(gains), approx).read(graph)
    return _fused(nodes)


def effective(nodes: Sequence[Node], tensors: Tensors) -> dict[str, Affine]:
    """Matrix and bias of every step with weights, from parameters and buffers by name; gradients flow."""
    return {node.name: _affine(node, tensors) for node in nodes if node.kind in AFFINE}


def apply(node: Node, A: Tensor | None, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The linear part of a step on rows x [..., k_in]; `shape` is that of one input, bias not added."""
    if node.kind == "linear":
        return x @ A.mT  # type: ignore[union-attr]
    if node.kind in ("batchnorm", "gain"):
        return x * _spread(A, shape)  # type: ignore[arg-type]
    if node.kind == "chunk":
        return x.chunk(node.options["count"], -1)[node.options["index"]]
    images, o = x.reshape(-1, *shape), node.options
    if node.kind == "conv2d":
        assert A is not None
        found = F.conv2d(images, A, None, o["stride"], o["padding"], o["dilation"], o["groups"])
    else:
        found = F.avg_pool2d(images, o["kernel"] or shape[-2:], o["stride"] or None, o["padding"])
    return found.reshape(*x.shape[:-1], math.prod(found.shape[1:]))


def bias_of(node: Node, b: Tensor | None, shape: Sequence[int]) -> Tensor | float:
    """The bias of a step on its flat output of `shape`."""
    return 0.0 if b is None else _spread(b, shape)


def windows(node: Node, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Input indices of every max-pool window [k_out, places], and which of them are inside the image."""
    o = node.options
    flat = torch.arange(1, 1 + int(torch.tensor(shape).prod()), device=device).reshape(1, *shape).float()
    pad = o["padding"]
    found = F.unfold(F.pad(flat, (pad[1], pad[1], pad[0], pad[0])), o["kernel"], stride=o["stride"])
    places = o["kernel"][0] * o["kernel"][1]
    at = found.reshape(shape[0], places, -1).transpose(1, 2).reshape(-1, places).round().long() - 1
    return at.clamp_min(0), at >= 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (with their gradients) and buffers by name."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def used(nodes: Sequence[Node], tensors: Tensors) -> dict[str, Tensor]:
    """The tensors that the steps read."""
    homes = {node.module for node in nodes if node.kind in AFFINE}
    return {
        name: value
        for name, value in tensors.items()
        if name.rpartition(".")[0] in homes and value.is_floating_point()
    }


def first_mismatch(mine: Sequence[Node], other: Sequence[Node]) -> str | None:
    """Where two lists of steps part, in words; None where they agree."""
    for k, (a, b) in enumerate(zip(mine, other, strict=False)):
        if (a.kind, a.parents, a.module, dict(a.options)) != (b.kind, b.parents, b.module, dict(b.options)):
            return f"step {k} is {a.words} in the reference and {b.words} in the other model"
    if len(mine) != len(other):
        longer, where = (mine, "reference") if len(mine) > len(other) else (other, "other model")
        return f"only the {where} has {longer[min(len(mine), len(other))].words}"
    return None


def shape_mismatch(reference: Tensors, other: Tensors) -> str | None:
    """The first tensor that is missing or shaped otherwise, in words."""
    for name, value in reference.items():
        if name not in other:
            return f"{name!r} is missing in the other model"
        if other[name].shape != value.shape:
            return f"{name!r} is {tuple(value.shape)} in the reference and {tuple(other[name].shape)}"
    return None


# -- reading a graph -----------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Stops at modules that have a rule; goes into all others that are not torch's own."""

    def __init__(self, gains: Sequence[str]) -> None:
        super().__init__()
        self.gains = tuple(gains)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_qualified_name in self.gains or _is_conv1d(m) or name_of_module(m) is not None
        return known or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Reader:
    """Turns the nodes of a traced graph into steps."""

    model: nn.Module
    gains: tuple[str, ...]
    approx: bool

    def read(self, graph: fx.Graph) -> tuple[Node, ...]:
        steps: list[Node] = []
        for node in graph.nodes:
            step = self._step(node)
            if step is not None:
                steps.append(step)
        names = {step.name for step in steps}
        for step in steps:
            for parent in step.parents:
                if parent not in names:
                    raise InputError(f"{step.words} reads a value that is no activation", fix=HELP)
        return tuple(steps)

    def _step(self, node: fx.Node) -> Node | None:
        if node.op == "placeholder":
            if any(n.op == "placeholder" for n in _before(node)):
                if node.users:
                    raise InputError(
                        f"it reads a second input {node.name!r}", fix="give a model of one input"
                    )
                return None
            return Node(node.name, "input", ())
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise InputError("its output is not one tensor", fix="wrap it so that it returns one tensor")
            return Node("output", "identity", (node.args[0].name,))
        if node.op == "get_attr":
            raise InputError(f"it uses the tensor {node.target!r} outside a layer", fix=HELP)
        if node.op == "call_module":
            return self._module(node)
        return self._function(node)

    def _module(self, node: fx.Node) -> Node:
        place = str(node.target)
        module = self.model.get_submodule(place)
        kind, options = describe(module, place in self.gains, place)
        return self._node(node, kind, options, place if kind in AFFINE else "", _inputs(node)[:1])

    def _function(self, node: fx.Node) -> Node | None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        values = _inputs(node)
        if name in ("size", "getattr", "dim"):
            return None
        if name == "getitem" and _is_shape(node.args[0]):
            return None
        if name in ("add", "iadd", "add_") and len(values) == 2:
            return self._node(node, "add", {}, "", values)
        if name in ("mul", "imul", "mul_") and len(values) == 2:
            return self._node(node, "gated", {"function": "identity"}, "", values)
        if name == "flatten" or (name in ("view", "reshape") and len(node.args) == 3 and node.args[2] == -1):
            return self._node(node, "flatten", {}, "", values[:1])
        if name == "chunk":
            return Node(node.name, "chunks", tuple(values[:1]), "", {"count": _count(node)})
        if name == "getitem":
            options = {"count": _count(node.args[0]), "index": node.args[1]}  # type: ignore[arg-type]
            return self._node(node, "chunk", options, "", [_inputs(node.args[0])[0]])  # type: ignore[arg-type]
        if name in ("contiguous", "dropout"):
            return self._node(node, "identity", {}, "", values[:1])
        if name in ("relu", "relu_"):
            return self._node(node, "relu", {}, "", values[:1])
        function = {"gelu": "gelu_tanh"}.get(name, name) if node.kwargs.get("approximate") == "tanh" else name
        if function in FUNCTIONS and values:
            return self._node(node, "smooth", {"function": function}, "", values[:1])
        raise InputError(f"the operation {name!r} has no rule here", where=f"step {node.name!r}", fix=HELP)

    def _node(
        self, node: fx.Node, kind: str, options: dict[str, Any], module: str, values: Sequence[str]
    ) -> Node:
        if kind in ("smooth", "gated") and not self.approx:
            what = options["function"] if kind == "smooth" else "product"
            raise InputError(
                f"the {what} at {str(node.target)!r} is not a ReLU, so the distance would be approximate",
                fix="pass approx=True to accept that",
            )
        return Node(node.name, kind, tuple(values), module, options)


def describe(module: nn.Module, is_gain: bool = False, place: str = "") -> tuple[str, dict[str, Any]]:
    """Kind and options of a leaf module; InputError for one without a rule."""
    if is_gain:
        return "gain", _gain_options(module)
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "linear", {"transposed": False}
    if _is_conv1d(module):
        return "linear", {"transposed": True}
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.padding != "same":
        return "conv2d", {
            "stride": list(module.stride), "padding": _pair(module.padding),
            "dilation": list(module.dilation), "groups": module.groups,
        }  # fmt: skip
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
        return "batchnorm", {"eps": module.eps}
    if isinstance(module, nn.MaxPool2d) and not module.ceil_mode and module.dilation in (1, (1, 1)):
        return "maxpool", _pool(module)
    if isinstance(module, nn.AvgPool2d) and not module.ceil_mode and module.count_include_pad:
        return "avgpool", _pool(module)
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return "avgpool", {"kernel": [], "stride": [], "padding": [0, 0]}
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return "flatten", {}
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
        return "identity", {}
    if isinstance(module, nn.ReLU):
        return "relu", {}
    if (function := name_of_module(module)) is not None:
        return "smooth", {"function": function}
    raise InputError(f"{type(module).__name__} has no rule here", where=f"module {place!r}", fix=HELP)


def _fused(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """A product one side of which is an activation becomes one gated step on the activation's input."""
    by_name = {node.name: node for node in nodes}
    uses: dict[str, int] = {}
    for node in nodes:
        for parent in node.parents:
            uses[parent] = uses.get(parent, 0) + 1
    found, gone = [], set()
    for node in nodes:
        if node.kind == "gated":
            for gate, other in (node.parents, node.parents[::-1]):
                inner = by_name[gate]
                if inner.kind in ("smooth", "relu") and uses[gate] == 1:
                    function = inner.options.get("function", "relu")
                    node = Node(node.name, "gated", (inner.parents[0], other), "", {"function": function})
                    gone.add(gate)
                    break
        found.append(node)
    return tuple(node for node in found if node.name not in gone and node.kind != "chunks")


def _affine(node: Node, tensors: Tensors) -> Affine:
    def get(name: str) -> Tensor | None:
        return tensors.get(f"{node.module}.{name}" if node.module else name)

    weight, bias = get("weight"), get("bias")
    if node.kind == "linear":
        assert weight is not None
        return (weight.mT if node.options["transposed"] else weight), bias
    if node.kind == "conv2d":
        assert weight is not None
        return weight, bias
    if node.kind == "gain":
        assert weight is not None
        return weight + node.options["offset"], bias
    mean, var = get("running_mean"), get("running_var")
    assert mean is not None and var is not None
    gain = (var + node.options["eps"]).rsqrt() * (1.0 if weight is None else weight)
    return gain, (0.0 if bias is None else bias) - mean * gain


def _gain_options(module: nn.Module) -> dict[str, Any]:
    """Whether the gain is the weight or one plus it (Gemma): a weight of zeros tells."""
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor)
    x = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    zeros = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(module, zeros, (x,))
    return {"offset": 1.0 if bool(found.abs().max() > 0) else 0.0}


def _spread(per_channel: Tensor, shape: Sequence[int]) -> Tensor:
    """One number per channel as one per place of a flat [C, H, W]."""
    places = 1
    for size in shape[1:]:
        places *= size
    if len(shape) == 1 or per_channel.numel() != shape[0]:
        return per_channel
    return per_channel.repeat_interleave(places)


def _pool(module: Any) -> dict[str, Any]:
    return {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(module.stride),
        "padding": _pair(module.padding),
    }


def _pair(value: Any) -> list[int]:
    if value == "valid":
        return [0, 0]
    return [value, value] if isinstance(value, int) else list(value)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_shape(value: Any) -> bool:
    return isinstance(value, fx.Node) and (
        value.target == "size" or (value.target is getattr and value.args[1] == "shape")
    )


def _count(node: fx.Node) -> int:
    if getattr(node.target, "__name__", node.target) != "chunk":
        raise InputError("indexing has no rule here", where=f"step {node.name!r}", fix=HELP)
    along = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    if along != -1:
        raise InputError("chunk along another axis than the last has no rule here", fix=HELP)
    return int(node.args[1])  # type: ignore[arg-type]


def _inputs(node: fx.Node) -> list[str]:
    return [arg.name for arg in node.args if isinstance(arg, fx.Node)]


def _before(node: fx.Node) -> list[fx.Node]:
    found = []
    for other in node.graph.nodes:
        if other is node:
            return found
        found.append(other)
    return found


def _refuse_training(model: nn.Module) -> None:
    for name, module in model.named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if module.training and (random or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            raise InputError(
                f"{type(module).__name__} is in training mode", where=f"module {name!r}",
                fix="call model.eval()",
            )  # fmt: skip


__all__ = [
    "AFFINE", "ALIAS", "FIXED", "GATES", "Affine", "Node", "Tensors", "apply", "bias_of", "describe",
    "effective", "first_mismatch", "shape_mismatch", "state_of", "trace", "used", "windows",
]  # fmt: skip
