"""From a module to its steps by `torch.fx`: anything without a rule is refused.

Every refusal names the operation and its place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from glasshouse.attribution.function_space_distance.program import AFFINE, Node
from glasshouse.attribution.function_space_distance.smooth import FUNCTIONS, name_of_module
from glasshouse.runtime.errors import InputError

HELP = "use a fallback such as CoresetDistance, or replace the operation"
_TRACED: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def trace(model: nn.Module, *, approx: bool = False, gains: Sequence[str] = ()) -> tuple[Node, ...]:
    """The steps of `model`, the first of kind "input", the last the output.

    `gains` names normalisation modules whose inputs arrive normalised, so that only gain and shift are left.
    Raises InputError naming the first operation without a rule, one that needs `approx=True`, and layers in
    training mode whose outputs then are random or depend on the batch.
    """
    _refuse_training(model)
    # A penalty asks at every training step: the same modules need not be traced again.
    key = tuple((name, type(m).__name__, str(m.extra_repr())) for name, m in model.named_modules())
    stored = _TRACED.get(model)
    if stored is not None and stored[0] == (key, approx, tuple(gains)):
        return stored[1]
    nodes = _traced(model, approx, gains)
    _TRACED[model] = (key, approx, tuple(gains)), nodes
    return nodes


def _traced(model: nn.Module, approx: bool, gains: Sequence[str]) -> tuple[Node, ...]:
    if isinstance(model, nn.Linear | nn.Conv2d) or _is_conv1d(model):  # fx goes into the root, always
        kind, options = describe(model)
        steps = Node("layer", kind, ("input",), "", options), Node("output", "identity", ("layer",))
        return Node("input", "input", ()), *steps
    tracer = _Tracer(gains)
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0][:120]})", fix=HELP
        ) from error
    nodes = _Reader(model, tuple(gains), approx).read(graph)
    return _fused(nodes)


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


def _gain_options(module: nn.Module) -> dict[str, Any]:
    """Whether the gain is the weight or one plus it (Gemma): a weight of zeros tells."""
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor)
    x = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    zeros = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(module, zeros, (x,))
    return {"offset": 1.0 if bool(found.abs().max() > 0) else 0.0}


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
