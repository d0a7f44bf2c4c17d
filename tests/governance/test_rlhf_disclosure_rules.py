"""RLHF card: forty planted defects are each found, the clean card is clean, the schema says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rlhf_cards import DEFECTS, fact, put, release, share, spoiled

from glasshouse.governance import CardError, json_schema, to_card, validate, write_card
from glasshouse.governance._lint import check_schema
from glasshouse.governance._types import card_type
from glasshouse.governance.rlhf_disclosure import (
    noise_ceiling,
    problems,
    redact,
    verify_commitment,
)

SCHEMA_CODES = {"E-MISSING", "E-UNKNOWN-KEY", "E-TYPE", "E-CHOICE", "E-RANGE", "E-FORMAT", "E-LENGTH"}


def test_there_are_forty_defects() -> None:
    assert len(DEFECTS) == 40 == len({name for name, *_ in DEFECTS})


def test_every_planted_defect_is_found(tmp_path: Path) -> None:
    card = release(tmp_path)
    for name, code, pointer, act in DEFECTS:
        lint = validate(spoiled(card, act), level=3, base=tmp_path)
        found = {(issue.code, issue.pointer) for issue in lint.issues}
        assert (code, pointer) in found, f"{name}: {sorted(found)}"
        assert lint.exit_code() == 2


def test_the_untouched_card_is_clean(tmp_path: Path) -> None:
    lint = validate(release(tmp_path), level=3, base=tmp_path, policy="audit")
    assert lint.issues == () and lint.level == 4 and lint.policy == "audit"
    assert lint.exposed == ()
    assert all(known == every for known, every in lint.coverage.values()) and len(lint.coverage) == 11
    assert lint.metrics[0]["metric"] == "accuracy"


def test_the_schema_agrees_with_pydantic(tmp_path: Path) -> None:
    """Rules across fields and codes of files are the validator's alone: there both accept."""
    schema = Draft202012Validator(json_schema("rlhf"))
    Draft202012Validator.check_schema(json_schema("rlhf"))
    card, kind = release(tmp_path), card_type("rlhf")
    for name, code, _, act in [("clean", "", "", lambda card: None), *DEFECTS]:
        data = spoiled(card, act)
        parsed, _ = check_schema(kind, data)
        assert (parsed is not None) == schema.is_valid(data), name
        if name != "no type":
            assert (parsed is None) == (code in SCHEMA_CODES and name != "percent quantity"), name


@pytest.mark.parametrize("flip", [0.05, 0.1, 0.2, 0.3])
def test_three_points_above_the_ceiling_is_refused(flip: float, tmp_path: Path) -> None:
    assert "E-CEILING" in _codes(tmp_path, flip, 1 - flip + 0.03)


@pytest.mark.parametrize("flip", [0.05, 0.1, 0.2, 0.3])
def test_three_points_below_the_ceiling_passes(flip: float, tmp_path: Path) -> None:
    assert _codes(tmp_path, flip, 1 - flip - 0.03) == set()


def _codes(root: Path, flip: float, accuracy: float) -> set[str]:
    agreement = {
        "statistic": "raw_agreement",
        "estimate": share((1 - flip) ** 2 + flip**2),
        "marginals": [0.5, 0.5],
    }
    card = spoiled(release(root), put("/quality/agreement/value", agreement))
    card["reward_evaluation"]["accuracy"] = fact(share(accuracy))
    return {issue.code for issue in validate(card, level=3, base=root).issues}


def test_alpha_with_marginals_gives_the_same_ceiling(tmp_path: Path) -> None:
    """Alpha 0.36 with equal labels is agreement 0.68, so the ceiling is 0.8."""
    agreement = {"statistic": "alpha_nominal", "estimate": share(0.36, unit="alpha"), "marginals": [0.5, 0.5]}
    card = spoiled(release(tmp_path), put("/quality/agreement/value", agreement))
    card["reward_evaluation"]["accuracy"] = fact(share(0.83))
    assert "E-CEILING" in {issue.code for issue in validate(card, level=2).issues}
    assert noise_ceiling(0.49) is None and noise_ceiling(1.0) == 1.0


def test_hints_name_both_readings(tmp_path: Path) -> None:
    card = spoiled(release(tmp_path), put("/feedback/tie_rate/value", share(90.0)))
    issue = next(one for one in validate(card, level=2).issues if one.code == "E-RANGE")
    assert "0.9" in issue.hint and "90 %" in issue.hint
    card = spoiled(release(tmp_path), put("/policy/algoritm", fact("ppo")))
    assert "did you mean 'algorithm'?" in validate(card, level=1).issues[0].hint


def test_few_pairs_are_not_worse_than_a_coin(tmp_path: Path) -> None:
    for high, expected in ((0.55, set()), (0.48, {"E-RM-ACCURACY"})):
        card = spoiled(release(tmp_path), put("/reward_evaluation/accuracy", fact(share(0.45, 0.4, high))))
        assert {issue.code for issue in validate(card, level=2).issues} == expected


def test_paid_raters_with_unknown_pay_is_a_warning(tmp_path: Path) -> None:
    lint = validate(spoiled(release(tmp_path), put("/evaluators/pay", {})), level=2)
    assert [issue.code for issue in lint.issues] == ["W-PAY"]
    assert lint.exit_code() == 0 and lint.exit_code(strict=True) == 1


def test_a_missing_section_is_uncovered_not_bad(tmp_path: Path) -> None:
    card = release(tmp_path)
    del card["risks"], card["reward_evaluation"]
    assert validate(card, level=3, base=tmp_path).issues == ()
    lint = validate(card, policy="paper-minimum", base=tmp_path)
    assert {(i.code, i.pointer) for i in lint.issues} == {
        ("E-COVERAGE", "/risks"),
        ("E-COVERAGE", "/reward_evaluation"),
    }
    assert any(one.startswith("RM-4") or one.startswith("RM-1") for one in lint.exposed) or lint.exposed == ()
    for pointer in ("/risks", "/reward_evaluation"):
        name = "expected_risks" if pointer == "/risks" else "accuracy"
        card[pointer[1:]] = {name: {"status": "undisclosed", "note": "held back for a stated reason"}}
    assert validate(card, policy="paper-minimum", base=tmp_path).issues == ()


def test_an_empty_card_exposes_every_fundamental_problem() -> None:
    lint = validate({"card_type": "rlhf", "subject": {"name": "x"}}, level=2)
    fundamental = [one.id for one in problems().values() if one.kind == "fundamental"]
    assert [one.split()[0] for one in lint.exposed] == fundamental and len(problems()) == 23
    assert lint.errors == ()


def test_own_problems_need_their_prefix(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- {id: X-mine, stage: policy, kind: tractable, text: ours}\n")
    assert problems(path)["X-mine"].text == "ours"
    path.write_text("- {id: RM-1, stage: policy, kind: tractable, text: ours}\n")
    with pytest.raises(CardError, match="does not start with X-"):
        problems(path)


def test_every_pointer_of_the_registry_is_a_field() -> None:
    card = to_card({"card_type": "rlhf", "subject": {"name": "x"}})
    fields = {pointer for pointer, _ in card.fields()}
    assert {p for one in problems().values() for p in one.revealed_by} <= fields
    assert 50 <= len(fields) <= 60


def test_a_commitment_hides_and_binds(tmp_path: Path) -> None:
    card = to_card(release(tmp_path))
    hidden = ["/reward_evaluation/accuracy", "/evaluators/n_raters"]
    public, opening = redact(card, hidden)
    told = write_card(tmp_path / "public.json", public).read_text()
    assert '"value":0.7' not in told and public.reward_evaluation.accuracy.commitment is not None
    assert public.reward_evaluation.accuracy.commitment.range == "0.1 to 1"
    assert verify_commitment(public, opening) == dict.fromkeys(hidden, True)
    opening["fields"]["/evaluators/n_raters"]["value"] = 41
    assert verify_commitment(public, opening)["/evaluators/n_raters"] is False
    again, _ = redact(card, hidden)
    assert again.card_id != public.card_id, "the salt is drawn anew, so equal values do not show"
    assert validate(public, policy="public-redacted", base=tmp_path).errors == ()
    with pytest.raises(CardError, match="did you mean"):
        redact(card, ["/reward_evaluation/acuracy"])
