"""The Model Openness Framework against its own test files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glasshouse.governance import CardError, validate
from glasshouse.governance.openness import mof_evaluate, mof_models, mof_to_openness
from glasshouse.governance.openness.mof import components, is_open

CASES = json.loads((Path(__file__).parent / "mof_cases.json").read_text())["cases"]


def test_every_reference_case() -> None:
    assert len(CASES) == 18
    for name, case in CASES.items():
        found, expected = mof_evaluate(case["mof"]), case["expected"]
        assert found.mof_class == expected["class"] and found.label == expected["label"], name
        told = {str(k): v for k, v in found.progress.items()}
        assert told == pytest.approx(expected["progress"], abs=1e-9), name


def release(names: list[str], licence: str = "MIT") -> dict[str, Any]:
    return {
        "release": {
            "name": "x",
            "license": {},
            "components": [{"name": n, "license": licence} for n in names],
        }
    }


def required(level: int) -> list[str]:
    return [one.name for one in components().values() if one.required and one.mof_class >= level]


@pytest.mark.parametrize("level", [3, 2, 1])
def test_a_class_needs_all_of_the_lower_ones(level: int) -> None:
    whole = required(level)
    assert mof_evaluate(release(whole)).mof_class == level
    for missing in whole:
        if missing in ("Technical report", "Research paper"):
            continue
        found = mof_evaluate(release([name for name in whole if name != missing]))
        assert found.mof_class == (
            0 if components()[missing].mof_class == 3 else components()[missing].mof_class + 1
        )
        assert missing in found.missing


def test_a_paper_stands_in_for_the_report_once() -> None:
    whole = [name for name in required(1) if name != "Technical report"]
    assert mof_evaluate(release(whole)).mof_class == 1
    without = [name for name in whole if name != "Research paper"]
    assert mof_evaluate(release(without)).mof_class == 0


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", True),
        ("CC-BY-4.0", True),
        ("CC-BY-NC-4.0", False),
        ("CC-BY-ND-4.0", False),
        ("CDLA-Sharing-1.0", True),
        ("OpenMDW-1.0", True),
        ("OGL-UK-3.0", True),
        ("llama2", False),
        ("", False),
        ("unlicensed", False),
    ],
)
def test_what_counts_as_open(licence: str, expected: bool) -> None:
    assert is_open(licence) is expected


def test_licences_fall_back_to_the_kind_then_to_the_distribution() -> None:
    mof = release(["Training code", "Datasets"], "")
    mof["release"]["license"] = {"distribution": {"name": "llama2"}, "code": {"name": "MIT"}}
    found = mof_evaluate(mof)
    assert found.licenses == {"Training code": "MIT", "Datasets": "llama2"} and found.invalid == ("Datasets",)
    assert mof_evaluate(release(["Datasets"], "MIT")).not_type_appropriate == ("Datasets",)


def test_the_corpus_is_evaluated_and_becomes_cards() -> None:
    models = mof_models()
    assert len(models) == 273
    classes = [mof_evaluate(one).mof_class for one in models]
    assert {0, 1, 2, 3} == set(classes)
    cards = [mof_to_openness(one) for one in models]
    errors = [issue for card in cards for issue in validate(card, level=2).errors]
    assert errors == []


def test_malformed_descriptions_are_refused() -> None:
    with pytest.raises(CardError, match="no release"):
        mof_evaluate({})
    with pytest.raises(CardError, match="no component 'Modell'"):
        mof_evaluate(release(["Modell"]))
    with pytest.raises(CardError, match="listed twice"):
        mof_evaluate(release(["Datasets", "Datasets"]))
