"""Layer inputs and output gradients of a forward pass: the two halves of every per-example weight gradient.

The gradient of example n at a tracked module is `G_n = sum_t g[n, t] a[n, t]^T`, [out, in(+1)], where a is
the module's input (with 1 appended when it has a bias) and g the gradient of the *summed* loss at its output.
Only the outputs are differentiated: parameter gradients are neither computed nor stored. Works on any
`nn.Module` (Grosse et al. 2023, arXiv:2308.03296, section 2; Martens and Grosse 2015 for the notation).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from glasshouse.runtime.errors import InputError, NumericalError, ReductionError, UntrackedModuleError
from glasshouse.subjects.modules import TrackedModule, as_matrix, as_parameters, describe_modules

__all__ = ["Capture", "Pair", "TrackedModule", "as_matrix", "as_parameters", "describe_modules"]

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Pair:
    """`a` [B, T, in(+1)] and `g` [B, T, out] of one module, in the model's dtype.

    T is 1 for inputs without positions, the number of output pixels for a Conv2d, one-hot rows for an
    Embedding. A module called k times in the pass has all its calls along T. With `ones` the bias's column of
    ones belongs after the last one of `a` and is not stored: products stay at widths that processors like,
    and `a` is the model's own activation, not a copy.
    """

    a: Tensor
    g: Tensor
    ones: bool = False

    @property
    def in_features(self) -> int:
        """Columns of the layer gradient, the bias's included."""
        return self.a.shape[2] + self.ones

    def gradient(self) -> Tensor:
        """Per-example layer gradients [B, out, in(+1)]."""
        found = torch.einsum("bto,bti->boi", self.g, self.a)
        return torch.cat([found, self.g.sum(1).unsqueeze(2)], 2) if self.ones else found


@dataclass(frozen=True)
class _Call:
    a: Tensor  # the module's raw input
    edge: GradientEdge | None
    output: Tensor  # kept for its shape and dtype only (detached)


class Capture:
    """Record (a, g) of the named modules inside a `with` block.

    >>> model = nn.Linear(2, 1)
    >>> with Capture(model, [""]) as capture:
    ...     pairs = capture.gradients(model(torch.ones(3, 2)).sum())
    >>> tuple(pairs[""].a.shape), tuple(pairs[""].g.shape)
    ((3, 1, 3), (3, 1, 1))

    Parameters are frozen inside the block and restored after it, so the graph starts at the first tracked
    module. With `ones=False` no column of ones is stored (see `Pair`). Raises UntrackedModuleError for
    modules that cannot be tracked, InputError for a second capture of the same model or for a model whose
    training mode makes examples random or dependent on one another.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, ones: bool = True) -> None:
        described = {module.name: module for module in describe_modules(model, list(names))}
        self.modules: dict[str, TrackedModule] = {name: described[name] for name in names}
        self.model, self.ones = model, ones
        self._calls: dict[str, list[_Call]] = {}
        self._handles: list[RemovableHandle] = []
        self._trainable: list[nn.Parameter] = []
        self._inputs_only = False
        self._shape: torch.Size | None = None

    def __enter__(self) -> Capture:
        if self.model in _ACTIVE:
            raise InputError(
                "this model is already being captured", fix="leave the first `with Capture` block"
            )
        _refuse_training_mode(self.model)
        _ACTIVE.add(self.model)
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        tokens = next((m for m in self.model.modules() if isinstance(m, nn.Embedding)), None)
        if tokens is not None:
            self._handles.append(tokens.register_forward_pre_hook(self._note_shape))
        for name in self.modules:
            hook = self._recorder(name)
            self._handles.append(self.model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._handles, self._trainable, self._calls = [], [], {}
        _ACTIVE.discard(self.model)

    def gradients(self, loss: Tensor, *, retain_graph: bool = False) -> dict[str, Pair]:
        """The pairs of every forward pass since the last call, for a scalar `loss` that is a sum over units.

        With `retain_graph` the same forward pass can be differentiated again (another label, another query).
        Raises ReductionError for a loss that is not a scalar, NumericalError for NaN or infinity,
        UntrackedModuleError for a module that the pass did not call.
        """
        if loss.ndim:
            raise ReductionError(
                f"the loss has shape {tuple(loss.shape)}, not one number", fix="sum it over the batch"
            )
        if not torch.isfinite(loss):
            raise NumericalError(f"the loss is {loss.item()}", fix="look at the rows of this batch")
        calls = [(name, call) for name in self.modules for call in self._called(name)]
        edges = [call.edge for _, call in calls if call.edge is not None]
        grads = torch.autograd.grad(loss, edges, retain_graph=retain_graph, allow_unused=True)
        pairs = self._pairs(calls, grads)
        if not retain_graph:
            self._calls = {}
        return pairs

    def activations(self, forward: Callable[[], Any]) -> dict[str, Tensor]:
        """The inputs a [B, T, in(+1)] alone, from one call of `forward` without gradients."""
        self._inputs_only = True
        try:
            with torch.no_grad():
                forward()
            found = {}
            for name in self.modules:
                module = self.model.get_submodule(name)
                found[name] = torch.cat([_with_ones(module, call.a) for call in self._called(name)], dim=1)
            return found
        finally:
            self._inputs_only, self._calls = False, {}

    def _note_shape(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Rows and positions of the batch, as the token ids have them."""
        ids = args[0] if args else None
        self._shape = ids.shape if isinstance(ids, Tensor) and ids.ndim == 2 else None

    def _recorder(self, name: str) -> Callable[..., Tensor | None]:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Tensor | None:
            if not (torch.is_grad_enabled() or self._inputs_only):
                return None  # a pass without gradients, for instance to sample labels
            a = args[0] if args else next(iter(kwargs.values()))
            if self._shape is not None and a.ndim == 2 and len(a) == self._shape.numel():
                a = a.unflatten(0, self._shape)  # OPT flattens rows and positions around its MLP
            output, edge, replaced = self._root(output)
            self._calls.setdefault(name, []).append(_Call(a.detach(), edge, output.detach()))
            return output if replaced else None

        return record

    def _root(self, output: Tensor) -> tuple[Tensor, GradientEdge | None, bool]:
        """The output, the graph edge of its value, and whether the hook replaced it.

        Nothing below the first tracked module needs gradients, so the graph is rooted at its output. The edge
        (not the tensor) is kept, because a later in-place ReLU would change what the tensor stands for.
        """
        if self._inputs_only:
            return output, None, False
        rooted = not output.requires_grad
        if rooted:
            output = output.detach().requires_grad_().clone()
        return output, get_gradient_edge(output), rooted

    def _called(self, name: str) -> list[_Call]:
        calls = self._calls.get(name)
        if not calls:
            raise UntrackedModuleError(
                "the pass did not call it",
                where=f"module {name!r}",
                fix="run the model with gradients, or leave it out",
            )
        return calls

    def _pairs(self, calls: list[tuple[str, _Call]], grads: Sequence[Tensor | None]) -> dict[str, Pair]:
        halves: dict[str, list[tuple[Tensor, Tensor]]] = {}
        rows = min(call.a.shape[0] for _, call in calls)
        for (name, call), grad in zip(calls, grads, strict=True):
            module = self.model.get_submodule(name)
            a = _with_ones(module, call.a) if self.ones else _inputs(module, call.a)
            # A module that the loss does not depend on has gradient zero.
            g = _outputs(module, torch.zeros_like(call.output) if grad is None else grad)
            g = g.reshape(len(a), -1, g.shape[-1])  # where the input was unflattened
            if a.shape[0] != rows and a.shape[1] == 1 and a.shape[0] % rows == 0:
                # The same in a model whose token ids were not seen: fold as the other modules are.
                a, g = a.reshape(rows, -1, a.shape[-1]), g.reshape(rows, -1, g.shape[-1])
            if a.shape[0] != rows:
                raise UntrackedModuleError(
                    f"it was called with {a.shape[0]} rows in a batch of {rows}",
                    where=f"module {name!r}",
                    fix="its first axis must be the batch; leave it out",
                )
            halves.setdefault(name, []).append((a, g))
        return {
            name: Pair(
                _joined([a for a, _ in parts]),
                _joined([g for _, g in parts]),
                not self.ones and _has_bias(self.model.get_submodule(name)),
            )
            for name, parts in halves.items()
        }


def _joined(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(calls, 1)


def _has_bias(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding) and getattr(module, "bias", None) is not None


def _with_ones(module: nn.Module, a: Tensor) -> Tensor:
    """The raw input as [B, T, in(+1)]."""
    a = _inputs(module, a)
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1) if _has_bias(module) else a


def _inputs(module: nn.Module, a: Tensor) -> Tensor:
    """The raw input as [B, T, in]."""
    if isinstance(module, nn.Embedding):
        hot = F.one_hot(a.reshape(a.shape[0], -1), module.num_embeddings).to(module.weight.dtype)
        if module.padding_idx is not None:
            hot[..., module.padding_idx] = 0  # torch never gives this row a gradient
        return hot
    if isinstance(module, nn.Conv2d):
        return _patches(module, a)
    return a.reshape(a.shape[0], -1, a.shape[-1])


def _patches(module: nn.Conv2d, a: Tensor) -> Tensor:
    """Image [B, C, H, W] as the patches the kernel meets, [B, pixels, C*kh*kw]."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    return F.unfold(padded, kernel, dilation=dilation, stride=stride).transpose(1, 2)


def _outputs(module: nn.Module, g: Tensor) -> Tensor:
    """The output gradient as [B, T, out]."""
    if isinstance(module, nn.Conv2d):
        return g.flatten(2).transpose(1, 2)
    return g.reshape(g.shape[0], -1, g.shape[-1])


def _refuse_training_mode(model: nn.Module) -> None:
    """Dropout makes g random, batch normalisation ties rows together, checkpointing runs modules twice."""
    noisy = [name or type(module).__name__ for name, module in model.named_modules() if _is_noisy(module)]
    if noisy:
        listed = ", ".join(noisy[:5]) + (f" and {len(noisy) - 5} more" if len(noisy) > 5 else "")
        raise InputError(
            f"in training mode these make gradients random or dependent on the batch: {listed}",
            fix="call model.eval()",
        )


def _is_noisy(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(
        module, "gradient_checkpointing", False
    ):
        return True
    rates = (getattr(module, name, 0.0) for name in ("attention_dropout", "dropout", "dropout_p"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
