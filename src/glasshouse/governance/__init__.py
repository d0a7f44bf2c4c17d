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

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names

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

_HOME = {
    "CODES": "_codes",
    "Card": "_card",
    "CardError": "_errors",
    "CardField": "_card",
    "Change": "_compare",
    "HubFolder": "_hub",
    "Issue": "_lint",
    "Lint": "_lint",
    "Quantity": "_card",
    "Source": "_card",
    "Statement": "_card",
    "Subject": "_card",
    "card_sections": "_render",
    "diff": "_compare",
    "disclosed": "_card",
    "field_frame": "_query",
    "file_source": "_sources",
    "from_hf_repo": "_prefill",
    "from_markdown": "_files",
    "json_schema": "_schema",
    "markdown_section": "_render",
    "merge": "_compare",
    "normalize_license": "_spdx",
    "open_repo": "_hub",
    "parse_expression": "_spdx",
    "query_cards": "_query",
    "read_card": "_files",
    "read_folder": "_hub",
    "regressions": "_compare",
    "run_hash": "_sources",
    "run_source": "_sources",
    "to_card": "_files",
    "to_csv": "_render",
    "to_html": "_render",
    "to_json": "_files",
    "to_markdown": "_files",
    "to_yaml": "_files",
    "validate": "_lint",
    "write_card": "_files",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
