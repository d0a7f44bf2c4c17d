"""The contract's plain modules lie beside this file: checks, cases, and one broken method for every check."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """A cache of its own, so that no earlier result is read."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()
