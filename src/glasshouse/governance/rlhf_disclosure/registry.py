"""The known problems of RLHF: which are tractable, which fundamental, what in a card would reveal them.

The split is the paper's (arXiv 2307.15217), the list recalled and in our own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from glasshouse.governance._card import Strict
from glasshouse.governance._errors import CardError
from glasshouse.governance._plain import canonical, parse_yaml, read_text
from glasshouse.governance.rlhf_disclosure.taxonomy import RLHFCard

DATA = Path(__file__).with_name("data")
STAGES = ("human feedback", "reward model", "policy", "joint training")


class Problem(Strict):
    """One problem. `revealed_by` are pointers into the card, `measured_by` slugs of systems."""

    id: Annotated[str, Field(pattern=r"^(HF|RM|PO|JT|X)-[A-Za-z0-9-]{1,40}$")]
    stage: Literal["human feedback", "reward model", "policy", "joint training"]
    kind: Literal["tractable", "fundamental"]
    text: Annotated[str, Field(min_length=1, max_length=500)]
    revealed_by: list[str] = Field(default_factory=list)
    measured_by: list[str] = Field(default_factory=list)


def problems(extra: Path | str | None = None) -> dict[str, Problem]:
    """Id -> problem: the 23 shipped, and those of the user's YAML, whose ids start with `X-`.

    Raises CardError for a file that does not fit, another prefix, or an id that stands twice.
    """
    found = dict(_shipped())
    if extra is None:
        return found
    for one in _read(Path(extra)):
        if not one.id.startswith("X-"):
            raise CardError.of("E-FORMAT", f"the id {one.id} does not start with X-", where=str(extra))
        if one.id in found:
            raise CardError.of("E-DUPLICATE", f"{one.id} stands twice", where=str(extra))
        found[one.id] = one
    return found


def exposed(card: RLHFCard) -> Iterator[str]:
    """Fundamental problems of which no field that would reveal them is disclosed; no grade is made of it."""
    fields = dict(card.fields())
    for one in problems().values():
        open_ = [p for p in one.revealed_by if fields[p].status == "disclosed" or fields[p].commitment]
        if one.kind == "fundamental" and not open_:
            yield f"{one.id} {one.text} (would be revealed by {', '.join(one.revealed_by)})"


@cache
def _shipped() -> dict[str, Problem]:
    return {one.id: one for one in _read(DATA / "problems.yaml")}


def _read(path: Path) -> list[Problem]:
    data = parse_yaml(read_text(path), where=str(path))
    rows = data.get("problems") if isinstance(data, dict) else data
    try:
        return TypeAdapter(list[Problem]).validate_json(canonical(rows))
    except ValidationError as error:
        first = error.errors()[0]
        at = "/".join(map(str, first["loc"]))
        raise CardError.of(
            "E-PARSE", f"these are no problems ({at}: {first['msg']})", where=str(path)
        ) from error
