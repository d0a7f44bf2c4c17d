"""For tests of executors: a training loss that notes the rows it sees and can kill the process it runs in."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.attribution import EKFAC

ROWS, SHARDS = 24, 6
PASSES = 3
"""Covariance, eigenvalue correction and scores each go over the rows once."""


class Noted:
    """Cross-entropy per row; outside its maker's process it notes rows, and dies once at row `dies`."""

    def __init__(self, folder: Path, dies: str | None = None) -> None:
        self.folder, self.dies, self.maker = folder, dies, os.getpid()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if os.getpid() != self.maker:
            self._note(batch.row_ids)
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    def _note(self, rows: tuple[str, ...]) -> None:
        with open(self.folder / "seen", "a") as handle:
            handle.write("".join(f"{row}\n" for row in rows))
        dead = self.folder / "dead"
        if self.dies in rows and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def seen(folder: Path) -> list[str]:
    """Rows in the order in which workers took them up."""
    return (folder / "seen").read_text().split()


def task() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small classifier and its rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    g = torch.Generator().manual_seed(1)
    return model, (torch.randn(ROWS, 6, generator=g), torch.randint(0, 3, (ROWS,), generator=g))


def scores(
    model: nn.Module, rows: tuple[Tensor, Tensor], executor: str, store: Any = None, objective: Any = None
) -> Any:
    """Three queries' scores by EK-FAC in `SHARDS` shards."""
    method = EKFAC(shards=SHARDS, label_mode="empirical")
    method.fit(model, rows, objective=objective, executor=executor, store=store)
    return method.score((rows[0][:3], rows[1][:3]), executor=executor, store=store).scores
