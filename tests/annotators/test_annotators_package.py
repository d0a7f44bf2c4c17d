"""The package is cheap to import, and what it offers is complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from glasshouse import annotators


def test_importing_loads_no_numerical_library_and_no_inspect():
    code = (
        "import sys, glasshouse.annotators as a; "
        "heavy = ('numpy', 'scipy', 'torch', 'pandas', 'inspect_ai', 'transformers'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_offline_judges_load_no_inspect_and_no_torch():
    code = (
        "import sys; from glasshouse.annotators import LexicalAnnotator, StyleAnnotator, RuleAnnotator, "
        "OracleAnnotator, PanelAnnotator, cohen_kappa, LMAnnotator; "
        "LexicalAnnotator().rate(['mentions any of: a'], ['a']); "
        "print([m for m in ('torch', 'inspect_ai', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    assert annotators.__all__ == sorted(annotators.__all__)
    assert dir(annotators) == annotators.__all__
    for name in annotators.__all__:
        assert getattr(annotators, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        annotators.nonsense  # noqa: B018
