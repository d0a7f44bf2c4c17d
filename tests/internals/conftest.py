"""Shared by the tests of the internals wing: tiny random models of every family, and the story model."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def _subjects():
    path = Path(__file__).parent.parent / "subjects" / "conftest.py"
    spec = importlib.util.spec_from_file_location("internals_subjects_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUBJECTS = _subjects()


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """A cache of its own, so that no earlier result is read."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GLASSHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny():
    """`tiny.subject(family)`, `tiny.model(family, vocab=, dtype=)`, `tiny.rows(count)`, `tiny.families`."""
    from types import SimpleNamespace

    return SimpleNamespace(
        subject=SUBJECTS.tiny_subject, model=SUBJECTS.tiny_model, rows=SUBJECTS.token_rows,
        families=SUBJECTS.FAMILIES, tokenizer=SUBJECTS.byte_tokenizer,
    )  # fmt: skip


@pytest.fixture(params=SUBJECTS.FAMILIES)
def any_family(request):
    return request.param


@pytest.fixture(scope="session")
def stories():
    """The subject stories260K; skips where it is not at $GLASSHOUSE_DATA."""
    from glasshouse.subjects import as_subject

    folder = Path(os.environ.get("GLASSHOUSE_DATA", "absent")) / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not at $GLASSHOUSE_DATA/stories260K")
    return as_subject(folder, device="cpu", self_test=False)
