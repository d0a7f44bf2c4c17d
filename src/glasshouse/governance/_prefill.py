"""A card filled with what a model's folder tells, the rest unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasshouse.governance._hub import open_repo
from glasshouse.governance._types import card_type


def from_hf_repo(
    source: Path | str, *, kind: str = "openness", revision: str | None = None, online: bool = False
) -> Any:
    """The card of type `kind` for a local folder or a hub id; what cannot be read stays `unknown`.

    No tensor is loaded, no pickle opened, and the network is used only when `online`. Sources are relative to
    the folder: keep the card there. Raises CardError for what cannot be read, with file and line.
    """
    return card_type(kind).prefill(open_repo(source, revision=revision, online=online))
