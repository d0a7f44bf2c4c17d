"""The head of a model, U(h) = unembed(final norm(h)), as a frozen copy that outlives the model it came from.

A copy, because the output matrix of many models is also their input matrix, and a lens must not change when
the model is trained on. Norm and softmax are computed in fp32: the norm of a half-precision stream overflows.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glasshouse.runtime.errors import AccessError, InputError


class Head:
    """Final norm, projection behind it (OPT-350m), output matrix, bias and soft cap (Gemma-2) of one model.

    `weight` is [V, d'] with d' = d unless there is a projection. On an accelerator the matrix keeps the
    model's half precision, on a processor everything is fp32.
    """

    def __init__(
        self,
        norm: nn.Module,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        after: nn.Module | None = None,
        cap: float | None = None,
        name: str = "",
    ) -> None:
        half = weight.device.type != "cpu" and weight.dtype in (torch.bfloat16, torch.float16)
        self.weight = weight.detach().clone().to(weight.dtype if half else torch.float32)
        self.bias = None if bias is None else bias.detach().clone().float()
        self.norm = _frozen(norm, weight.device)
        self.after = None if after is None else _frozen(after, weight.device)
        self.cap, self.name = cap, name

    @classmethod
    def of(cls, subject: Any) -> Head:
        """The head of a subject. Raises AccessError where the output embedding is not one matrix."""
        parts = subject.parts
        matrix = parts.unembed
        if not isinstance(matrix, nn.Linear) or type(matrix).forward is not nn.Linear.forward:
            raise AccessError(
                f"its output embedding {parts.architecture.unembed!r} is a {type(matrix).__name__}, not one "
                "linear map",
                where=subject.name,
                fix="merge adapters of the output matrix into it",
            )
        if not isinstance(parts.final_norm, nn.Module) or isinstance(parts.final_norm, nn.Identity):
            raise AccessError(
                f"the module {parts.architecture.final_norm!r} is no final norm",
                where=subject.name,
                fix="describe the family with register_arch",
            )
        return cls(
            parts.final_norm, matrix.weight, matrix.bias,
            after=parts.after_norm, cap=parts.soft_cap, name=subject.name,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """V, rows of the output matrix (padding rows included)."""
        return int(self.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the head computes."""
        return self.weight.device

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything the head computes with: which model a lens belongs to."""
        digest = hashlib.sha256(f"{tuple(self.weight.shape)} {self.cap}".encode())
        after = {} if self.after is None else {f"after.{k}": v for k, v in self.after.state_dict().items()}
        tensors = {"weight": self.weight, "bias": self.bias, **self.norm.state_dict(), **after}
        for name in sorted(tensors):
            if (tensor := tensors[name]) is not None:
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def normed(self, h: Tensor) -> Tensor:
        """What the output matrix reads, fp32 [..., d'], of residuals h [..., d]; differentiable."""
        x: Tensor = self.norm(h.to(self.device, torch.float32))
        return x if self.after is None else self.after(x)

    def raw(self, x: Tensor, vocab_ids: Tensor | None = None) -> Tensor:
        """Logits before the cap, fp32 [..., V], of normed states x [..., d']."""
        weight = self.weight if vocab_ids is None else self.weight[vocab_ids]
        z = F.linear(x.to(weight.dtype), weight).float()
        if self.bias is None:
            return z
        return z + (self.bias if vocab_ids is None else self.bias[vocab_ids])

    def capped(self, z: Tensor) -> Tensor:
        """The soft cap, where the model has one."""
        return z if self.cap is None else torch.tanh(z / self.cap) * self.cap

    def logits(self, h: Tensor, vocab_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """U(h): fp32 [..., V], or [..., len(vocab_ids)], of residuals h [..., d] before the final norm."""
        ids = None if vocab_ids is None else torch.as_tensor(vocab_ids, device=self.device)
        return self.capped(self.raw(self.normed(h), ids))


def check_width(h: Tensor, d_model: int, where: str) -> None:
    """Raise InputError unless h is a finite-width float tensor [..., d]."""
    if not isinstance(h, Tensor) or h.ndim == 0 or h.shape[-1] != d_model or not h.is_floating_point():
        given = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise InputError(
            f"hidden states of shape {given} do not fit a stream of width {d_model}",
            where=where,
            fix="give floats [..., d]",
        )


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(module).to(device=device, dtype=torch.float32).eval().requires_grad_(False)
