"""Opening a model by stage of AI development: what it may bring, what it may cost, and how sure one is.

The shipped sheet restates the papers' position (arXiv 2404.17047, 2405.08597) in our words and from memory:
every row says so. Users enter their own in YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from glasshouse.governance._card import Strict
from glasshouse.governance._errors import CardError
from glasshouse.governance._plain import canonical, parse_yaml, read_text
from glasshouse.runtime import files

Stage = Literal["near-term", "mid-term", "long-term"]
Area = Literal["research and innovation", "safety and security", "equity and access", "society"]
LABEL = "paper position, paraphrased, recalled"
DATA = Path(__file__).with_name("data")


class Row(Strict):
    """One stage and area. `differential` says how open compares with closed, -2 (much worse) to 2."""

    stage: Stage
    area: Area
    opportunities: list[str] = Field(default_factory=list)
    risks: list[str] = Field(default_factory=list)
    mitigations: list[str] = Field(default_factory=list)
    differential: Annotated[float, Field(ge=-2, le=2)]
    confidence: Annotated[float, Field(ge=0, le=1)]
    label: str = "user"


@dataclass(frozen=True)
class StageAssessment:
    """A sheet of rows, one per stage and area."""

    rows: tuple[Row, ...]

    def by_stage(self) -> dict[str, tuple[float, float]]:
        """Stage -> (mean differential weighted by confidence, mean confidence); no stage is called safe."""
        found = {}
        for stage in dict.fromkeys(row.stage for row in self.rows):
            rows = [row for row in self.rows if row.stage == stage]
            weight = sum(row.confidence for row in rows)
            mean = sum(row.differential * row.confidence for row in rows) / weight if weight else 0.0
            found[str(stage)] = (mean, weight / len(rows))
        return found

    def against(self, other: StageAssessment) -> list[dict[str, Any]]:
        """Rows of both whose differential differs, ours beside theirs."""
        theirs = {(row.stage, row.area): row for row in other.rows}
        return [
            {"stage": row.stage, "area": row.area, "ours": row.differential, "theirs": match.differential}
            for row in self.rows
            if (match := theirs.get((row.stage, row.area))) and match.differential != row.differential
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        """Plain rows for a table."""
        return [row.model_dump(mode="json") for row in self.rows]


@cache
def paper_sheet() -> StageAssessment:
    """The papers' position, paraphrased and recalled, twelve rows."""
    rows = files.read_json(DATA / "stages.json")["rows"]
    return _sheet([{**row, "label": LABEL} for row in rows], "the shipped sheet")


def read_sheet(path: Path | str) -> StageAssessment:
    """A user's sheet: a YAML list of rows (stage, area, differential, confidence, and lists of words).

    Raises CardError with the first row that does not fit, or that stands twice.
    """
    return _sheet(parse_yaml(read_text(path), where=str(path)), str(path))


def _sheet(data: Any, where: str) -> StageAssessment:
    try:
        rows: Sequence[Row] = TypeAdapter(list[Row]).validate_json(canonical(data))
    except ValidationError as error:
        first = error.errors()[0]
        at = "/".join(map(str, first["loc"]))
        raise CardError.of("E-PARSE", f"this is no sheet (row {at}: {first['msg']})", where=where) from error
    places = [(row.stage, row.area) for row in rows]
    for place in places:
        if places.count(place) > 1:
            raise CardError.of("E-DUPLICATE", f"{place[0]}, {place[1]} stands twice", where=where)
    return StageAssessment(tuple(rows))
