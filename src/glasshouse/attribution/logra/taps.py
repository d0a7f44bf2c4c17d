"""Hooks inside a live training step: projected gradients of each row, with nothing in the step changed.

`subjects.capture.Capture` freezes parameters and wants evaluation mode; a training loop can have neither. A
tap keeps a reference to the module's input and puts a hook on the tensor it returned, so that parameters,
graph and loss stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glasshouse.attribution.logra.projection import Projection
from glasshouse.attribution.stages.guards import select_modules
from glasshouse.runtime.errors import UntrackedModuleError
from glasshouse.subjects.capture import Pair, TrackedModule, describe_modules

# The layouts that capture gives to images, to embeddings and to flattened positions, written once, there.
from glasshouse.subjects.capture import _has_bias as has_bias
from glasshouse.subjects.capture import _inputs as input_tokens
from glasshouse.subjects.capture import _outputs as output_tokens

Seen = Callable[[str, Pair], None]
"""`seen(name, pair)`: one call of a module has its gradient."""


class Tap:
    """One module's hook. Without a branch `seen` gets the pair (a, g); with one, (P_i a, P_o g)."""

    def __init__(self, name: str, module: nn.Module, seen: Seen, branch: Branch | None = None) -> None:
        self.name, self.module, self.seen, self.branch = name, module, seen, branch
        self.handle: RemovableHandle = module.register_forward_hook(self._forward, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off."""
        self.handle.remove()

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        raw = args[0] if args else next(iter(kwargs.values()))
        if self.branch is not None:
            return self._branched(module, raw, output)
        if not output.requires_grad:
            return None  # reported as a module without a gradient
        raw = raw.detach()

        def backward(grad: Tensor) -> None:
            g = output_tokens(module, grad.detach())
            a = input_tokens(module, raw)
            self.seen(
                self.name, Pair(a.float(), g.reshape(len(a), -1, g.shape[-1]).float(), has_bias(module))
            )

        # Registered before any later in-place change of the output, the hook belongs to this very value.
        output.register_hook(backward)
        return None

    def _branched(self, module: nn.Module, raw: Tensor, output: Tensor) -> Tensor:
        assert self.branch is not None
        small = self.branch.down(input_tokens(module, raw))
        middle = self.branch.middle(small)

        def backward(grad: Tensor) -> None:
            self.seen(self.name, Pair(small.detach().float(), grad.detach().float()))

        middle.register_hook(backward)
        return output + _like(module, self.branch.up(middle), output)


class Branch(nn.Module):
    """The bottleneck `C B A` beside a module, B zero: the output stays, dL/dB is the projected gradient.

    It lives outside the model: state dicts and optimisers do not see it.
    """

    def __init__(self, projection: Projection, *, bias: bool, like: Tensor) -> None:
        super().__init__()
        A = projection.Pi.to(like)
        self.register_buffer("A", A[:, :-1] if bias else A)
        self.register_buffer("shift", A[:, -1] if bias else None)
        self.register_buffer("C", projection.Po.T.to(like).contiguous())
        self.B = nn.Parameter(like.new_zeros(projection.shape))

    def down(self, a: Tensor) -> Tensor:
        """`A x`, [B, T, r_i]."""
        return nn.functional.linear(a, self.A, self.shift)

    def middle(self, small: Tensor) -> Tensor:
        """`B A x`, [B, T, r_o]."""
        return nn.functional.linear(small, self.B)

    def up(self, middle: Tensor) -> Tensor:
        """`C B A x`, [B, T, out]."""
        return nn.functional.linear(middle, self.C)


def hookable(model: nn.Module, modules: str | Sequence[str]) -> list[TrackedModule]:
    """The modules to tap: those that can be tracked, and quantised ones that are asked for by name.

    Only a and g are needed, so weights of any format will do; what their training rows did not change (a
    frozen weight beside trained ones) is left out, as everywhere, unless it is quantised and named.
    """
    wanted = [modules] if isinstance(modules, str) else list(modules)
    quantised = [m for m in _quantised(model) if any(_matches(w, m.name) for w in wanted)]
    named = [w for w in wanted if not any(_matches(w, m.name) for m in quantised)]
    found = select_modules(model, named if named else wanted) if named or not quantised else []
    order = {name: k for k, (name, _) in enumerate(model.named_modules())}
    return sorted([*found, *quantised], key=lambda m: order[m.name])


def shaped(pair: Pair, rows: int, name: str) -> Pair:
    """The pair with the batch of `rows` as first axis, where a model flattened rows and positions."""
    n = len(pair.a)
    if n == rows:
        return pair
    if n % rows:
        raise UntrackedModuleError(
            f"it was called with {n} rows in a batch of {rows} ids", where=f"module {name!r}",
            fix="give one id per row of the batch, or leave the module out",
        )  # fmt: skip
    return Pair(
        pair.a.reshape(rows, -1, pair.a.shape[2]), pair.g.reshape(rows, -1, pair.g.shape[2]), pair.ones
    )


def masked(pair: Pair, mask: Tensor | None) -> tuple[Pair, float]:
    """The pair with zeros at padding, and the tokens that are none."""
    B, T, _ = pair.a.shape
    if mask is None or T % mask.shape[1]:
        return pair, float(B * T)
    valid = mask.bool().to(pair.a.device)
    hidden = ~valid.repeat(1, T // mask.shape[1]).unsqueeze(-1)
    tokens = float(valid.sum()) * (T // mask.shape[1])
    return Pair(pair.a.masked_fill(hidden, 0), pair.g.masked_fill(hidden, 0), pair.ones), tokens


def _like(module: nn.Module, extra: Tensor, output: Tensor) -> Tensor:
    """[B, T, out] in the layout of the module's output."""
    if isinstance(module, nn.Conv2d):
        extra = extra.transpose(1, 2)
    return extra.reshape(output.shape).to(output.dtype)


def _quantised(model: nn.Module) -> list[TrackedModule]:
    found = []
    for name, module in model.named_modules():
        weight, sizes = getattr(module, "weight", None), ("out_features", "in_features")
        if (
            not isinstance(weight, Tensor)
            or weight.is_floating_point()
            or not all(hasattr(module, s) for s in sizes)
        ):
            continue
        bias = getattr(module, "bias", None) is not None
        out, inn = int(module.out_features), int(module.in_features) + bias
        found.append(TrackedModule(name, "linear", out, inn, bias, weight.numel(), True, ""))
    return found


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name or (pattern != "auto" and fnmatchcase(name, pattern))


__all__ = ["Branch", "Tap", "describe_modules", "hookable", "masked", "shaped"]
