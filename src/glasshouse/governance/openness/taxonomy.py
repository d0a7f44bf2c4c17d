"""The twelve components of a model and the scale of their openness (arXiv 2404.17047, 2405.08597).

A component is `pipeline.kind.name`. Code is graded C1 (closed) to C5 (free of restrictions), data and weights
D1 to D5. What is public is graded by how many of five permissions its licence grants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from glasshouse.governance._card import Card, CardField, Strict, Text
from glasshouse.runtime.errors import InputError

Component = Literal[
    "training.code.pretraining", "training.code.finetuning", "training.code.alignment",
    "training.data.pretraining", "training.data.sft", "training.data.alignment",
    "evaluation.code.general", "evaluation.code.safety",
    "evaluation.data.utility", "evaluation.data.safety",
    "deployment.code.inference", "deployment.data.weights",
]  # fmt: skip
COMPONENTS: tuple[str, ...] = get_args(Component)
WEIGHTS = "deployment.data.weights"
PIPELINES = ("training", "evaluation", "deployment")
Level = Literal["C1", "C2", "C3", "C4", "C5", "D1", "D2", "D3", "D4", "D5"]
Access = Literal["public", "gated", "api", "on_request", "none"]
PERMISSIONS = (
    "research use", "any commercial use", "modify as desired", "copyright derivative works",
    "derivatives may carry another licence",
)  # fmt: skip


class ComponentOpenness(Strict):
    """How open one component is. `license` is an SPDX expression; `override_reason` says why the level is
    higher than its licence would give.
    """

    level: Level
    license: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    license_link: Annotated[str, Field(max_length=2_000)] | None = None
    access: Access | None = None
    override_reason: Text = ""

    @property
    def points(self) -> int:
        """1 (closed) to 5 (open)."""
        return int(self.level[1])


class OpennessCard(Card):
    """How open a model is, component by component. A component that is absent is unknown, not closed."""

    SECTIONS: ClassVar[Mapping[str, str]] = {
        "/components/training.": "Training", "/components/evaluation.": "Evaluation",
        "/components/deployment.": "Deployment",
    }  # fmt: skip

    card_type: Literal["openness"] = "openness"
    components: dict[Component, CardField[ComponentOpenness]] = Field(default_factory=dict)

    def cell(self, component: str) -> CardField[ComponentOpenness]:
        """The field of a component; unknown where the card does not mention it."""
        return self.components.get(component, CardField[ComponentOpenness]())  # type: ignore[call-overload]


def kind_of(component: str) -> Literal["code", "data"]:
    """Whether a component is code or data; weights are data."""
    return "code" if component.split(".")[1] == "code" else "data"


def band_to_level(kind: str, points: int | None, access: str = "public") -> str | None:
    """The level of a component of this kind, from the permissions its licence grants (0 to 5) and its access.

    The scale is not symmetric: C2 is a band of licences, D2 a way of access (a closed API). What is gated is
    never level 5; what is given on request never leaves the lowest band. None where the licence is not known.

    >>> band_to_level("code", 3), band_to_level("data", 3), band_to_level("data", None, "api")
    ('C3', 'D3', 'D2')
    """
    if kind not in ("code", "data"):
        raise InputError(f"the kind is {kind!r}", fix="give 'code' or 'data'")
    if access == "none" or (access == "api" and kind == "code"):
        return "C1" if kind == "code" else "D1"
    if access == "api":
        return "D2"
    if points is None:
        return None
    if not 0 <= points <= 5:
        raise InputError(f"{points} points", fix="a licence grants 0 to 5 permissions")
    low = {0: 2, 1: 2, 2: 3, 3: 3, 4: 4, 5: 5} if kind == "code" else {0: 3, 1: 3, 2: 3, 3: 3, 4: 4, 5: 5}
    level = low[points]
    if access == "gated":
        level = min(level, 4)
    if access == "on_request":
        level = min(level, low[0])
    return f"{'C' if kind == 'code' else 'D'}{level}"
