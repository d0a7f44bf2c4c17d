"""Cards inside a repository's README: front matter that the hub reads, and a section that people read.

The user's own front matter and text stay byte for byte. Of the front matter only the block `glasshouse:` is
ours (there the whole card lies), and hub keys the user has not set are added. Of the body only what stands
between the two marker lines is ours. Several cards live side by side, one per type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glasshouse.governance._card import Card
from glasshouse.governance._errors import CardError
from glasshouse.governance._plain import dump_yaml, parse_yaml

BEGIN, END = "<!-- glasshouse:begin -->", "<!-- glasshouse:end -->"
KEY = "glasshouse"
HUB_KEYS = frozenset({
    "license", "license_name", "license_link", "license_details", "base_model", "base_model_relation",
    "datasets", "language", "library_name", "pipeline_tag", "tags", "metrics", "model-index", "model_name",
    "inference", "thumbnail", "widget", "extra_gated_prompt", "extra_gated_fields", "co2_eq_emissions",
    "eval_results", "new_version",
})  # fmt: skip
_FENCE = re.compile(r"---[ \t]*\r?")


@dataclass(frozen=True)
class Readme:
    """A Markdown file: its front matter as written (None without one) and the rest."""

    front: str | None
    body: str

    @property
    def data(self) -> dict[str, Any]:
        """The front matter as plain data; CardError with the line when it is no map of keys."""
        if self.front is None or not self.front.strip():
            return {}
        found = parse_yaml(self.front, where="front matter", first_line=2)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise CardError.of("E-PARSE", "the front matter is no map of keys", where="front matter")
        return found


def split_readme(text: str) -> Readme:
    """Front matter and body. Raises CardError for a front matter that is opened and never closed."""
    lines = text.split("\n")
    if not _FENCE.fullmatch(lines[0]):
        return Readme(None, text)
    for number, line in enumerate(lines[1:], 1):
        if _FENCE.fullmatch(line):
            front = "\n".join(lines[1:number])
            rest = lines[number + 1 :]
            # Without a newline after the fence there is no body, not even an empty line.
            return Readme(front, "\n".join(rest) if rest else "")
    raise CardError.of("E-PARSE", "the front matter is not closed", where="line 1", fix="end it with ---")


def cards_in(text: str) -> dict[str, dict[str, Any]]:
    """Type -> plain data of every card in a Markdown file's front matter."""
    block = split_readme(text).data.get(KEY) or {}
    if not isinstance(block, dict) or not all(isinstance(card, dict) for card in block.values()):
        raise CardError.of("E-PARSE", "the block 'glasshouse' holds no cards", where="front matter")
    return block


def write_into(text: str, card: Card, metadata: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """`text` (a README, or "") with the card in it; the user's keys and words stay.

    `metadata` are hub keys, added where the user has none; `sections` is type -> Markdown for people, of
    this card and of those already there.
    """
    readme = split_readme(text)
    block = dict(cards_in(text))
    block[card.card_type] = card.plain()
    unknown = set(metadata) - HUB_KEYS
    if unknown:
        raise KeyError(f"not keys of the hub: {sorted(unknown)}")
    kept = _without_block(readme.front or "")
    theirs = readme.data
    ours = {key: value for key, value in metadata.items() if key not in theirs}
    front = kept + (dump_yaml(ours) if ours else "") + dump_yaml({KEY: block})
    return f"---\n{front}---\n{_replace_section(readme.body, sections)}"


def conflicts(text: str, metadata: Mapping[str, Any]) -> list[str]:
    """Hub keys whose value in the README differs from the card's; the README's is kept."""
    theirs = split_readme(text).data
    return [key for key, value in metadata.items() if key in theirs and theirs[key] != value]


def _without_block(front: str) -> str:
    """The front matter without our block, every other character as it was, ending in a newline."""
    import yaml

    if not front.strip():
        return ""
    root = yaml.compose(front, Loader=yaml.SafeLoader)
    if root is None:
        return front.rstrip("\n") + "\n"
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        found = parse_yaml(front, where="front matter", first_line=2)
        return dump_yaml({k: v for k, v in found.items() if k != KEY}) if set(found) - {KEY} else ""
    starts = [key.start_mark.index for key, _ in root.value]
    for place, (key, _) in enumerate(root.value):
        if key.value == KEY:
            end = starts[place + 1] if place + 1 < len(starts) else len(front)
            front = front[: starts[place]] + front[end:]
            break
    return front.rstrip("\n") + "\n" if front.strip() else ""


def _replace_section(body: str, sections: Mapping[str, str]) -> str:
    ours = "\n".join([BEGIN, *(sections[kind].rstrip("\n") + "\n" for kind in sorted(sections)), END])
    lines = body.split("\n")
    begins = [i for i, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [i for i, line in enumerate(lines) if line.strip() == END]
    if not begins and not ends:
        return f"{body}{'' if not body or body.endswith(chr(10)) else chr(10)}{ours}\n"
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise CardError.of(
            "E-PARSE",
            "the glasshouse markers of the README are damaged",
            fix=f"keep one {BEGIN} and one {END}",
        )
    return "\n".join([*lines[: begins[0]], ours, *lines[ends[0] + 1 :]])
