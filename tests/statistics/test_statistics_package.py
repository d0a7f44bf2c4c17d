"""The package is cheap to import, and what it offers is complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from glasshouse import statistics


def test_importing_loads_no_numerical_library():
    code = (
        "import sys, glasshouse.statistics as s; s.Estimate; "
        "print([m for m in ('numpy', 'scipy', 'sklearn', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    assert statistics.__all__ == sorted(statistics.__all__)
    assert {*dir(statistics), "Estimate"} == {*statistics.__all__}  # the one that is there from the start
    for name in statistics.__all__:
        assert callable(getattr(statistics, name))
    with pytest.raises(AttributeError, match="nonsense"):
        statistics.nonsense  # noqa: B018
