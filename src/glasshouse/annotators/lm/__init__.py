"""The judge that asks a language model."""

from __future__ import annotations

from glasshouse.annotators.lm.annotator import LMAnnotator

__all__ = ["LMAnnotator"]
