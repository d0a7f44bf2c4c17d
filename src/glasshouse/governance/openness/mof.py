"""The Model Openness Framework (arXiv 2403.13784): which class a release reaches, from its licences.

Seventeen components, each belonging to a class: III (the least) up to I (all of open science). A component
counts where its licence is open. Class k is reached when every required component of the classes from III up
to k counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from glasshouse.governance._card import Subject, disclosed
from glasshouse.governance._errors import CardError
from glasshouse.governance._spdx import known_ids
from glasshouse.governance.openness.taxonomy import OpennessCard
from glasshouse.runtime import files

DATA = Path(__file__).with_name("data")
REPORT, PAPER = "Technical report", "Research paper"
LABELS = {
    0: "Unclassified", 1: "Class I - Open Science Model", 2: "Class II - Open Tooling Model",
    3: "Class III - Open Model",
}  # fmt: skip
UNLICENSED = frozenset({"", "unlicensed", "unlicenced"})


@dataclass(frozen=True)
class MofComponent:
    """One of the seventeen: `kind` is code, data or document; `mof_class` 3 (least) to 1."""

    name: str
    kind: str
    mof_class: int
    required: bool


@dataclass(frozen=True)
class MofResult:
    """What a release reaches: `mof_class` 1 to 3, 0 for none; `progress` class -> percent in [0, 100]."""

    mof_class: int
    progress: Mapping[int, float]
    included: tuple[str, ...]
    missing: tuple[str, ...]
    """Required components that are not in the release."""
    invalid: tuple[str, ...] = ()
    """Components under a licence that is not open."""
    unlicensed: tuple[str, ...] = ()
    not_type_appropriate: tuple[str, ...] = ()
    """Counted, on the condition that the licence, made for another kind of content, serves."""
    licenses: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The framework's name of the class."""
        return LABELS[self.mof_class]

    def to_json(self) -> dict[str, Any]:
        """`class`, `label`, `progress` and the lists."""
        return {
            "class": self.mof_class, "label": self.label,
            "progress": {str(k): v for k, v in sorted(self.progress.items())},
            "included": list(self.included), "missing": list(self.missing), "invalid": list(self.invalid),
            "unlicensed": list(self.unlicensed), "not_type_appropriate": list(self.not_type_appropriate),
        }  # fmt: skip


@cache
def components() -> dict[str, MofComponent]:
    """Name -> component."""
    rows = files.read_json(DATA / "mof-components.json")["components"]
    return {row[0]: MofComponent(*row) for row in rows}


@cache
def _types() -> dict[str, tuple[str, ...]]:
    """Licence -> the kinds of content that the framework lists it for."""
    return {
        key: tuple(kinds) for key, kinds in files.read_json(DATA / "mof-components.json")["licenses"].items()
    }


def is_open(license_id: str) -> bool:
    """Whether a licence is OSI or FSF approved, an open data licence of the framework, or OpenMDW."""
    flags = known_ids().get(license_id, ("", ""))[1]
    return "o" in flags or "f" in flags or _is_open_data(license_id)


def _is_open_data(license_id: str) -> bool:
    if license_id.startswith("CC-BY-"):
        return not license_id.startswith(("CC-BY-NC", "CC-BY-ND"))
    exact = ("CC0-1.0", "PDDL-1.0", "ODC-PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "ODC-ODbL-1.0", "OpenMDW-1.0")
    return license_id in exact or license_id.startswith(("CDLA-", "OGL-", "GFDL-1.3"))


def is_appropriate(license_id: str, kind: str) -> bool:
    """Whether an open licence was made for this kind of content; open data licences serve documents too."""
    if kind in _types().get(license_id, ()):
        return True
    if kind == "code":
        return "o" in known_ids().get(license_id, ("", ""))[1]
    return license_id == "OpenMDW-1.0" or _is_open_data(license_id)


def mof_evaluate(mof: Mapping[str, Any]) -> MofResult:
    """The class that a model description of the framework's schema reaches.

    Raises CardError for a description without a release, an unknown component, or one listed twice.
    """
    release = mof.get("release")
    if not isinstance(release, Mapping):
        raise CardError.of(
            "E-MISSING", "the description has no release", where="MOF", fix="see mof_schema.json"
        )
    found = _licenses(release)
    valid = [name for name, licence in found.items() if is_open(licence)]
    known = components()
    reached, progress = _progress(frozenset(valid))
    return MofResult(
        reached, progress, tuple(valid),
        tuple(name for name, one in known.items() if one.required and name not in found),
        tuple(name for name, lic in found.items() if lic.lower() not in UNLICENSED and name not in valid),
        tuple(name for name, lic in found.items() if lic.lower() in UNLICENSED),
        tuple(name for name in valid if not is_appropriate(found[name], known[name].kind)),
        found,
    )  # fmt: skip


def mof_to_openness(mof: Mapping[str, Any]) -> OpennessCard:
    """An openness card from a model description, with what it determines; the rest stays unknown.

    Training code and data sets are of the stage that `treatment` names. A component without a known licence
    is left unknown: being listed is no permission.
    """
    from glasshouse.governance.openness.licences import level_of
    from glasshouse.governance.openness.taxonomy import kind_of

    release = mof["release"]
    tuned = str(release.get("treatment", "")).endswith("fine-tuned")
    places = {
        "Training code": "training.code.finetuning" if tuned else "training.code.pretraining",
        "Datasets": "training.data.sft" if tuned else "training.data.pretraining",
        "Evaluation code": "evaluation.code.general",
        "Evaluation data": "evaluation.data.utility",
        "Inference code": "deployment.code.inference",
        "Model parameters (Final)": "deployment.data.weights",
    }
    cells = {}
    for name, licence in _licenses(release).items():
        place = places.get(name)
        level = level_of(kind_of(place), licence) if place and licence.lower() not in UNLICENSED else None
        if place and level:
            cells[place] = disclosed({"level": level, "license": licence, "access": "public"})
    plain = {place: one.model_dump(mode="json", exclude_defaults=True) for place, one in cells.items()}
    subject = Subject(name=str(release.get("name") or "unnamed"))
    return OpennessCard.parse(
        {"card_type": "openness", "subject": subject.model_dump(exclude_defaults=True), "components": plain}
    )


def _licenses(release: Mapping[str, Any]) -> dict[str, str]:
    """Component -> its own licence, else that of its kind, else that of the distribution, else ''."""
    every = release.get("license")
    shared = every if isinstance(every, Mapping) else {}
    found: dict[str, str] = {}
    for entry in release.get("components") or []:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if name not in components():
            raise CardError.of("E-UNKNOWN-KEY", f"there is no component {str(name)[:60]!r}", where="MOF")
        if name in found:
            raise CardError.of("E-DUPLICATE", f"the component {name!r} is listed twice", where="MOF")
        own = str(entry.get("license") or "").strip()
        found[name] = own or _shared(shared, components()[name].kind) or _shared(shared, "distribution")
    return found


def _shared(shared: Mapping[str, Any], kind: str) -> str:
    entry = shared.get(kind)
    return str((entry.get("name") if isinstance(entry, Mapping) else entry) or "").strip()


def _progress(valid: frozenset[str]) -> tuple[int, dict[int, float]]:
    """Class reached and percent of each. A paper stands in for a missing report, once."""
    stands_in = PAPER in valid and REPORT not in valid
    progress: dict[int, float] = {}
    reached = 0
    complete = True
    for level in (3, 2, 1):
        required = {name for name, one in components().items() if one.required and one.mof_class >= level}
        if stands_in:
            required = (required - {REPORT}) | {PAPER}
        share = min(100.0, 100 * len(required & valid) / len(required))
        progress[level] = share if complete else 0.0
        complete = complete and share == 100
        reached = level if complete else reached
    return reached, progress
