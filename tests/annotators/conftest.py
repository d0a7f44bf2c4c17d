"""Shared by the annotators' tests; their plain helpers live in mock_judge.py beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
