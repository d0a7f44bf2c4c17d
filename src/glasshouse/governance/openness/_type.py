"""The openness card, as the wing's tools know it."""

from __future__ import annotations

from glasshouse.governance._types import CardType
from glasshouse.governance.openness.checks import check
from glasshouse.governance.openness.prefill import metadata, prefill
from glasshouse.governance.openness.report import sections
from glasshouse.governance.openness.taxonomy import OpennessCard

TYPE = CardType(
    "openness", "Openness card", OpennessCard,
    check=check, prefill=prefill, sections=sections, metadata=metadata,
    policies={"all-components": {"require": ["/components"], "justified": True}},
)  # fmt: skip
