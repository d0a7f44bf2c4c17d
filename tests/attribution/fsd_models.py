"""Small networks for the function-space tests: every kind of step, and moved copies."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*widths: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(F.relu(self.a(x)))
        return self.c(x + torch.relu(x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.gate(x)) * self.up(x))


def conv() -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
        nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(3, 3),
    )  # fmt: skip
    with torch.no_grad():
        found[1].running_mean.normal_()
        found[1].running_var.uniform_(0.5, 2)
    return found.eval()


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """A network of that kind and correlated inputs for it."""
    torch.manual_seed(1)
    if kind == "conv":
        return conv(), torch.randn(300, 1, 6, 6)
    x = torch.randn(300, 6) @ torch.randn(6, 6)
    if kind == "gelu":
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval(), x
    return {"mlp": lambda: mlp(6, 8, 7, 3), "residual": Residual, "gated": Gated}[kind]().eval(), x


def moved(model: nn.Module, size: float = 0.1, seed: int = 3) -> nn.Module:
    found, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    return found


def true_distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(0.5 * (other(x).double() - model(x).double()).flatten(1).square().sum(1).mean())
