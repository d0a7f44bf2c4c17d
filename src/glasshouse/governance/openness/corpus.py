"""Published judgements to compare with, shipped as facts with source, licence and date.

    taxonomy-45     45 models by the twelve components (2024-05-16; 40 of them are the paper's)
    mof             273 model descriptions of the Model Openness Framework (2026-05-11)
    opening-up      46 instruction-tuned systems by fourteen dimensions (CC-BY-4.0, Liesenfeld et al. 2023)

They are their maintainers' words of that day, never present facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glasshouse.governance._spdx import normalize_license
from glasshouse.governance.openness.taxonomy import OpennessCard, kind_of
from glasshouse.runtime import files

DATA = Path(__file__).with_name("data")
POINTS = {"o": 1.0, "p": 0.5, "c": 0.0}


@dataclass(frozen=True)
class Row:
    """One published model: `cells` is component -> (level 1 to 5, "N/A" or "Unknown"; licence or hint)."""

    slug: str
    title: str
    link: str
    release: str
    in_40: bool
    cells: dict[str, tuple[int | str, str | None]]

    def card(self) -> OpennessCard:
        """The row as a card of the day it was judged, self-reported, with its source."""
        return OpennessCard.parse({
            "card_type": "openness", "issued": "2024-05-16", "issuer": "open-source-llms.github.io",
            "subject": {"name": self.title},
            "components": {name: _cell(name, *cell, self.link) for name, cell in self.cells.items()},
        })  # fmt: skip


@dataclass(frozen=True)
class Project:
    """One system of opening-up-chatgpt: `classes` is dimension -> open, partial or closed."""

    slug: str
    base: str
    organisation: str
    license: str
    classes: dict[str, str]
    published: float

    @property
    def openness(self) -> float:
        """Their score, worked out again: open 1, partial 0.5, closed 0, summed over fourteen dimensions."""
        return sum(POINTS[one[0]] for one in self.classes.values())


def about(name: str) -> dict[str, Any]:
    """Source, licence, date of a shipped table: taxonomy-45, opening-up-chatgpt or mof-models."""
    return dict(files.read_json(DATA / f"{name}.json")["about"])


@cache
def taxonomy_rows() -> tuple[Row, ...]:
    """The 45 published rows, in alphabetical order."""
    data = files.read_json(DATA / "taxonomy-45.json")
    names = data["about"]["components"]
    return tuple(_row(row, names) for row in data["rows"])


@cache
def taxonomy_cards() -> dict[str, OpennessCard]:
    """Slug -> card of each published row."""
    return {row.slug: row.card() for row in taxonomy_rows()}


@cache
def opening_up_projects() -> tuple[Project, ...]:
    """The 46 systems, most open first."""
    data = files.read_json(DATA / "opening-up-chatgpt.json")
    names = data["about"]["dimensions"]
    return tuple(_project(row, names) for row in data["rows"])


def mof_models() -> list[dict[str, Any]]:
    """The 273 model descriptions, in the framework's own form."""
    data = files.read_json(DATA / "mof-models.json")
    names = data["about"]["components"]
    return [_description(row, names) for row in data["rows"]]


SAME_MODEL = {
    "bloomz": "bloom", "cerebras-gpt-111m-instruction": "cerebras-gpt", "pythia-chat-base-7B": "pythia",
    "mistral-7B": "mistral-7b", "Falcon-180B-chat": "falcon", "command-r": "command-r",
    "llama-2-chat": "llama-2", "llama-3-instruct": "llama-3", "chatgpt": "gpt-3.5-turbo",
}  # fmt: skip
"""Project of opening-up-chatgpt -> row of the taxonomy about the same model or the base it was tuned from."""


def _row(row: Sequence[Any], names: Sequence[str]) -> Row:
    slug, title, link, release, in_40, cells = row
    told = {name: (cell[0], cell[1]) for name, cell in zip(names, cells, strict=True)}
    return Row(slug, title, link, release, in_40, told)


def _project(row: Sequence[Any], names: Sequence[str]) -> Project:
    slug, base, organisation, licence, marks, published = row
    words = {"o": "open", "p": "partial", "c": "closed"}
    classes = {name: words[mark] for name, mark in zip(names, marks, strict=True)}
    return Project(slug, base, organisation, licence, classes, published)


def _cell(component: str, value: int | str, licence: str | None, link: str) -> dict[str, Any]:
    if value == "N/A":
        return {"status": "not_applicable"}
    if value == "Unknown":
        return (
            {"status": "unknown", "note": f"hint of the row: {licence}"} if licence else {"status": "unknown"}
        )
    mark = "C" if kind_of(component) == "code" else "D"
    one: dict[str, Any] = {"level": f"{mark}{value}"}
    if licence:
        one |= {"license": normalize_license(licence)[0], "access": "public"}
    elif value == 1:
        one["access"] = "none"
    elif value == 2 and mark == "D":
        one["access"] = "api"
    source = {"kind": "url", "ref": link, "accessed": "2024-05-16"}
    return {"value": one, "status": "disclosed", "verified": "self_reported", "sources": [source]}


def _description(row: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    name, producer, date, treatment, shared, components = row
    release: dict[str, Any] = {
        "name": name, "producer": producer, "date": date, "treatment": treatment,
        "license": {kind: {"name": licence} for kind, licence in shared.items()},
        "components": [
            {"name": names[i], **({} if own is None else {"license": own})} for i, own in components
        ],
    }  # fmt: skip
    return {"framework": {"name": "Model Openness Framework", "version": "1.0"}, "release": release}
