r"""Disclosure and openness as data: cards with sources, a validator with stable codes, and what they imply.

    from glasshouse.governance import read_card, validate, to_html

    card = read_card("card.json")          # or .yaml, or a README.md with a card in its front matter
    lint = validate(card, policy="paper-minimum")
    print(*lint.issues, sep="\n")

Three types of card: `openness` (how open is this model, component by component), `rlhf` (what was done with
human feedback), `challenges` (which open problems have evidence). Names are loaded when first used; nothing
here imports torch, and nothing is fetched unless it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glasshouse.governance._card import Card, CardField, Quantity, Source, Statement, Subject, disclosed
    from glasshouse.governance._codes import CODES
    from glasshouse.governance._compare import Change, diff, merge, regressions
    from glasshouse.governance._errors import CardError
    from glasshouse.governance._files import (
        from_markdown,
        read_card,
        to_card,
        to_json,
        to_markdown,
        to_yaml,
        write_card,
    )
    from glasshouse.governance._hub import HubFolder, open_repo, read_folder
    from glasshouse.governance._lint import Issue, Lint, validate
    from glasshouse.governance._prefill import from_hf_repo
    from glasshouse.governance._query import field_frame, query_cards
    from glasshouse.governance._render import card_sections, markdown_section, to_csv, to_html
    from glasshouse.governance._schema import json_schema
    from glasshouse.governance._sources import file_source, run_hash, run_source
    from glasshouse.governance._spdx import normalize_license, parse_expression

_HOMES = {
    "_card": ("Card", "CardField", "Quantity", "Source", "Statement", "Subject", "disclosed"),
    "_codes": ("CODES",),
    "_compare": ("Change", "diff", "merge", "regressions"),
    "_errors": ("CardError",),
    "_files": ("from_markdown", "read_card", "to_card", "to_json", "to_markdown", "to_yaml", "write_card"),
    "_hub": ("HubFolder", "open_repo", "read_folder"),
    "_lint": ("Issue", "Lint", "validate"),
    "_prefill": ("from_hf_repo",),
    "_query": ("field_frame", "query_cards"),
    "_render": ("card_sections", "markdown_section", "to_csv", "to_html"),
    "_schema": ("json_schema",),
    "_sources": ("file_source", "run_hash", "run_source"),
    "_spdx": ("normalize_license", "parse_expression"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CODES",
    "Card",
    "CardError",
    "CardField",
    "Change",
    "HubFolder",
    "Issue",
    "Lint",
    "Quantity",
    "Source",
    "Statement",
    "Subject",
    "card_sections",
    "diff",
    "disclosed",
    "field_frame",
    "file_source",
    "from_hf_repo",
    "from_markdown",
    "json_schema",
    "markdown_section",
    "merge",
    "normalize_license",
    "open_repo",
    "parse_expression",
    "query_cards",
    "read_card",
    "read_folder",
    "regressions",
    "run_hash",
    "run_source",
    "to_card",
    "to_csv",
    "to_html",
    "to_json",
    "to_markdown",
    "to_yaml",
    "validate",
    "write_card",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
